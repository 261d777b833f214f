"""Types, values and variables of generated code, each operation checked when it is written; see ``ir_builder``.

What does not fit is a ``TypeError`` (types) or a ``ValueError`` (numbers out of range) in Python, before LLVM sees it.
"""

from typing import TYPE_CHECKING, Any

from llvmlite import ir

if TYPE_CHECKING:
    from prunus.runtime.ir_builder import Kernel

__all__ = ["BIT", "F32", "I8", "I16", "I32", "I64", "Number", "Type", "Value", "Variable"]

Number = int | float
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


class Type:
    """A type of the generated code: a number, or a vector of ``lanes`` numbers."""

    __slots__ = ("bits", "floating", "ir", "lanes")

    def __init__(self, bits: int, floating: bool, lanes: int = 1) -> None:
        self.bits, self.floating, self.lanes = bits, floating, lanes
        scalar = ir.FloatType() if floating else ir.IntType(bits)
        self.ir = ir.VectorType(scalar, lanes) if lanes > 1 else scalar

    def __mul__(self, lanes: int) -> "Type":
        if self.lanes != 1 or not isinstance(lanes, int) or lanes < 1:
            raise TypeError(f"a vector needs a scalar type and a whole number of lanes, got {self} and {lanes!r}")
        return Type(self.bits, self.floating, lanes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Type) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.suffix

    @property
    def key(self) -> tuple[int, bool, int]:
        """Two types with the same key are the same."""
        return self.bits, self.floating, self.lanes

    @property
    def bytes(self) -> int:
        """Size of one value in memory."""
        return max(1, self.bits // 8) * self.lanes

    @property
    def suffix(self) -> str:
        """The type as LLVM's intrinsics spell it: ``v16f32``."""
        return (f"v{self.lanes}" if self.lanes > 1 else "") + ("f" if self.floating else "i") + str(self.bits)

    @property
    def scalar(self) -> "Type":
        """The type of one lane."""
        return Type(self.bits, self.floating)

    def check(self, number: object) -> None:
        """Raises for a number of Python that this type cannot hold."""
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{self} needs a number, got {number!r}")
        if self.floating:
            return
        if number != int(number):
            raise TypeError(f"{self} holds whole numbers, got {number}")
        if not -(2 ** (self.bits - 1)) <= number < 2**self.bits:
            raise ValueError(f"{self} holds {self.bits} bits, got {number}")

    def constant(self, number: Number) -> ir.Constant:
        """LLVM's constant of this type, the same in every lane."""
        self.check(number)
        plain = float(number) if self.floating else int(number)
        return ir.Constant(self.ir, [plain] * self.lanes if self.lanes > 1 else plain)


BIT, I8, I16, I32, I64 = (Type(bits, False) for bits in (1, 8, 16, 32, 64))
F32 = Type(32, True)


class Value:
    """The value of an expression when the generated code runs: one number, or one vector of numbers.

    ``+ - *`` wrap around for integers. Operations for which the sign matters have it in their names.
    """

    __slots__ = ("ir", "kernel", "type")

    def __init__(self, kernel: "Kernel", type_: Type, value: Any) -> None:
        self.kernel, self.type, self.ir = kernel, type_, value

    def _need(self, floating: bool, operation: str) -> None:
        if self.type.floating != floating:
            raise TypeError(f"{operation} needs {'floats' if floating else 'integers'}, got {self.type}")

    def _same_kernel(self, other: object) -> "Value":
        if not isinstance(other, Value):
            raise TypeError(f"a value of the generated code is needed, got {other!r}")
        if other.kernel is not self.kernel:
            raise ValueError(f"a value of the kernel {other.kernel.name!r} is used in {self.kernel.name!r}")
        return other

    def _operand(self, other: "Value | Number") -> "Value":
        """The other operand as a value of this type: numbers of Python and scalars go into every lane."""
        if not isinstance(other, Value):
            return Value(self.kernel, self.type, self.type.constant(other))
        self._same_kernel(other)
        if other.type.lanes == 1 and self.type.lanes > 1:
            other = other.splat(self.type.lanes)
        if other.type != self.type:
            raise TypeError(f"both operands need one type, got {self.type} and {other.type}")
        return other

    def _binary(self, instruction: str, other: "Value | Number") -> "Value":
        if isinstance(other, Value) and self.type.lanes == 1 and other.type.lanes > 1:
            return self.splat(other.type.lanes)._binary(instruction, other)
        write = getattr(self.kernel.at, instruction)
        return Value(self.kernel, self.type, write(self.ir, self._operand(other).ir))

    def _integers(self, instruction: str, sign: str, other: "Value | Number") -> "Value":
        self._need(floating=False, operation=sign)
        return self._binary(instruction, other)

    def __add__(self, other: "Value | Number") -> "Value":
        return self._binary("fadd" if self.type.floating else "add", other)

    def __sub__(self, other: "Value | Number") -> "Value":
        return self._binary("fsub" if self.type.floating else "sub", other)

    def __mul__(self, other: "Value | Number") -> "Value":
        return self._binary("fmul" if self.type.floating else "mul", other)

    def __truediv__(self, other: "Value | Number") -> "Value":
        self._need(floating=True, operation="/")
        return self._binary("fdiv", other)

    def __and__(self, other: "Value | Number") -> "Value":
        return self._integers("and_", "&", other)

    def __or__(self, other: "Value | Number") -> "Value":
        return self._integers("or_", "|", other)

    def __lshift__(self, other: "Value | Number") -> "Value":
        return self._integers("shl", "<<", other)

    def divide_unsigned(self, other: "Value | Number") -> "Value":
        """The quotient of unsigned integers, rounded down."""
        return self._integers("udiv", "divide_unsigned", other)

    def shift_right_signed(self, other: "Value | Number") -> "Value":
        """Shifts integers right; copies of the sign bit come in from above."""
        return self._integers("ashr", "shift_right_signed", other)

    def shift_right_unsigned(self, other: "Value | Number") -> "Value":
        """Shifts integers right; zeros come in from above."""
        return self._integers("lshr", "shift_right_unsigned", other)

    def _compare(self, write: Any, sign: str, other: "Value | Number") -> "Value":
        if sign not in COMPARISONS:
            raise ValueError(f"a comparison is one of {', '.join(COMPARISONS)}, got {sign!r}")
        return Value(self.kernel, Type(1, False, self.type.lanes), write(sign, self.ir, self._operand(other).ir))

    def compare_signed(self, sign: str, other: "Value | Number") -> "Value":
        """One bit a lane, of signed integers: ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``!=``."""
        self._need(floating=False, operation="compare_signed")
        return self._compare(self.kernel.at.icmp_signed, sign, other)

    def compare_unsigned(self, sign: str, other: "Value | Number") -> "Value":
        """One bit a lane, of unsigned integers."""
        self._need(floating=False, operation="compare_unsigned")
        return self._compare(self.kernel.at.icmp_unsigned, sign, other)

    def compare_float(self, sign: str, other: "Value | Number") -> "Value":
        """One bit a lane, of floats; with NaN it is 0 for every sign, ``!=`` too."""
        self._need(floating=True, operation="compare_float")
        return self._compare(self.kernel.at.fcmp_ordered, sign, other)

    def select(self, yes: "Value", no: "Value | Number") -> "Value":
        """``yes`` in the lanes where this bit is 1, ``no`` in the others; one bit alone selects whole vectors."""
        self._same_kernel(yes)
        if self.type.scalar != BIT or self.type.lanes not in (1, yes.type.lanes):
            raise TypeError(f"select needs a bit, or a bit for each lane of {yes.type}, got {self.type}")
        return Value(self.kernel, yes.type, self.kernel.at.select(self.ir, yes.ir, yes._operand(no).ir))

    def minimum(self, other: "Value | Number") -> "Value":
        """The smaller float, lane by lane; ``other`` where either is NaN."""
        bound = self._operand(other)
        return self.compare_float("<", bound).select(self, bound)

    def maximum(self, other: "Value | Number") -> "Value":
        """The larger float, lane by lane; ``other`` where either is NaN."""
        bound = self._operand(other)
        return self.compare_float(">", bound).select(self, bound)

    def minimum_signed(self, other: "Value | Number") -> "Value":
        """The smaller signed integer, lane by lane."""
        bound = self._operand(other)
        return self.compare_signed("<", bound).select(self, bound)

    def maximum_signed(self, other: "Value | Number") -> "Value":
        """The larger signed integer, lane by lane."""
        bound = self._operand(other)
        return self.compare_signed(">", bound).select(self, bound)

    # lanes

    def splat(self, lanes: int) -> "Value":
        """A vector with this number in every lane."""
        wide = self.type * lanes
        if lanes == 1:
            return self
        at, undefined = self.kernel.at, ir.Constant(wide.ir, ir.Undefined)
        first = at.insert_element(undefined, self.ir, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return Value(self.kernel, wide, at.shuffle_vector(first, undefined, zeros))

    def shuffle(self, other: "Value", order: list[int]) -> "Value":
        """A vector of lanes of ``self`` (numbered from 0) and of ``other`` (numbered after them), in this order."""
        if self._same_kernel(other).type != self.type or self.type.lanes == 1:
            raise TypeError(f"shuffle needs two vectors of one type, got {self.type} and {other.type}")
        if len(order) < 2 or not all(0 <= index < 2 * self.type.lanes for index in order):
            raise ValueError(f"shuffle needs two or more lanes of 0 .. {2 * self.type.lanes - 1}, got {order}")
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
        mixed = self.kernel.at.shuffle_vector(self.ir, other.ir, mask)
        return Value(self.kernel, self.type.scalar * len(order), mixed)

    def join(self, other: "Value") -> "Value":
        """The lanes of both, one after the other."""
        return self.shuffle(other, list(range(2 * self.type.lanes)))

    def part(self, first: int, lanes: int) -> "Value":
        """``lanes`` lanes from ``first`` on."""
        if not 0 <= first <= first + lanes <= self.type.lanes:
            raise ValueError(f"lanes {first} .. {first + lanes - 1} are not all in {self.type}")
        return self.shuffle(self, list(range(first, first + lanes)))

    def lane(self, index: int) -> "Value":
        """One lane as a number."""
        if not 0 <= index < self.type.lanes or self.type.lanes == 1:
            raise ValueError(f"lane {index} is not in {self.type}")
        one = self.kernel.at.extract_element(self.ir, ir.Constant(ir.IntType(32), index))
        return Value(self.kernel, self.type.scalar, one)

    # conversions

    def bitcast(self, type_: Type) -> "Value":
        """The same bits as another type of the same size."""
        if type_.bits * type_.lanes != self.type.bits * self.type.lanes:
            raise TypeError(f"bitcast needs types of one size, got {self.type} and {type_}")
        return Value(self.kernel, type_, self.kernel.at.bitcast(self.ir, type_.ir))

    def _convert(self, scalar: Type, signed: bool) -> "Value":
        source, target, at = self.type, scalar * self.type.lanes, self.kernel.at
        if source == target:
            return self
        if target.floating:
            write = at.sitofp if signed else at.uitofp
        elif source.floating:
            write = at.fptosi if signed else at.fptoui
        elif target.bits < source.bits:
            raise TypeError(f"{source} is wider than {target}: truncate drops the upper bits")
        else:
            write = at.sext if signed else at.zext
        return Value(self.kernel, target, write(self.ir, target.ir))

    def convert_signed(self, scalar: Type) -> "Value":
        """The same number in another type, its integers signed; floats lose their fraction."""
        return self._convert(scalar, signed=True)

    def convert_unsigned(self, scalar: Type) -> "Value":
        """The same number in another type, its integers unsigned; floats lose their fraction."""
        return self._convert(scalar, signed=False)

    def truncate(self, scalar: Type) -> "Value":
        """The lower bits of integers."""
        self._need(floating=False, operation="truncate")
        target = scalar * self.type.lanes
        if target.floating or target.bits >= self.type.bits:
            raise TypeError(f"truncate needs a narrower integer type than {self.type}, got {target}")
        return Value(self.kernel, target, self.kernel.at.trunc(self.ir, target.ir))

    # functions of floats

    def fma(self, factor: "Value | Number", term: "Value | Number") -> "Value":
        """self * factor + term, in one rounding where the processor can."""
        self._need(floating=True, operation="fma")
        both = [self._operand(number) for number in (factor, term)]
        return self.kernel.call(f"llvm.fmuladd.{self.type.suffix}", self.type, self, *both)

    def reciprocal(self) -> "Value":
        """1 / x."""
        self._need(floating=True, operation="reciprocal")
        return Value(self.kernel, self.type, self.type.constant(1.0)) / self

    def sqrt(self) -> "Value":
        """The square root."""
        self._need(floating=True, operation="sqrt")
        return self.kernel.call(f"llvm.sqrt.{self.type.suffix}", self.type, self)

    def abs(self) -> "Value":
        """|x|."""
        self._need(floating=True, operation="abs")
        return self.kernel.call(f"llvm.fabs.{self.type.suffix}", self.type, self)

    # addresses: 64-bit integers

    def pointer(self) -> Any:
        """The address as a pointer of LLVM."""
        if self.type != I64:
            raise TypeError(f"an address is {I64}, got {self.type}")
        return self.kernel.at.inttoptr(self.ir, ir.PointerType())

    def load(self, type_: Type) -> "Value":
        """Reads a value of this type from this address, aligned or not."""
        if not isinstance(type_, Type):
            raise TypeError(f"load needs a type, got {type_!r}")
        return Value(
            self.kernel, type_, self.kernel.at.load(self.pointer(), typ=type_.ir, align=max(1, type_.bits // 8))
        )

    def store(self, value: "Value") -> None:
        """Writes a value to this address, aligned or not."""
        self._same_kernel(value)
        self.kernel.at.store(value.ir, self.pointer(), align=max(1, value.type.bits // 8))

    def prefetch(self) -> None:
        """Fetches the cache line at this address, if there is one; a bad address does nothing."""
        kernel, name, whole = self.kernel, "llvm.prefetch.p0", ir.IntType(32)
        function = kernel.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), whole, whole, whole])
            function = ir.Function(kernel.module, kind, name)
        kernel.at.call(function, [self.pointer(), *(ir.Constant(whole, n) for n in (0, 3, 1))])  # read, keep, data


class Variable:
    """A variable of the generated code: the one thing whose value changes in a loop."""

    __slots__ = ("kernel", "pointer", "type")

    def __init__(self, start: Value) -> None:
        self.kernel, self.type = start.kernel, start.type
        with start.kernel.at.goto_entry_block():
            self.pointer = start.kernel.at.alloca(start.type.ir)
        self.set(start)

    def get(self) -> Value:
        """Loads its value."""
        return Value(self.kernel, self.type, self.kernel.at.load(self.pointer, typ=self.type.ir))

    def set(self, value: Value) -> None:
        """Stores a value of its type."""
        if not isinstance(value, Value) or value.type != self.type:
            raise TypeError(f"a variable of {self.type} cannot hold {getattr(value, 'type', value)}")
        if value.kernel is not self.kernel:
            raise ValueError(f"a value of the kernel {value.kernel.name!r} is used in {self.kernel.name!r}")
        self.kernel.at.store(value.ir, self.pointer)

    def add(self, value: Value) -> None:
        """Adds a value to it."""
        self.set(self.get() + value)
