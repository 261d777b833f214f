"""Functions of vectors, written with the IR builder: each takes values and returns values, lane by lane.

Rows of bytes have an order of their own. Where a block is 64 tokens wide and a vector has 16 lanes of 32 bits, byte
``16 l + 4 j + i`` of a row is token ``16 j + 4 l + i``: then the instructions that mix bytes inside each 128-bit lane turn four
rows into int8x4 words whose lanes are tokens in their natural order, and the ones that narrow turn numbers into rows. Every
other block keeps its rows in the natural order. Only ``quads_of``, ``row_of`` and ``ordered`` know.

int8x4 is four bytes of one token, of four consecutive features, in one 32-bit word.
"""

from math import log, sqrt

from prunus.runtime.ir_builder import F32, I8, I16, I32, Value, Variable
from prunus.runtime.isa import Isa

__all__ = [
    "ACTIVATIONS",
    "LOG2_E",
    "bytes_of",
    "exp",
    "exp2",
    "gelu",
    "gelu_tanh",
    "joined",
    "low_bytes",
    "ordered",
    "outer",
    "quad_of",
    "quads_of",
    "row_of",
    "transpose",
]

ROUND = 12582912.0
"""1.5 * 2^23: a float that is added to it keeps its integer part in the low bits, rounded to even."""
ROUND_BITS = 0x4B400000

LOG2_E = 1 / log(2)
# 2^f, |f| <= 1/2: the smallest largest relative error of its degree; 7.5e-5, and below float32's.
POWER_SHORT = (0.999928072982306, 0.6932609852797165, 0.24261112521031974, 0.055171670307319634)
POWER_LONG = (
    1.0,
    0.6931471807409278,
    0.24022634596162476,
    0.05550360520334837,
    0.009620061310611156,
    0.0013391863139712253,
    0.00014920956235966884,
)
# Phi(x) - 1/2 = x P(x^2), |x| <= 3.6, and Phi = 1 there: |x| times the error stays below 5.8e-4.
PHI_END = 3.6
PHI = (
    0.39626413269201544,
    -0.06250663259727231,
    0.007877957181822519,
    -0.000628637041356666,
    2.7998569764574112e-05,
    -5.249991204523936e-07,
)


def polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    """sum of c[i] x^i, by Horner's rule; at least two coefficients."""
    kernel = x.kernel
    result = kernel.constant(x.type, coefficients[-1]).fma(x, coefficients[-2])
    for coefficient in coefficients[-3::-1]:
        result = result.fma(x, coefficient)
    return result


def exp2(x: Value, short: bool) -> Value:
    """2^x for x <= 0; below -126 it is about 1e-38."""
    power = x.maximum(-126.0)
    shifted = power + ROUND
    fraction = power - (shifted - ROUND)
    mantissa = polynomial(fraction, POWER_SHORT if short else POWER_LONG)
    whole = shifted.bitcast(I32 * x.type.lanes) << 23
    return (mantissa.bitcast(I32 * x.type.lanes) + whole).bitcast(F32 * x.type.lanes)


def exp(x: Value, short: bool) -> Value:
    """e^x for x <= 0; below -87 it is about 1e-38."""
    return exp2(x * LOG2_E, short)


