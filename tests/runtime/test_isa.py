"""Every path of instructions that this processor has: exact byte products, functions of vectors, orders of bytes."""

from collections.abc import Callable
from math import erf, sqrt

import llvmlite.binding as llvm
import numpy as np
import pytest
from harness import HERE, Array, row_order, run

from prunus.errors import EngineError
from prunus.runtime import isa as isa_module
from prunus.runtime.ir_builder import F32, I8, I32, Kernel, Value
from prunus.runtime.isa import ISAS, available, choose
from prunus.runtime.kernels import maths

BYTES, WEIGHTS = (0, 1, 127, 128, 255), (-128, -127, -1, 0, 1, 126, 127)
BLOCKS = [(name, block) for name in HERE for block in ISAS[name].blocks]


def products(isa: str, a: Array, w: Array, start: Array, single: bool) -> Array:
    """``dot`` of many quads; with one weight for all lanes if ``single``."""
    path, out = ISAS[isa], np.zeros_like(start)

    def body(k: Kernel, x: Value, y: Value, sums: Value, to: Value) -> None:
        with k.loop(0, 4 * len(start), 4 * path.lanes) as at:
            lanes = I32 * path.lanes
            weight = path.weight((y + at).load(I32 if single else lanes))
            (to + at).store(path.dot((sums + at).load(lanes), path.prepare((x + at).load(lanes)), weight))

    run(isa, body, a, w, start, out)
    return out


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("single", [True, False])
def test_dot_is_exact_for_extreme_bytes(isa: str, single: bool) -> None:
    draw = np.random.default_rng(0)
    a = np.concatenate([np.full((16, 4), high) for high in BYTES] + [draw.choice(BYTES, (2000, 4))]).astype(np.uint8)
    a = np.concatenate([a, draw.integers(0, 256, (2000, 4), np.uint8)])
    a = a[: len(a) // 16 * 16]
    picked = []
    for low in WEIGHTS:
        w = np.concatenate([np.full((len(a) // 2, 4), low), draw.choice(WEIGHTS, (len(a) - len(a) // 2, 4))])
        w = w.astype(np.int8)
        start = draw.integers(-(2**31), 2**31, len(a)).astype(np.int32)
        used = w.reshape(-1, ISAS[isa].lanes, 4)[:, :1].repeat(ISAS[isa].lanes, 1).reshape(-1, 4) if single else w
        exact = start + (a.astype(np.int64) * used).sum(1)
        assert (products(isa, a, w, start, single) == exact.astype(np.int32)).all()
        picked.append(int((a.astype(np.int64) * used).sum(1).min()))
    assert min(picked) == 4 * 255 * -128  # where vpmaddubsw would stop at -32768 for two of them


@pytest.mark.parametrize("isa", HERE)
def test_the_environment_forces_a_path(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_ISA", isa)
    path = choose()
    assert path.name == isa
    a, w = np.full((16, 4), 255, np.uint8), np.full((16, 4), -128, np.int8)
    assert (products(path.name, a, w, np.zeros(16, np.int32), True) == 4 * 255 * -128).all()
    assert choose("generic").name == "generic"  # an argument goes before the environment


def test_without_a_wish_the_fastest_is_taken() -> None:
    assert choose().name == HERE[0]
    assert choose("").name == HERE[0]
    assert [name for name in ISAS if name in HERE] == HERE


@pytest.mark.parametrize("name", ["sse", "AVX2", "avx512-vnni", "vnni", " ", "0"])
def test_an_unknown_path_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="PRUNUS_ISA must be one of this processor's") as caught:
        choose(name)
    assert caught.value.problems[0].fix in HERE
    monkeypatch.setenv("PRUNUS_ISA", name)
    with pytest.raises(EngineError, match="PRUNUS_ISA"):
        choose()


@pytest.mark.parametrize(
    ("features", "machine", "expected"),
    [
        ((), "x86_64", ["generic"]),
        (("avx2", "fma", "bmi2", "f16c"), "AMD64", ["avx2", "generic"]),
        (("avx2", "fma", "bmi2"), "x86_64", ["generic"]),
        (("avx512vl", "avx512bw", "avx512dq"), "x86_64", ["avx512", "generic"]),
        (("avx512vl", "avx512bw", "avx512dq", "avx512vnni"), "x86_64", ["avx512_vnni", "avx512", "generic"]),
        (("avx2", "fma", "bmi2", "f16c"), "aarch64", ["generic"]),
    ],
)
def test_a_path_that_the_processor_does_not_have_is_an_error(
    features: tuple[str, ...], machine: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: dict.fromkeys(features, True))
    monkeypatch.setattr(isa_module.platform, "machine", lambda: machine)
    assert available() == expected
    assert choose().name == expected[0]
    for name in set(ISAS) - set(expected):
        with pytest.raises(EngineError, match=name):
            choose(name)


# functions of vectors


def apply(isa: str, function: Callable[[Value], Value], x: Array, out: type = np.float32) -> Array:
    path = ISAS[isa]
    padded = np.pad(x, (0, -len(x) % path.lanes)).astype(np.float32)
    y = np.zeros(len(padded), out)

    def body(k: Kernel, source: Value, to: Value) -> None:
        with k.loop(0, 4 * len(padded), 4 * path.lanes) as at:
            (to + at).store(function((source + at).load(F32 * path.lanes)))

    run(isa, body, padded, y)
    return y[: len(x)]


def phi(x: Array) -> Array:
    return np.array([(1 + erf(number / sqrt(2))) / 2 for number in x])


GRID = np.concatenate(
    [np.linspace(-12, 12, 4001), np.linspace(-4, 4, 2001), [0, -0.0, 1e-30, -1e-30, 3.6, -3.6]]
).astype(np.float32)
EXACT: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * phi(x),
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}
ROUNDING = 2.0**-22
# What kernels/maths.py states, and float32's rounding: absolute, and per |x|.
BOUNDS = {
    ("gelu", False): (1e-30, 0.5 * 1.5e-7 + ROUNDING),
    ("gelu", True): (5.8e-4, 0),
    ("gelu_tanh", False): (1e-30, 4 * ROUNDING),
    ("gelu_tanh", True): (5.8e-4 + 5e-4, 0),
    ("silu", False): (1e-30, 4 * ROUNDING),
    ("silu", True): (1e-30, 7.5e-5 + 4 * ROUNDING),
    ("relu", False): (0, 0),
    ("relu", True): (0, 0),
}


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(("name", "short"), BOUNDS)
def test_activations_are_as_exact_as_stated(name: str, short: bool, isa: str) -> None:
    got = apply(isa, lambda x: maths.ACTIVATIONS[name](x, short), GRID)
    absolute, relative = BOUNDS[name, short]
    exact = EXACT[name](GRID.astype(np.float64))
    assert (np.abs(got - exact) <= absolute + relative * np.abs(GRID)).all()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(("name", "short"), BOUNDS)
def test_activations_far_from_zero(name: str, short: bool, isa: str) -> None:
    x = np.array([20, 50, 87, 100, 1e3, 1e6], np.float32)
    above, below = (apply(isa, lambda v: maths.ACTIVATIONS[name](v, short), sign * x) for sign in (1, -1))
    bound = 1e-7 + 2 * ROUNDING * x * short  # the polynomial ends within a rounding of 1
    assert (np.abs(above - x) <= bound + 1e-6 * x).all()
    assert (np.abs(below) <= bound).all()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(("short", "bound"), [(True, 7.5e-5), (False, ROUNDING)])
def test_exp_is_as_exact_as_stated(short: bool, bound: float, isa: str) -> None:
    x = np.concatenate([np.linspace(-87, 0, 6001), np.linspace(-1, 0, 2001), -np.logspace(-30, 0, 301)])
    x = x.astype(np.float32)
    got = apply(isa, lambda v: maths.exp(v, short), x)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(got / exact - 1) <= bound + np.abs(x) * 2.0**-23).all()  # x / log(2) is rounded, then its power
    far = apply(isa, lambda v: maths.exp(v, short), np.array([-88, -100, -1e10, -1e30, -np.inf, np.nan]))
    assert ((far >= 0) & (far < 1.3e-38)).all()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (1.0, 255.0), (-127.0, 127.0)])
def test_bytes_are_rounded_to_even_and_clipped(low: float, high: float, isa: str) -> None:
    x = np.concatenate([np.arange(-300, 300.25, 0.25), [1e20, -1e20, np.inf, -np.inf, 0.4999999, 2.5000002]])
    got = apply(isa, lambda v: maths.bytes_of(v, low, high), x, np.int32)
    expected = np.rint(np.clip(x.astype(np.float32), low, high)).astype(np.int64)
    assert ((got & 0xFF) == (expected & 0xFF)).all()


# orders of bytes


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_transpose(count: int, isa: str) -> None:
    x = np.arange(count * count, dtype=np.int32).reshape(count, count)
    y = np.zeros_like(x)

    def body(k: Kernel, source: Value, to: Value) -> None:
        rows = [(source + 4 * count * row).load(I32 * count) for row in range(count)]
        for row, column in enumerate(maths.transpose(rows)):
            (to + 4 * count * row).store(column)

    run(isa, body, x, y)
    assert (y == x.T).all()


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_joined(count: int) -> None:
    x, y = np.arange(count * 4, dtype=np.int32), np.zeros(count * 4, np.int32)

    def body(k: Kernel, source: Value, to: Value) -> None:
        to.store(maths.joined([(source + 16 * part).load(I32 * 4) for part in range(count)]))

    run("generic", body, x, y)
    assert (x == y).all()


@pytest.mark.parametrize(("isa", "block"), BLOCKS)
def test_rows_in_natural_order_become_quads_whose_lanes_are_tokens(isa: str, block: int) -> None:
    path, rows = ISAS[isa], np.random.default_rng(0).integers(0, 256, (4, block), np.uint8)
    out = np.zeros((block, 4), np.uint8)

    def body(k: Kernel, source: Value, to: Value) -> None:
        columns = [maths.ordered(path, (source + block * row).load(I8 * block)) for row in range(4)]
        for v, quad in enumerate(maths.quads_of(path, columns)):
            (to + 4 * path.lanes * v).store(quad)

    run(isa, body, rows, out)
    assert (out == rows.T).all()


def numbers_to_round(block: int) -> Array:
    """Four rows: quarters, among them ties, and numbers far outside of a byte."""
    x = np.random.default_rng(0).integers(-800, 1600, (4, block)).astype(np.float32) / 4
    x[:, :4] = [
        [-1e6, 1e6, 0.49999997, 2.5],
        [254.5, 255.5, -0.5, 0.5],
        [-127.5, 127.5, 1.5, -1.5],
        [1e9, -1e9, 0, -0.0],
    ]
    return x


@pytest.mark.parametrize(("isa", "block"), BLOCKS)
def test_numbers_become_a_row_in_the_order_of_rows_and_quads(isa: str, block: int) -> None:
    path, numbers = ISAS[isa], numbers_to_round(block)
    rows, natural, back = np.zeros((4, block), np.uint8), np.zeros((4, block), np.uint8), np.zeros((block, 4), np.uint8)

    def body(k: Kernel, source: Value, row_to: Value, natural_to: Value, back_to: Value) -> None:
        made = []
        for row in range(4):
            base = source + 4 * block * row
            vectors = [(base + 4 * path.lanes * v).load(F32 * path.lanes) for v in range(path.vectors(block))]
            made.append(maths.row_of(path, vectors))
            (row_to + block * row).store(made[-1])
            plain = maths.joined([maths.bytes_of(y, 0.0, 255.0).truncate(I8) for y in vectors])
            (natural_to + block * row).store(maths.ordered(path, plain))
        for v, quad in enumerate(maths.quads_of(path, made)):
            (back_to + 4 * path.lanes * v).store(quad)

    run(isa, body, numbers, rows, natural, back)
    expected = np.rint(np.clip(numbers, 0, 255)).astype(np.uint8)
    assert (rows == expected[:, row_order(isa, block)]).all()
    assert (natural == rows).all()
    assert (back == expected.T).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (1.0, 255.0), (-127.0, 127.0)])
@pytest.mark.parametrize("isa", HERE)
def test_numbers_become_quads(isa: str, low: float, high: float) -> None:
    path, numbers = ISAS[isa], numbers_to_round(16)
    quads = np.zeros((16, 4), np.int8)

    def body(k: Kernel, source: Value, to: Value) -> None:
        for v in range(path.vectors(16)):
            at = 4 * path.lanes * v
            four = [(source + 64 * row + at).load(F32 * path.lanes) for row in range(4)]
            (to + at).store(maths.quad_of(path, four, low, high))

    run(isa, body, numbers, quads)
    assert (quads == np.rint(np.clip(numbers, low, high)).astype(np.int64).astype(np.int8).T).all()
