"""The IR builder against numpy: every operation is written, compiled and run."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness import HERE, Array, Written, run

from prunus.runtime.ir_builder import F32, I8, I16, I32, I64, Kernel, Type, Value, Variable
from prunus.runtime.isa import ISAS
from prunus.runtime.jit import compile_kernels

TYPES: dict[str, tuple[Type, type]] = {
    "i8": (I8, np.int8),
    "i16": (I16, np.int16),
    "i32": (I32, np.int32),
    "i64": (I64, np.int64),
    "f32": (F32, np.float32),
}
INTEGERS = ("i8", "i16", "i32", "i64")
LANES = (1, 4, 16)
ODD = np.array([0, -0.0, 1, -1, 2.5, -2.5, 1e30, -1e30, 1e-40, np.inf, -np.inf, np.nan, 3, 7, -7, 0.1], np.float32)


def numbers(name: str, seed: int = 0, count: int = 64) -> Array:
    """Random numbers of a type, its extremes among them."""
    draw = np.random.default_rng(seed)
    if name == "f32":
        return (draw.standard_normal(count) * 100).astype(np.float32)
    kind = np.iinfo(TYPES[name][1])
    whole = draw.integers(kind.min, kind.max, count, TYPES[name][1], endpoint=True)
    whole[:4] = np.roll([kind.min, kind.max, -1, 0], seed)
    return whole


def lane_by_lane(
    write: Callable[..., Value], a: Array, b: Array, type_: Type, out: type, isa: str = "generic", lanes: int = 16
) -> Array:
    """``write(x, y)`` for vectors of the numbers of two arrays."""
    result = np.zeros(8 * len(a) // np.dtype(out).itemsize, out)

    def body(k: Kernel, left: Value, right: Value, to: Value) -> None:
        for i in range(0, len(a), lanes):
            x, y = ((at + i * at_type.bytes).load(at_type * lanes) for at, at_type in ((left, type_), (right, type_)))
            value = write(x, y)
            (to + i * value.type.bytes // lanes).store(value)

    run(isa, body, a, b, result)
    return result[: len(a)]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("sign", ["+", "-", "*", "&", "|"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_wrap_like_numpy(name: str, sign: str, lanes: int) -> None:
    operation: Callable[[Any, Any], Any] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "&": lambda x, y: x & y,
        "|": lambda x, y: x | y,
    }[sign]
    type_, dtype = TYPES[name]
    a, b = numbers(name), numbers(name, 1)
    assert (lane_by_lane(operation, a, b, type_, dtype, lanes=lanes) == operation(a, b)).all()


@pytest.mark.parametrize("sign", ["+", "-", "*", "/"])
def test_floats_round_like_numpy(sign: str) -> None:
    operation: Callable[[Any, Any], Any] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: x / y,
    }[sign]
    a, b = np.repeat(ODD, 16), np.tile(ODD, 16)
    with np.errstate(all="ignore"):
        expected = operation(a, b)
    assert lane_by_lane(operation, a, b, F32, np.float32).tobytes() == expected.tobytes() or np.array_equal(
        lane_by_lane(operation, a, b, F32, np.float32), expected, equal_nan=True
    )


@pytest.mark.parametrize("shift", [0, 1, 3, 7])
@pytest.mark.parametrize("name", INTEGERS)
def test_shifts_and_unsigned_division(name: str, shift: int) -> None:
    type_, dtype = TYPES[name]
    a, unsigned = numbers(name), np.dtype(dtype).str.replace("i", "u")
    whole = a.view(unsigned)
    assert (lane_by_lane(lambda x, y: x << shift, a, a, type_, dtype) == (whole << shift).view(dtype)).all()
    assert (lane_by_lane(lambda x, y: x.shift_right_signed(shift), a, a, type_, dtype) == a >> shift).all()
    assert (
        lane_by_lane(lambda x, y: x.shift_right_unsigned(shift), a, a, type_, dtype) == (whole >> shift).view(dtype)
    ).all()
    divided = lane_by_lane(lambda x, y: x.divide_unsigned(shift + 2), a, a, type_, dtype)
    assert (divided == (whole // (shift + 2)).view(dtype)).all()


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("name", TYPES)
def test_compare_and_select(name: str, sign: str) -> None:
    type_, dtype = TYPES[name]
    a, b = (np.repeat(ODD, 16), np.tile(ODD, 16)) if name == "f32" else (numbers(name), numbers(name, 1))
    b[::5] = a[::5]
    compared: Array = {
        "<": np.less,
        "<=": np.less_equal,
        ">": np.greater,
        ">=": np.greater_equal,
        "==": np.equal,
        "!=": np.not_equal,
    }[sign](a, b)
    if name == "f32":
        compared &= ~(np.isnan(a) | np.isnan(b))  # NaN is false, for != too
    compare = Value.compare_float if name == "f32" else Value.compare_signed
    got = lane_by_lane(lambda x, y: compare(x, sign, y).select(x, y), a, b, type_, dtype)
    assert np.array_equal(got, np.where(compared, a, b), equal_nan=name == "f32")
    got = lane_by_lane(lambda x, y: compare(x, sign, y).select(x, 9), a, b, type_, dtype)
    assert np.array_equal(got, np.where(compared, a, 9), equal_nan=name == "f32")


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        (1.0, 2.0, 1.0, 2.0),
        (-np.inf, 5.0, -np.inf, 5.0),
        (np.inf, 5.0, 5.0, np.inf),
        (np.nan, 3.0, 3.0, 3.0),
        (3.0, np.nan, np.nan, np.nan),
    ],
)
def test_of_nan_minimum_and_maximum_give_their_argument(isa: str, a: float, b: float, low: float, high: float) -> None:
    first, second = np.full(16, a, np.float32), np.full(16, b, np.float32)
    smaller = lane_by_lane(lambda x, y: x.minimum(y), first, second, F32, np.float32, isa)
    larger = lane_by_lane(lambda x, y: x.maximum(y), first, second, F32, np.float32, isa)
    assert np.array_equal(smaller, np.full(16, low, np.float32), equal_nan=True)
    assert np.array_equal(larger, np.full(16, high, np.float32), equal_nan=True)


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("name", INTEGERS)
def test_compare_unsigned(name: str, sign: str) -> None:
    type_, dtype = TYPES[name]
    a, b = numbers(name), numbers(name, 1)
    b[::5] = a[::5]
    first, second = (x.view(np.dtype(dtype).str.replace("i", "u")) for x in (a, b))
    operations = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
    compared = {**operations, "==": np.equal, "!=": np.not_equal}[sign](first, second)
    got = lane_by_lane(lambda x, y: x.compare_unsigned(sign, y).select(x, y), a, b, type_, dtype)
    assert (got == np.where(compared, a, b)).all()


def test_minimum_and_maximum_of_signed_integers() -> None:
    a, b = numbers("i8"), numbers("i8", 1)
    assert (lane_by_lane(lambda x, y: x.minimum_signed(y), a, b, I8, np.int8) == np.minimum(a, b)).all()
    assert (lane_by_lane(lambda x, y: x.maximum_signed(-3), a, b, I8, np.int8) == np.maximum(a, -3)).all()


@pytest.mark.parametrize("name", TYPES)
def test_numbers_of_python_and_single_lanes_spread_over_a_vector(name: str) -> None:
    type_, dtype = TYPES[name]
    a, b = numbers(name), numbers(name, 1)
    first = a.reshape(-1, 16)[:, :1].repeat(16, 1).ravel()
    assert (lane_by_lane(lambda x, y: x + 3, a, b, type_, dtype) == a + dtype(3)).all()
    assert (lane_by_lane(lambda x, y: x.lane(0) * y, a, b, type_, dtype) == first * b).all()
    assert (lane_by_lane(lambda x, y: y - x.lane(0), a, b, type_, dtype) == b - first).all()
    assert (lane_by_lane(lambda x, y: x.lane(0).splat(16), a, b, type_, dtype) == first).all()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("name", TYPES)
def test_shuffles(name: str, isa: str) -> None:
    type_, dtype = TYPES[name]
    a, b = numbers(name, count=16), numbers(name, 1, 16)
    both = np.concatenate([a, b])
    order = np.random.default_rng(2).integers(0, 32, 16).tolist()
    assert (lane_by_lane(lambda x, y: x.shuffle(y, order), a, b, type_, dtype, isa) == both[order]).all()
    parts = lane_by_lane(lambda x, y: x.part(3, 8).join(y.part(8, 8)), a, b, type_, dtype, isa)
    assert (parts == np.concatenate([a[3:11], b[8:]])).all()


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("signed", [True, False])
def test_conversions(source: str, target: str, signed: bool) -> None:
    (from_type, from_dtype), (to_type, to_dtype) = TYPES[source], TYPES[target]
    a = numbers(source)
    if source == "f32":
        a = np.clip(a, -127, 127) if signed else np.clip(np.abs(a), 0, 127)  # what fits is defined
    read = a if signed or source == "f32" else a.view(np.dtype(from_dtype).str.replace("i", "u"))
    narrower = source != "f32" and target != "f32" and to_type.bits < from_type.bits

    def convert(x: Value, y: Value) -> Value:
        if narrower:
            return x.truncate(to_type)
        return x.convert_signed(to_type) if signed else x.convert_unsigned(to_type)

    got = lane_by_lane(convert, a, a, from_type, to_dtype)
    assert (got == (a if source == target else read.astype(to_dtype))).all()


def test_bits_as_another_type() -> None:
    a = np.concatenate([ODD] * 4)
    for type_, dtype in ((I32 * 16, np.int32), (I8 * 64, np.int8), (I64 * 8, np.int64)):
        seen = a.view(dtype)[: len(a)]
        assert (lane_by_lane(lambda x, y, type_=type_: x.bitcast(type_), a, a, F32, dtype)[: len(seen)] == seen).all()


@pytest.mark.parametrize("isa", HERE)
def test_functions_of_floats(isa: str) -> None:
    a, b = numbers("f32"), numbers("f32", 1)
    exact = a.astype(np.float64)
    fma = lane_by_lane(lambda x, y: x.fma(y, 0.5), a, b, F32, np.float32, isa)
    bound = 2.0**-23 * (np.abs(exact * b) + 0.5)  # two roundings at most
    assert (np.abs(fma - (exact * b + 0.5)) <= bound).all()
    assert (lane_by_lane(lambda x, y: x.reciprocal(), a, b, F32, np.float32, isa) == np.float32(1) / a).all()
    assert (lane_by_lane(lambda x, y: x.abs(), a, b, F32, np.float32, isa) == np.abs(a)).all()
    assert (lane_by_lane(lambda x, y: x.abs().sqrt(), a, b, F32, np.float32, isa) == np.sqrt(np.abs(a))).all()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", TYPES)
def test_loads_and_stores_at_odd_addresses(name: str, lanes: int, isa: str) -> None:
    type_ = TYPES[name][0] * lanes
    offsets = (0, 1, 3, 7, 63)
    source = np.random.default_rng(0).integers(0, 256, 512, np.uint8)
    target = np.zeros((len(offsets), 512), np.uint8)

    def body(k: Kernel, x: Value, y: Value) -> None:
        for row, offset in enumerate(offsets):
            (y + (512 * row + 2 * offset + 1)).store((x + offset).load(type_))

    run(isa, body, source, target)
    expected = np.zeros_like(target)
    for row, offset in enumerate(offsets):
        expected[row, 2 * offset + 1 :][: type_.bytes] = source[offset:][: type_.bytes]
    assert (target == expected).all()


@pytest.mark.parametrize(
    ("begin", "end", "step"), [(0, 10, 1), (0, 0, 1), (5, 5, 1), (9, 3, 1), (0, 10, 4), (-7, 7, 3), (0, 1, 100)]
)
def test_loops(begin: int, end: int, step: int) -> None:
    seen = np.zeros(4, np.int64)

    def body(k: Kernel, first: Value, last: Value, out: Value) -> None:
        total, rounds, inner = (k.variable(I64) for _ in range(3))
        with k.loop(first, last, step) as i:
            total.add(i)
            rounds.add(k.constant(I64, 1))
            with k.loop(0, i) as j:
                inner.add(j + 1)
        for place, cell in enumerate((total, rounds, inner)):
            (out + 8 * place).store(cell.get())

    run("generic", body, begin, end, seen)
    rounds = range(begin, end, step)
    expected = [sum(rounds), len(rounds), sum(i * (i + 1) // 2 for i in rounds if i > 0)]
    assert seen[:3].tolist() == expected


def test_a_loop_of_python_unrolls_and_one_of_the_language_does_not() -> None:
    with Kernel("f", ("x",)) as unrolled:
        for i in range(50):
            (unrolled.x + i * 4).store(unrolled.constant(I32, 1))
    with Kernel("f", ("x",)) as looped, looped.loop(0, 50) as at:
        (looped.x + at * 4).store(looped.constant(I32, 1))
    assert [k.text().count("store i32") for k in (unrolled, looped)] == [50, 1]


def test_cells_in_a_loop_start_anew_each_time_and_keep_their_type() -> None:
    out = np.zeros((6, 16), np.float32)

    def body(k: Kernel, y: Value) -> None:
        with k.loop(0, 6) as i:
            cells = k.variables(2, F32 * 16, 0.5)
            with k.loop(0, i) as j:
                cells[0].add(j.convert_signed(F32).splat(16))
            cells[1].set(cells[0].get() * 2.0)
            (y + i * 64).store(cells[1].get())

    run("generic", body, out)
    assert (out == 2 * (0.5 + np.array([sum(range(i)) for i in range(6)]))[:, None]).all()


def test_branches() -> None:
    x, out = np.arange(-4, 4, dtype=np.int32), np.zeros((3, 8), np.int32)

    def body(k: Kernel, source: Value, y: Value) -> None:
        with k.loop(0, 8) as i:
            value = (source + i * 4).load(I32)
            with k.if_(value.compare_signed(">", 1)):
                (y + i * 4).store(value * 10)
            both = k.variable(I32)
            with k.if_else(value.compare_signed("<", 0)) as (yes, no):
                with yes:
                    both.set(value * -1)
                with no:
                    both.set(value + 100)
            (y + 32 + i * 4).store(both.get())

    run("generic", body, x, out)
    assert out[0].tolist() == [0, 0, 0, 0, 0, 0, 20, 30]
    assert out[1].tolist() == [4, 3, 2, 1, 100, 101, 102, 103]


def test_a_stack_is_aligned_and_ones_own() -> None:
    out = np.zeros(4, np.int64)

    def body(k: Kernel, y: Value) -> None:
        first, second = k.stack(100), k.stack(8)
        with k.loop(0, 25) as i:
            (first + i * 4).store(k.constant(I32, -1))
        second.store(k.constant(I64, 5))
        (first + 96).store(k.constant(I32, 7))
        for place, value in enumerate((first, second, second.load(I64), (first + 92).load(I64))):
            (y + place * 8).store(value)

    run("generic", body, out)
    assert out[0] % 64 == 0
    assert out[1] % 64 == 0
    assert out[2:].tolist() == [5, 0x7FFFFFFFF]


def test_a_kernel_calls_another() -> None:
    def double() -> Kernel:
        with Kernel("double", ("x",)) as k:
            k.x.store(k.x.load(I64) * 2)
        return k

    def twice() -> Kernel:
        with Kernel("twice", ("what", "x")) as k, k.loop(0, 2) as _:
            k.invoke(k.what, k.x)
        return k

    inner, outer, number = Written("double", double), Written("twice", twice), np.array([11])
    code = compile_kernels(ISAS["generic"], [inner, outer], keep=False)
    code.function(outer, 2)(code.addresses[inner], number.ctypes.data)
    assert number[0] == 44


def test_asking_for_an_address_that_is_none_does_nothing() -> None:
    out = np.zeros(1, np.int64)

    def body(k: Kernel, y: Value) -> None:
        for address in (0, 1, -1, 2**62):
            k.constant(I64, address).prefetch()
        y.store(k.constant(I64, 3))

    run("generic", body, out)
    assert out[0] == 3


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_meet_at_a_counter(threads: int) -> None:
    # Each thread writes its own number, meets the others, and reads all of theirs, many times over.
    def meeting() -> Kernel:
        with Kernel("meeting", ("own", "count", "numbers", "counter", "rest", "wrong")) as k:
            met = k.variable(I64)

            def meet() -> None:
                met.add(k.count)
                k.arrive(k.counter)
                k.wait(k.counter, met.get(), 50, k.rest)

            with k.loop(0, 40) as step:
                (k.numbers + k.own * 64).store(step)
                meet()
                with (
                    k.loop(0, k.count) as other,
                    k.if_((k.numbers + other * 64).load(I64).compare_signed("!=", step)),
                ):
                    (k.wrong + k.own * 64).store(step + 1)
                meet()
        return k

    def idle() -> Kernel:
        with Kernel("idle", ()) as k:
            pass
        return k

    kernels = [Written("meeting", meeting), Written("idle", idle)]
    code = compile_kernels(ISAS["generic"], kernels, keep=False)
    shared, wrong, counter = (np.zeros((threads, 8), np.int64) for _ in range(3))
    arguments = shared.ctypes.data, counter.ctypes.data, code.addresses[kernels[1]], wrong.ctypes.data
    work = [
        threading.Thread(target=code.function(kernels[0], 6), args=(i, threads, *arguments)) for i in range(threads)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert counter[0, 0] == 2 * 40 * threads
    assert not wrong.any()


TYPE_ERRORS: list[Callable[[Kernel, Value, Value], object]] = [
    lambda k, i, f: i + f,
    lambda k, i, f: f * i,
    lambda k, i, f: i.splat(4) + i.splat(8),
    lambda k, i, f: i + k.constant(I64, 1),
    lambda k, i, f: i + "1",  # type: ignore[operator]
    lambda k, i, f: i + True,
    lambda k, i, f: i + 1.5,
    lambda k, i, f: f & 1,
    lambda k, i, f: f | 1,
    lambda k, i, f: f << 1,
    lambda k, i, f: f.shift_right_signed(1),
    lambda k, i, f: f.shift_right_unsigned(1),
    lambda k, i, f: i / 2,
    lambda k, i, f: f.divide_unsigned(2),
    lambda k, i, f: i.compare_signed("<", f),
    lambda k, i, f: f.compare_signed("<", 0),
    lambda k, i, f: f.compare_unsigned("<", 0),
    lambda k, i, f: i.compare_float("<", 0),
    lambda k, i, f: i.compare_signed("<", 0).select(i, f),
    lambda k, i, f: i.select(f, f),
    lambda k, i, f: i.splat(4).compare_signed("<", 0).select(f.splat(8), 0.0),
    lambda k, i, f: i.compare_signed("<", 0).select(1, f),  # type: ignore[arg-type]
    lambda k, i, f: i.minimum(f),
    lambda k, i, f: i.minimum(1),
    lambda k, i, f: f.maximum_signed(1.0),
    lambda k, i, f: f.fma(i, 0.0),
    lambda k, i, f: i.fma(1, 1),
    lambda k, i, f: i.sqrt(),
    lambda k, i, f: i.abs(),
    lambda k, i, f: i.reciprocal(),
    lambda k, i, f: i.truncate(I32),
    lambda k, i, f: i.truncate(I64),
    lambda k, i, f: f.truncate(I8),
    lambda k, i, f: i.convert_signed(I8),
    lambda k, i, f: i.bitcast(I64),
    lambda k, i, f: i.splat(4).splat(4),
    lambda k, i, f: i.splat(0),
    lambda k, i, f: i.splat(4).shuffle(f.splat(4), [0, 1]),
    lambda k, i, f: i.shuffle(i, [0, 1]),
    lambda k, i, f: i.splat(4).join(i.splat(8)),
    lambda k, i, f: Variable(i).set(f),
    lambda k, i, f: Variable(i).set(1),  # type: ignore[arg-type]
    lambda k, i, f: Variable(i).set(i.splat(4)),
    lambda k, i, f: Variable(f).add(i),
    lambda k, i, f: i.load(I32),  # an address has 64 bits
    lambda k, i, f: i.store(f),
    lambda k, i, f: i.prefetch(),
    lambda k, i, f: k.constant(I64, 0).load(F32 * 4 * 2),
    lambda k, i, f: k.constant(I64, 0).load("F32"),  # type: ignore[arg-type]
    lambda k, i, f: k.constant(I64, 0).store(1.0),  # type: ignore[arg-type]
    lambda k, i, f: k.loop(0, i).__enter__(),
    lambda k, i, f: k.loop(0, 1.5).__enter__(),  # type: ignore[arg-type]
    lambda k, i, f: k.if_(i).__enter__(),
    lambda k, i, f: k.if_(True).__enter__(),  # type: ignore[arg-type]
    lambda k, i, f: k.if_else(f).__enter__(),
    lambda k, i, f: k.call("llvm.sqrt.f32", F32, 2.0),  # type: ignore[arg-type]
    lambda k, i, f: (f.sqrt(), k.call("llvm.sqrt.f32", I32, i)),
    lambda k, i, f: k.invoke(i),
    lambda k, i, f: k.invoke(k.constant(I64, 0), i),
    lambda k, i, f: k.arrive(i),
    lambda k, i, f: k.wait(k.constant(I64, 0), i, 1, k.constant(I64, 0)),
    lambda k, i, f: k.constant(I32, 0.5),
    lambda k, i, f: k.constants(I32, [1, 2.5]),
]
VALUE_ERRORS: list[Callable[[Kernel, Value, Value], object]] = [
    lambda k, i, f: k.constant(I8, 256),
    lambda k, i, f: k.constant(I8, -129),
    lambda k, i, f: k.constants(I8, [1, 300]),
    lambda k, i, f: i + 2**32,
    lambda k, i, f: i.compare_signed("=<", 0),
    lambda k, i, f: i.splat(4).shuffle(i.splat(4), [0, 8]),
    lambda k, i, f: i.splat(4).shuffle(i.splat(4), [0, -1]),
    lambda k, i, f: i.splat(4).part(2, 3),
    lambda k, i, f: i.splat(4).part(-1, 2),
    lambda k, i, f: i.splat(4).lane(4),
    lambda k, i, f: i.lane(0),
    lambda k, i, f: k.stack(0),
    lambda k, i, f: k.loop(0, 8, 0).__enter__(),
    lambda k, i, f: k.loop(0, 8, -1).__enter__(),
    lambda k, i, f: i + Kernel("g", ()).constant(I32, 1),
    lambda k, i, f: Variable(i).set(Kernel("g", ()).constant(I32, 1)),
    lambda k, i, f: k.constant(I64, 0).store(Kernel("g", ()).constant(I32, 1)),
    lambda k, i, f: k.loop(0, Kernel("g", ("n",)).n).__enter__(),
]


@pytest.mark.parametrize(
    ("error", "write"), [(TypeError, write) for write in TYPE_ERRORS] + [(ValueError, write) for write in VALUE_ERRORS]
)
def test_what_does_not_fit_is_an_error_when_it_is_written(
    error: type[Exception], write: Callable[[Kernel, Value, Value], object]
) -> None:
    k = Kernel("f", ())
    i, f = k.constant(I32, 3), k.constant(F32, 3.0)
    with pytest.raises(error):
        write(k, i, f)


def test_an_error_names_both_types() -> None:
    k = Kernel("f", ())
    with pytest.raises(TypeError, match="one type, got v4i32 and v4f32"):
        k.constant(I32 * 4, 1) + k.constant(F32, 1.0)
    with pytest.raises(ValueError, match="of the kernel 'g' is used in 'f'"):
        k.constant(I32, 1) + Kernel("g", ()).constant(I32, 1)


def test_an_error_in_a_loop_or_a_branch_is_not_swallowed() -> None:
    k = Kernel("f", ())
    with pytest.raises(ZeroDivisionError), k.loop(0, 3):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), k.if_(k.constant(I32, 1).compare_signed("==", 1)):
        raise ZeroDivisionError


def test_an_argument_that_the_kernel_does_not_have_is_an_attribute_error() -> None:
    k = Kernel("f", ("x",))
    with pytest.raises(AttributeError, match="y"):
        k.y  # noqa: B018


@pytest.mark.parametrize(("type_", "suffix", "size"), [(I8, "i8", 1), (F32 * 16, "v16f32", 64), (I64 * 2, "v2i64", 16)])
def test_types(type_: Type, suffix: str, size: int) -> None:
    assert (type_.suffix, type_.bytes) == (suffix, size)
    assert type_.scalar * type_.lanes == type_
    assert len({type_, type_.scalar * type_.lanes}) == 1
    assert type_ != type_.scalar * (type_.lanes + 1)