def gelu(x: Value, short: bool) -> Value:
    """x Phi(x), with Phi from erf (Hendrycks and Gimpel, 2016)."""
    if short:
        inside = x.maximum(-PHI_END).minimum(PHI_END)
        return x * inside.fma(polynomial(inside * inside, PHI), 0.5)
    # erf as Abramowitz and Stegun, 7.1.26: error below 1.5e-7
    z = x.abs() * (1 / sqrt(2))
    t = (z * 0.3275911 + 1.0).reciprocal()
    tail = polynomial(t, (0.0, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
    erf = (tail * exp((z * z) * -1.0, short)) * -1.0 + 1.0
    return x * 0.5 + (x.abs() * 0.5) * erf


def gelu_tanh(x: Value, short: bool) -> Value:
    """x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): GELU by its tanh."""
    if short:
        return gelu(x, short)  # they differ by less than 5e-4
    u = x * (2 * sqrt(2 / 3.141592653589793)) * ((x * x) * 0.044715 + 1.0)
    small = exp(u.abs() * -1.0, short)
    ratio = (small + 1.0).reciprocal()
    return x * (u.compare_float("<", 0.0)).select(small * ratio, ratio)


def relu(x: Value, short: bool) -> Value:
    return x.maximum(0.0)


def silu(x: Value, short: bool) -> Value:
    small = exp(x.abs() * -1.0, short)
    ratio = (small + 1.0).reciprocal()
    return x * (x.compare_float("<", 0.0)).select(small * ratio, ratio)


def identity(x: Value, short: bool) -> Value:
    return x


ACTIVATIONS = {"none": identity, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu, "silu": silu}


def bytes_of(y: Value, low: float, high: float) -> Value:
    """``[lanes]`` float32 -> int32 whose low byte is y, rounded to even and clipped to [low, high]."""
    inside = y.maximum(low).minimum(high)
    return (inside + ROUND).bitcast(I32 * y.type.lanes)


def joined(parts: list[Value]) -> Value:
    """Vectors of one length, a power of two of them, one after the other."""
    while len(parts) > 1:
        parts = [a.join(b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def low_bytes(four: list[Value]) -> Value:
    """The low bytes of four int32 vectors -> one vector, byte ``i`` of a lane from vector ``i``."""
    quad = four[0] & 0xFF
    for i in range(1, 4):
        quad = quad | ((four[i] & 0xFF) << (8 * i))
    return quad


def quad_of(isa: Isa, four: list[Value], low: float = 0.0, high: float = 255.0) -> Value:
    """Four float32 vectors, rounded to even and clipped to [low, high] -> int8x4: byte ``i`` of a lane from vector ``i``."""
    if not isa.packs:
        return low_bytes([bytes_of(y, low, high) for y in four])
    inside = [y.maximum(low) for y in four] if low else four
    mixed = isa.narrow(inside, signed=low < 0)
    order = [16 * lane + 4 * i + j for lane in range(4) for j in range(4) for i in range(4)]
    return mixed.shuffle(mixed, order).bitcast(I32 * 16)


def quads_of(isa: Isa, columns: list[Value]) -> list[Value]:
    """Four rows of ``block`` bytes -> int8x4 vectors of ``lanes`` tokens, byte ``i`` of a lane from row ``i``."""
    block = columns[0].type.lanes
    if block == 4 * isa.lanes and isa.lanes == 16:
        low = [16 * lane + i + 64 * side for lane in range(4) for i in range(8) for side in (0, 1)]
        high = [index + 8 for index in low]
        pairs = [columns[0].shuffle(columns[1], order) for order in (low, high)]
        others = [columns[2].shuffle(columns[3], order) for order in (low, high)]
        halves = [(a.bitcast(I16 * 32), b.bitcast(I16 * 32)) for a, b in zip(pairs, others, strict=True)]
        low = [8 * lane + i + 32 * side for lane in range(4) for i in range(4) for side in (0, 1)]
        high = [index + 4 for index in low]
        return [a.shuffle(b, order).bitcast(I32 * 16) for a, b in halves for order in (low, high)]
    both = joined(columns)
    order = [[block * row + t for t in range(j, j + isa.lanes) for row in range(4)] for j in range(0, block, isa.lanes)]
    return [both.shuffle(both, part).bitcast(I32 * isa.lanes) for part in order]


def row_of(isa: Isa, row: list[Value]) -> Value:
    """Float32 vectors of one row, rounded to even and clipped to [0, 255] -> its bytes, in the order of rows."""
    if isa.packs and len(row) == 4:
        return isa.narrow(row, signed=False)
    return joined([bytes_of(y, 0.0, 255.0).truncate(I8) for y in row])


def ordered(isa: Isa, row: Value) -> Value:
    """A row of bytes in its natural order -> in the order of rows."""
    if row.type.lanes == 64 and isa.lanes == 16:
        words = row.bitcast(I32 * 16)
        return words.shuffle(words, [4 * j + lane for lane in range(4) for j in range(4)]).bitcast(I8 * 64)
    return row


def outer(isa: Isa, sums: list[list[Variable]], vectors: list[Value], numbers: list[Value]) -> None:
    """sums[i][v] += vectors[v] * numbers[i]: of float32, or of four bytes a 32-bit lane."""
    integers = not vectors[0].type.floating
    factors = [isa.prepare(vector) for vector in vectors] if integers else []
    for variables, number in zip(sums, numbers, strict=True):
        weight = isa.weight(number) if integers else []
        for v, total in enumerate(variables):
            if integers:
                total.set(isa.dot(total.get(), factors[v], weight))
            else:
                total.set(vectors[v].fma(number, total.get()))


def transpose(rows: list[Value]) -> list[Value]:
    """n vectors of n lanes -> the n columns; n a power of two."""
    count, step = len(rows), 1
    while step < count:
        low = [lane if not lane & step else lane - step + count for lane in range(count)]
        high = [lane + step if not lane & step else lane + count for lane in range(count)]
        mixed = list(rows)
        for index in range(count):
            if not index & step:
                mixed[index] = rows[index].shuffle(rows[index + step], low)
                mixed[index + step] = rows[index].shuffle(rows[index + step], high)
        rows, step = mixed, 2 * step
    return rows
