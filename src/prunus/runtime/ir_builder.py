"""A small vector language: Python that writes machine code.

    with Kernel("double", ("x", "y", "n")) as k:          # three 64-bit arguments
        for i in k.range(0, k.n, 16):                      # a loop of the generated code, not of Python
            at = i * 4
            (k.y + at).store((k.x + at).load(F32 * 16) * 2.0)

A ``Value`` is one number or one vector of numbers at the time the code runs; ``+ - * & | ^ << >>`` write the instruction for
it, with numbers of Python taken as constants of the same type. A Python loop therefore unrolls, ``k.range`` does not. What
changes in a loop is a ``Cell``. Types are written ``I8``, ``F32``, ``F32 * 16`` (a vector of 16). Addresses are plain 64-bit
integers in bytes. Nothing here knows a processor: vectors of any width are legal, LLVM splits them as it must.
"""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

__all__ = ["F32", "I8", "I16", "I32", "I64", "Cell", "Kernel", "Type", "Value"]

Number = int | float


class Type:
    """A type of the generated code: a number, or a vector of ``lanes`` of them."""

    __slots__ = ("bits", "floating", "ir", "lanes")

    def __init__(self, bits: int, floating: bool, lanes: int = 1) -> None:
        self.bits, self.floating, self.lanes = bits, floating, lanes
        scalar = ir.FloatType() if floating else ir.IntType(bits)
        self.ir = ir.VectorType(scalar, lanes) if lanes > 1 else scalar

    def __mul__(self, lanes: int) -> "Type":
        return Type(self.bits, self.floating, lanes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Type) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple[int, bool, int]:
        """What makes two types the same."""
        return self.bits, self.floating, self.lanes

    @property
    def bytes(self) -> int:
        """Of one value in memory."""
        return max(1, self.bits // 8) * self.lanes

    @property
    def suffix(self) -> str:
        """As LLVM's intrinsics spell it: ``v16f32``."""
        return (f"v{self.lanes}" if self.lanes > 1 else "") + ("f" if self.floating else "i") + str(self.bits)

    @property
    def scalar(self) -> "Type":
        """The type of one lane."""
        return Type(self.bits, self.floating)

    def constant(self, number: Number) -> ir.Constant:
        """LLVM's constant of this type, the same in every lane."""
        if not self.floating and number != int(number):
            raise TypeError(f"{self.suffix} cannot hold {number}")
        plain = float(number) if self.floating else int(number)
        return ir.Constant(self.ir, [plain] * self.lanes if self.lanes > 1 else plain)


BIT, I8, I16, I32, I64 = (Type(bits, False) for bits in (1, 8, 16, 32, 64))
F32 = Type(32, True)


class Value:
    """What an expression will be worth when the code runs."""

    __slots__ = ("ir", "kernel", "type")

    def __init__(self, kernel: "Kernel", type_: Type, value: Any) -> None:
        self.kernel, self.type, self.ir = kernel, type_, value

    def _like(self, other: "Value | Number") -> Any:
        if not isinstance(other, Value):
            return self.type.constant(other)
        if other.type.lanes == 1 and self.type.lanes > 1:
            other = other.splat(self.type.lanes)
        if other.type != self.type:
            raise TypeError(f"{self.type.suffix} and {other.type.suffix} in one expression")
        return other.ir

    def _binary(self, name: str, other: "Value | Number") -> "Value":
        if isinstance(other, Value) and self.type.lanes == 1 and other.type.lanes > 1:
            return self.splat(other.type.lanes)._binary(name, other)
        operation = getattr(self.kernel.at, ("f" if self.type.floating else "") + name)
        return Value(self.kernel, self.type, operation(self.ir, self._like(other)))

    def __add__(self, other: "Value | Number") -> "Value":
        return self._binary("add", other)

    def __sub__(self, other: "Value | Number") -> "Value":
        return self._binary("sub", other)

    def __mul__(self, other: "Value | Number") -> "Value":
        return self._binary("mul", other)

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self._binary("div", other)

    def __floordiv__(self, other: "Value | Number") -> "Value":
        return self._binary("udiv", other)

    def __and__(self, other: "Value | Number") -> "Value":
        return self._binary("and_", other)

    def __or__(self, other: "Value | Number") -> "Value":
        return self._binary("or_", other)

    def __lshift__(self, other: "Value | Number") -> "Value":
        return self._binary("shl", other)

    def __rshift__(self, other: "Value | Number") -> "Value":
        """Keeps the sign."""
        return self._binary("ashr", other)

    def shr(self, other: "Value | Number") -> "Value":
        """Shifts zeros in from above."""
        return self._binary("lshr", other)

    def compare(self, sign: str, other: "Value | Number") -> "Value":
        """One bit a lane: ``<``, ``<=``, ``>``, ``>=``, ``==``, ``!=``; integers as signed, NaN is false."""
        write = self.kernel.at.fcmp_ordered if self.type.floating else self.kernel.at.icmp_signed
        return Value(self.kernel, BIT * self.type.lanes, write(sign, self.ir, self._like(other)))

    def select(self, yes: "Value", no: "Value | Number") -> "Value":
        """Of one bit a lane: ``yes`` where it is set."""
        return Value(self.kernel, yes.type, self.kernel.at.select(self.ir, yes.ir, yes._like(no)))

    def minimum(self, other: "Value | Number") -> "Value":
        """The smaller, lane by lane; ``other`` where either is NaN."""
        bound = Value(self.kernel, self.type, self._like(other))
        return self.compare("<", bound).select(self, bound)

    def maximum(self, other: "Value | Number") -> "Value":
        """The larger, lane by lane; ``other`` where either is NaN."""
        bound = Value(self.kernel, self.type, self._like(other))
        return self.compare(">", bound).select(self, bound)

    def splat(self, lanes: int) -> "Value":
        """The same number in every lane."""
        wide = self.type * lanes
        if lanes == 1:
            return self
        at, undefined = self.kernel.at, ir.Constant(wide.ir, ir.Undefined)
        first = at.insert_element(undefined, self.ir, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return Value(self.kernel, wide, at.shuffle_vector(first, undefined, zeros))

    def shuffle(self, other: "Value", order: list[int]) -> "Value":
        """Lanes of ``self`` (0 ..) and ``other`` (after them), in this order."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
        mixed = self.kernel.at.shuffle_vector(self.ir, other.ir, mask)
        return Value(self.kernel, self.type * len(order), mixed)

    def join(self, other: "Value") -> "Value":
        """The lanes of both, in order."""
        return self.shuffle(other, list(range(self.type.lanes + other.type.lanes)))

    def part(self, first: int, lanes: int) -> "Value":
        """``lanes`` lanes from ``first`` on."""
        return self.shuffle(self, list(range(first, first + lanes)))

    def lane(self, index: int) -> "Value":
        """One lane as a number."""
        one = self.kernel.at.extract_element(self.ir, ir.Constant(ir.IntType(32), index))
        return Value(self.kernel, self.type.scalar, one)

    def as_(self, type_: Type) -> "Value":
        """The same bits as another type of the same size."""
        return Value(self.kernel, type_, self.kernel.at.bitcast(self.ir, type_.ir))

    def to(self, type_: Type, signed: bool = True) -> "Value":
        """The same number in another type; floats lose their fraction."""
        source, target, at = self.type, type_ * self.type.lanes, self.kernel.at
        if (source.floating and target.floating) or source == target:
            return self
        if target.floating:
            write = at.sitofp if signed else at.uitofp
        elif source.floating:
            write = at.fptosi if signed else at.fptoui
        elif target.bits < source.bits:
            write = at.trunc
        else:
            write = at.sext if signed else at.zext
        return Value(self.kernel, target, write(self.ir, target.ir))

    def fma(self, factor: "Value | Number", term: "Value | Number") -> "Value":
        """self * factor + term, in one rounding where the processor can."""
        both = [Value(self.kernel, self.type, self._like(number)) for number in (factor, term)]
        return self.kernel.call(f"llvm.fmuladd.{self.type.suffix}", self.type, self, *both)

    def reciprocal(self) -> "Value":
        """1 / x."""
        return Value(self.kernel, self.type, self.type.constant(1.0)) / self

    def sqrt(self) -> "Value":
        """Square root."""
        return self.kernel.call(f"llvm.sqrt.{self.type.suffix}", self.type, self)

    def abs(self) -> "Value":
        """|x|, of floats."""
        return self.kernel.call(f"llvm.fabs.{self.type.suffix}", self.type, self)

    # addresses: 64-bit integers

    def load(self, type_: Type) -> "Value":
        """What lies at this address, aligned or not."""
        pointer = self.kernel.at.inttoptr(self.ir, ir.PointerType())
        return Value(self.kernel, type_, self.kernel.at.load(pointer, typ=type_.ir, align=max(1, type_.bits // 8)))

    def store(self, value: "Value") -> None:
        """Writes a value to this address, aligned or not."""
        pointer = self.kernel.at.inttoptr(self.ir, ir.PointerType())
        self.kernel.at.store(value.ir, pointer, align=max(1, value.type.bits // 8))

    def prefetch(self) -> None:
        """Asks for what lies at this address, which may be nothing."""
        kernel, name, whole = self.kernel, "llvm.prefetch.p0", ir.IntType(32)
        function = kernel.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), whole, whole, whole])
            function = ir.Function(kernel.module, kind, name)
        pointer = kernel.at.inttoptr(self.ir, ir.PointerType())
        kernel.at.call(function, [pointer, *(ir.Constant(whole, n) for n in (0, 3, 1))])  # to read, to keep, data


class Cell:
    """A variable of the generated code."""

    __slots__ = ("kernel", "pointer", "type")

    def __init__(self, start: Value) -> None:
        self.kernel, self.type = start.kernel, start.type
        with start.kernel.at.goto_entry_block():
            self.pointer = start.kernel.at.alloca(start.type.ir)
        self.set(start)

    def get(self) -> Value:
        """Its value now."""
        return Value(self.kernel, self.type, self.kernel.at.load(self.pointer, typ=self.type.ir))

    def set(self, value: Value) -> None:
        """Gives it a value of its type."""
        if value.type != self.type:
            raise TypeError(f"a cell of {self.type.suffix} cannot hold {value.type.suffix}")
        self.kernel.at.store(value.ir, self.pointer)

    def add(self, value: Value) -> None:
        """Adds to it."""
        self.set(self.get() + value)


class Kernel:
    """One function of the generated code: ``name(args: I64 ...)``, each argument an attribute of the kernel."""

    def __init__(self, name: str, arguments: tuple[str, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), [I64.ir] * len(arguments))
        self.function = ir.Function(self.module, kind, name)
        self.function.attributes.add("nounwind")
        self.at = ir.IRBuilder(self.function.append_basic_block("entry"))
        for argument, value in zip(arguments, self.function.args, strict=True):
            value.name = argument
        self._inputs = {name: Value(self, I64, v) for name, v in zip(arguments, self.function.args, strict=True)}

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

    def constant(self, type_: Type, number: Number) -> Value:
        """A number known when the code is written."""
        return Value(self, type_, type_.constant(number))

    def constants(self, type_: Type, numbers: list[int] | list[float]) -> Value:
        """A vector of these numbers."""
        wide = type_ * len(numbers)
        return Value(self, wide, ir.Constant(wide.ir, numbers))

    def cell(self, type_: Type, number: Number = 0) -> Cell:
        """A variable that starts as a number."""
        return Cell(self.constant(type_, number))

    def cells(self, count: int, type_: Type, number: Number = 0) -> list[Cell]:
        """``count`` of them."""
        return [self.cell(type_, number) for _ in range(count)]

    def stack(self, size: int) -> Value:
        """Address of ``size`` bytes of this call's own, aligned to a cache line."""
        with self.at.goto_entry_block():
            room = self.at.alloca(ir.IntType(8), size)
            room.align = 64
            return Value(self, I64, self.at.ptrtoint(room, I64.ir))

    def range(self, begin: Value | int, end: Value | int, step: int = 1) -> Iterator[Value]:
        """A loop: its body is written once, between this generator's two halves."""
        first, last = (v if isinstance(v, Value) else self.constant(I64, v) for v in (begin, end))
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

    def when(self, condition: Value) -> Iterator[None]:
        """``for _ in k.when(bit):`` writes what happens only where the bit is set."""
        with self.at.if_then(condition.ir):
            yield

    def otherwise(self, condition: Value) -> Iterator[bool]:
        """Twice through a body: with True for where the bit is set, with False for where it is not."""
        with self.at.if_else(condition.ir) as (yes, no):
            with yes:
                yield True
            with no:
                yield False

    def call(self, name: str, result: Type, *values: Value) -> Value:
        """An intrinsic of LLVM."""
        function = self.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result.ir, [value.type.ir for value in values])
            function = ir.Function(self.module, kind, name)
        return Value(self, result, self.at.call(function, [value.ir for value in values]))

    def invoke(self, address: Value, *values: Value) -> None:
        """Calls the kernel that lies at an address."""
        kind = ir.FunctionType(ir.VoidType(), [I64.ir] * len(values))
        function = self.at.inttoptr(address.ir, kind.as_pointer())
        self.at.call(function, [value.ir for value in values])

    def arrive(self, address: Value) -> None:
        """Adds one to the shared 64-bit counter at an address; what was written before is seen by who reads the new count."""
        pointer = self.at.inttoptr(address.ir, ir.PointerType())
        self.at.atomic_rmw("add", pointer, I64.constant(1), "acq_rel")

    def wait(self, address: Value, count: Value, patience: int, rest: Value) -> None:
        """Spins until the counter at an address has reached ``count``; after ``patience`` looks, calls ``rest()`` at each."""
        pointer = self.at.inttoptr(address.ir, ir.PointerType())
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
            self.invoke(rest)
        looks.add_incoming(more, self.at.block)
        self.at.branch(look)
        self.at.position_at_end(done)

    def text(self) -> str:
        """LLVM's assembly language."""
        return str(self.module)
