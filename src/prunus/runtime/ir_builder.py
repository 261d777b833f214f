"""An IR builder: Python that writes machine code, by way of LLVM.

    with Kernel("double", ("x", "y", "n")) as k:          # three 64-bit arguments
        with k.loop(0, k.n, 16) as i:                      # a loop of the generated code, not of Python
            at = i * 4
            (k.y + at).store((k.x + at).load(F32 * 16) * 2.0)

A ``Value`` is one number or one vector of numbers when the code runs. Operators write the instruction for it and take numbers
of Python as constants of the same type. A Python loop therefore unrolls; ``k.loop`` does not. ``Variable`` holds what changes
in a loop. Types are written ``I8``, ``F32``, ``F32 * 16`` (a vector of 16). Addresses are 64-bit integers in bytes, and memory
is read by ``load`` and nothing else. Where the sign of integers matters, the operation's name has it (``compare_signed``,
``shift_right_unsigned``). Types are checked as each operation is written.

Nothing here depends on the processor: vectors of any width are legal, LLVM splits them as it must.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from llvmlite import ir

from prunus.runtime.ir_values import BIT, F32, I8, I16, I32, I64, Number, Type, Value, Variable

__all__ = ["BIT", "F32", "I8", "I16", "I32", "I64", "Kernel", "Type", "Value", "Variable"]


class Kernel:
    """One function of the generated code: ``name(parameters: I64 ...)``, each parameter an attribute of the kernel."""

    def __init__(self, name: str, parameters: tuple[str, ...]) -> None:
        self.name, self.parameters = name, parameters
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), [I64.ir] * len(parameters))
        self.function = ir.Function(self.module, kind, name)
        self.function.attributes.add("nounwind")
        self.at = ir.IRBuilder(self.function.append_basic_block("entry"))
        for parameter, value in zip(parameters, self.function.args, strict=True):
            value.name = parameter
        self._inputs = {name: Value(self, I64, v) for name, v in zip(parameters, self.function.args, strict=True)}

    def __getattr__(self, name: str) -> Value:
        inputs = self.__dict__.get("_inputs", {})
        if name in inputs:
            return inputs[name]  # type: ignore[no-any-return]
        raise AttributeError(name)

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.at.ret_void()

    def _check(self, value: object, type_: Type, what: str) -> Value:
        """A value of this kernel and of this type."""
        if not isinstance(value, Value) or value.type != type_:
            raise TypeError(f"{what} needs {type_}, got {getattr(value, 'type', value)!r}")
        if value.kernel is not self:
            raise ValueError(f"{what}: a value of the kernel {value.kernel.name!r} is used in {self.name!r}")
        return value

    # constants and memory

    def constant(self, type_: Type, number: Number) -> Value:
        """A number that is known when the code is written."""
        return Value(self, type_, type_.constant(number))

    def constants(self, type_: Type, numbers: list[int] | list[float]) -> Value:
        """A vector of these numbers."""
        for number in numbers:
            type_.check(number)
        wide = type_ * len(numbers)
        return Value(self, wide, ir.Constant(wide.ir, numbers))

    def variable(self, type_: Type, number: Number = 0) -> Variable:
        """A variable that starts as a number."""
        return Variable(self.constant(type_, number))

    def variables(self, count: int, type_: Type, number: Number = 0) -> list[Variable]:
        """``count`` variables that start as a number."""
        return [self.variable(type_, number) for _ in range(count)]

    def stack(self, size: int) -> Value:
        """The address of ``size`` bytes that belong to this call, aligned to a cache line."""
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"stack needs a number of bytes, got {size!r}")
        with self.at.goto_entry_block():
            memory = self.at.alloca(ir.IntType(8), size)
            memory.align = 64
            return Value(self, I64, self.at.ptrtoint(memory, I64.ir))

    # control flow

    @contextmanager
    def loop(self, begin: Value | int, end: Value | int, step: int = 1) -> Iterator[Value]:
        """``with k.loop(begin, end) as i:`` runs its body for i = begin, begin + step ... while i < end (signed)."""
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"a loop needs a whole step of at least 1, got {step!r}")
        first, last = (
            self._check(v if isinstance(v, Value) else self.constant(I64, v), I64, "a loop") for v in (begin, end)
        )
        before = self.at.block
        head, body, tail = (self.at.append_basic_block(name) for name in ("loop", "body", "done"))
        self.at.branch(head)
        self.at.position_at_end(head)
        index = self.at.phi(I64.ir)
        index.add_incoming(first.ir, before)
        self.at.cbranch(self.at.icmp_signed("<", index, last.ir), body, tail)
        self.at.position_at_end(body)
        yield Value(self, I64, index)
        following = self.at.add(index, I64.constant(step))
        index.add_incoming(following, self.at.block)
        self.at.branch(head)
        self.at.position_at_end(tail)

    @contextmanager
    def if_(self, condition: Value) -> Iterator[None]:
        """``with k.if_(bit):`` runs its body where the bit is 1."""
        with self.at.if_then(self._check(condition, BIT, "if_").ir):
            yield

    @contextmanager
    def if_else(self, condition: Value) -> Iterator[tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
        """``with k.if_else(bit) as (yes, no):``, and inside ``with yes:`` and ``with no:``, each once."""
        with self.at.if_else(self._check(condition, BIT, "if_else").ir) as (yes, no):
            yield yes, no

    # calls and threads

    def call(self, name: str, result: Type, *values: Value) -> Value:
        """Calls an intrinsic of LLVM."""
        for value in values:
            self._check(value, getattr(value, "type", result), name)
        function = self.module.globals.get(name)
        kind = ir.FunctionType(result.ir, [value.type.ir for value in values])
        if function is None:
            function = ir.Function(self.module, kind, name)
        elif function.ftype != kind:
            raise TypeError(f"{name} is {function.ftype}, and is called as {kind}")
        return Value(self, result, self.at.call(function, [value.ir for value in values]))

    def invoke(self, address: Value, *values: Value) -> None:
        """Calls the kernel at an address."""
        self._check(address, I64, "invoke")
        for value in values:
            self._check(value, I64, "invoke")
        kind = ir.FunctionType(ir.VoidType(), [I64.ir] * len(values))
        function = self.at.inttoptr(address.ir, kind.as_pointer())
        self.at.call(function, [value.ir for value in values])

    def arrive(self, address: Value) -> None:
        """Adds one to the shared 64-bit counter at an address; who reads the new count sees what was written before."""
        pointer = self._check(address, I64, "arrive").pointer()
        self.at.atomic_rmw("add", pointer, I64.constant(1), "acq_rel")

    def wait(self, address: Value, count: Value, patience: int, let_others_run: Value) -> None:
        """Spins until the counter at an address is at least ``count``.

        After ``patience`` looks it calls the function at the address ``let_others_run`` between looks.
        """
        pointer = self._check(address, I64, "wait").pointer()
        self._check(count, I64, "wait")
        before = self.at.block
        look, again, done = (self.at.append_basic_block(n) for n in ("look", "again", "done"))
        self.at.branch(look)
        self.at.position_at_end(look)
        looks = self.at.phi(I64.ir)
        looks.add_incoming(I64.constant(0), before)
        seen = self.at.load_atomic(pointer, "acquire", 8, typ=I64.ir)
        more = self.at.add(looks, I64.constant(1))
        over = self.at.icmp_signed(">=", seen, count.ir)
        self.at.cbranch(over, done, again)
        self.at.position_at_end(again)
        with self.at.if_then(self.at.icmp_signed(">", looks, I64.constant(patience))):
            self.invoke(let_others_run)
        looks.add_incoming(more, self.at.block)
        self.at.branch(look)
        self.at.position_at_end(done)

    def text(self) -> str:
        """LLVM's assembly language."""
        return str(self.module)
