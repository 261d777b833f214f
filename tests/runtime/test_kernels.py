"""Kernels against exact integers and float64: linear layers, attention, layer normalization, reading in and out.

Bytes that a kernel stores are compared with the number before rounding: at most 0.5 apart, and what float32 adds to that.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import erf, sqrt

import integer
import numpy as np
import pytest
from harness import (
    DISTINCT,
    HERE,
    TILE,
    Array,
    call,
    from_int8x4,
    from_rows,
    from_tiles,
    quads,
    room,
    starts_of,
    to_int8x4,
    to_rows,
    to_tiles,
    unquads,
)

from prunus.runtime.isa import ISAS
from prunus.runtime.kernels.attention import AttentionSpec, scratch_bytes
from prunus.runtime.kernels.linear import EPILOGUES, LinearSpec
from prunus.runtime.kernels.norm import EmbedSpec, NormalizeSpec, QuantizeSpec, ReadSpec
from prunus.runtime.pack import FLOAT32_FORMATS, INT8_FORMATS, Packed, pack, unpack

WIDTHS = (64, 16, 48, 32)
OUTPUTS, INPUTS, TOKENS = 12, 22, sum(WIDTHS)
ROW = TOKENS + 80
CASES = [
    (isa, weight_format, epilogue)
    for kinds, precision in ((INT8_FORMATS, "int8"), (FLOAT32_FORMATS, "float32"))
    for weight_format in kinds
    for epilogue in EPILOGUES[precision]
    for isa in (HERE if kinds is INT8_FORMATS and epilogue in ("store", "values") else DISTINCT)
]
LIMITS = {"queries": (0, 255), "keys": (-128, 127), "values": (-128, 127)}
"""Of what training stores: signed activations use all 256 numbers."""
TIE = 0.5 + 2e-3


def layer_of(
    weight_format: str, seed: int = 0, density: float = 0.4, plain: bool = False, signed: bool = False
) -> Packed:
    draw = np.random.default_rng(seed)
    weight = (draw.standard_normal((OUTPUTS, INPUTS)) * (draw.random((OUTPUTS, INPUTS)) < density)).astype(np.float32)
    weight[5] = 0
    gain = np.full(OUTPUTS, 20, np.float32) if signed else None
    layer = pack(weight_format, weight, draw.standard_normal(OUTPUTS).astype(np.float32), 0.02, 90.0, gain)
    ones, zeros = np.ones(OUTPUTS, np.float32), np.zeros(OUTPUTS, np.float32)
    return Packed(weight_format, layer.shape, layer.first, layer.records, ones, zeros) if plain else layer


def inputs_of(weight_format: str, isa: str, widths: Sequence[int], seed: int = 1) -> tuple[Array, Array]:
    """Inputs ``[inputs, tokens]``, extreme bytes among them, and their tiles as the kernel reads them."""
    draw = np.random.default_rng(seed)
    if weight_format in FLOAT32_FORMATS:
        x = draw.standard_normal((INPUTS, sum(widths))).astype(np.float32)
        return x, to_tiles(x, widths, np.nan)
    x = draw.integers(0, 256, (INPUTS, sum(widths))).astype(np.uint8)
    x[:, ::7] = 255
    x[:, 3::11] = 0
    return x, to_rows(isa, x, widths) if weight_format == "group_sparse_int8" else to_int8x4(x, widths)


def call_linear(
    isa: str,
    layer: Packed,
    epilogue: str,
    x: Array,
    widths: Sequence[int],
    activation: str = "none",
    tiles: tuple[int, int] | None = None,
    groups: tuple[int, int] = (0, OUTPUTS // 4),
    inverse: Array | None = None,
    zero: float = 0.0,
    y: Array | None = None,
) -> Array:
    """Calls the kernel; returns what it wrote, in a buffer that held ``y`` or 77 everywhere."""
    count = len(widths)
    shape, dtype = {
        "quantize_rows": ((count, OUTPUTS, TILE), np.uint8),
        "quantize_int8x4": ((count, OUTPUTS // 4, 4 * TILE), np.uint8),
        "queries": ((OUTPUTS // 4, ROW * 4), np.uint8),
        "keys": ((OUTPUTS // 4, ROW * 4), np.int8),
        "values": ((OUTPUTS, ROW), np.int8),
        "matrix": ((OUTPUTS, ROW), np.float32),
    }.get(epilogue, ((count, OUTPUTS, TILE), np.float32))
    out = room(shape, dtype, 77)
    if y is not None:
        out[:] = y
    starts, wide = starts_of(widths), np.array(widths, np.int64)
    call(
        isa,
        LinearSpec(layer.weight_format, epilogue, activation),
        tiles or (0, count),
        groups,
        widths=wide,
        starts=starts,
        x=x,
        x_step=x[0].nbytes,
        first=layer.first,
        records=layer.records,
        scale=layer.scale,
        bias=layer.bias,
        y=out,
        y_step=out[0].nbytes,
        y_row=out[0].nbytes,
        inverse=np.ones(OUTPUTS, np.float32) if inverse is None else inverse,
        zero=np.array([zero], np.float32),
    )
    return out


def written(isa: str, epilogue: str, out: Array, widths: Sequence[int]) -> Array:
    """``[outputs, tokens]`` of what a kernel wrote."""
    tokens = sum(widths)
    if epilogue == "quantize_rows":
        return from_rows(isa, out, widths)
    if epilogue == "quantize_int8x4":
        return from_int8x4(out, widths)
    if epilogue in ("queries", "keys"):
        return unquads(out.reshape(len(out), ROW, 4)[:, :tokens])
    return out[:, :tokens] if epilogue in ("values", "matrix") else from_tiles(out, widths)


def sums_of(layer: Packed, x: Array) -> Array:
    exact = np.int64 if x.dtype == np.uint8 else np.float64
    return unpack(layer).astype(exact) @ x.astype(exact)


@pytest.mark.parametrize(("isa", "weight_format", "epilogue"), CASES)
def test_linear_kernels(isa: str, weight_format: str, epilogue: str) -> None:
    layer, floats = layer_of(weight_format, signed=epilogue in LIMITS), weight_format in FLOAT32_FORMATS
    inverse, zero = np.linspace(2, 20, OUTPUTS).astype(np.float32), 100.0
    for widths in ((16,), (32,), (48,), (64,), WIDTHS):
        x, tiles = inputs_of(weight_format, isa, widths)
        out = call_linear(isa, layer, epilogue, tiles, widths, inverse=inverse, zero=zero)
        got = written(isa, epilogue, out, widths)
        y = sums_of(layer, x) * layer.scale.astype(np.float64)[:, None] + layer.bias.astype(np.float64)[:, None]
        if epilogue in ("quantize_rows", "quantize_int8x4"):
            y = y * inverse[:, None] + zero
        if epilogue in ("add", "store", "matrix"):
            size = np.abs(unpack(layer)).astype(np.float64) @ np.abs(x.astype(np.float64)) * layer.scale[:, None]
            expected = y + 77 if epilogue == "add" else y
            assert (np.abs(got - expected) <= 1e-5 * (size + np.abs(expected) + 1)).all()
            assert floats or (np.abs(got - expected) <= 1e-6 * (np.abs(layer.bias[:, None]) + 100)).all()
        else:
            low, high = LIMITS.get(epilogue, (0, 255))
            assert (np.abs(got - np.clip(y, low, high)) <= TIE).all()
            assert got.min() < low + 5
            assert got.max() > high - 50
        # nothing else was written
        assert np.count_nonzero(out == 77) >= out.size - got.size


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("weight_format", INT8_FORMATS)
def test_sums_of_bytes_are_exact(weight_format: str, width: int, isa: str) -> None:
    for density in (0.0, 0.1, 0.5, 1.0):
        layer = layer_of(weight_format, seed=int(10 * density), density=density, plain=True)
        x, tiles = inputs_of(weight_format, isa, (width,))
        got = written(isa, "store", call_linear(isa, layer, "store", tiles, (width,)), (width,))
        assert (got == sums_of(layer, x)).all()
    extreme = pack(weight_format, np.full((OUTPUTS, INPUTS), -1, np.float32), np.zeros(OUTPUTS, np.float32))
    got = written(isa, "store", call_linear(isa, extreme, "store", tiles, (width,)), (width,))
    assert (got == np.float32(-127 * x.astype(np.int64).sum(0)) * extreme.scale[0]).all()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("weight_format", [*INT8_FORMATS, *FLOAT32_FORMATS])
def test_a_call_keeps_to_its_tiles_and_groups(weight_format: str, isa: str) -> None:
    layer = layer_of(weight_format)
    _, x = inputs_of(weight_format, isa, WIDTHS)
    whole = call_linear(isa, layer, "store", x, WIDTHS)
    part = call_linear(isa, layer, "store", x, WIDTHS, tiles=(1, 3), groups=(1, 2))
    for tile, width in enumerate(WIDTHS):
        inside = np.zeros((OUTPUTS, TILE), bool)
        inside[4:8, :width] = tile in (1, 2)
        assert (part[tile][inside] == whole[tile][inside]).all()
        assert (part[tile][~inside] == 77).all()
        assert (whole[tile][:, width:] == 77).all()
    assert (call_linear(isa, layer, "store", x, WIDTHS, tiles=(2, 2)) == 77).all()
    assert (call_linear(isa, layer, "store", x, WIDTHS, groups=(1, 1)) == 77).all()


@pytest.mark.parametrize("isa", DISTINCT)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
@pytest.mark.parametrize(
    ("weight_format", "epilogue"), [("dense_int8x4", "quantize_int8x4"), ("group_sparse_float32", "store")]
)
def test_activations_come_before_what_is_stored(weight_format: str, epilogue: str, activation: str, isa: str) -> None:
    layer = layer_of(weight_format)
    x, tiles = inputs_of(weight_format, isa, WIDTHS)
    inverse, zero = np.full(OUTPUTS, 30, np.float32), 20.0
    got = written(
        isa, epilogue, call_linear(isa, layer, epilogue, tiles, WIDTHS, activation, None, (0, 3), inverse, zero), WIDTHS
    )
    y = sums_of(layer, x) * layer.scale.astype(np.float64)[:, None] + layer.bias.astype(np.float64)[:, None]
    y = {
        "gelu": lambda v: v * np.vectorize(lambda one: (1 + erf(one / sqrt(2))) / 2)(v),
        "gelu_tanh": lambda v: v * (1 + np.tanh(sqrt(2 / np.pi) * (v + 0.044715 * v**3))) / 2,
        "relu": lambda v: np.maximum(v, 0),
        "silu": lambda v: v / (1 + np.exp(-v)),
    }[activation](y)
    if epilogue == "store":
        assert (np.abs(got - y) <= 1e-5 * (np.abs(y) + 1)).all()
    else:
        # the short forms of int8: gelu within 5.8e-4, by its tanh within 5e-4 more, 30 bytes to a unit
        assert (np.abs(got - np.clip(y * 30 + zero, 0, 255)) <= TIE + 30 * 1.1e-3).all()


# attention

HEADS, SIZE = 2, 8
LENGTHS: tuple[tuple[int, ...], ...] = (
    *((length,) for length in (1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 200)),
    (3, 1, 2),
    (1,) * 20,
    (64, 64, 63, 1),
    (17, 63, 5, 200, 1, 64, 2, 65, 16, 15, 127, 4),
)


def tiles_of(lengths: Sequence[int], first: int = 64) -> tuple[Array, Array, Array, Array]:
    """Widths, starts, spans and segments of packed sequences: tiles of 64, the first and the last may be narrower."""
    tokens = -(-sum(lengths) // 16) * 16
    edges = [0, *range(min(first, tokens), tokens, TILE), tokens]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    spans, segments = [0], []
    for low, high in pairwise(edges):
        for begin, length in zip(begins, lengths, strict=False):
            query, end = max(low, begin), min(high, begin + length)
            if query < end:
                segments.append([begin, length, query, end - query])
        spans.append(len(segments))
    whole = [np.array(numbers, np.int64) for numbers in (np.diff(edges), edges[:-1], spans, segments)]
    return whole[0], whole[1], whole[2], whole[3]


def call_attention(
    isa: str, lengths: Sequence[int], q: Array, k: Array, v: Array, bias: Array | None, first: int, **more: Array
) -> Array:
    """q, k, v as the kernel reads them; ``more`` is scale and, for bytes, gain and zero. Returns ``[features, tokens]``."""
    widths, starts, spans, segments = tiles_of(lengths, first)
    integers = q.dtype == np.uint8
    rows, mixed, floats = (room((len(widths), HEADS * SIZE, TILE), np.uint8, 77) for _ in range(3))
    if integers:
        outputs: dict[str, Array | int] = {"rows": rows, "int8x4": mixed, "y_step": rows[0].nbytes}
    else:
        floats = room((len(widths), HEADS * SIZE, TILE), np.float32, 77)
        outputs = {"floats": floats, "y_step": floats[0].nbytes}
    biased: dict[str, Array | int] = {}
    if bias is not None:
        biased = {"bias": bias, "bias_row": bias[0].nbytes, "max_distance": (bias.shape[1] - 64) // 2}
    call(
        isa,
        AttentionSpec(integers, bias is not None),
        (0, len(widths)),
        (0, HEADS),
        widths=widths,
        starts=starts,
        spans=spans,
        segments=segments,
        q=q,
        k=k,
        v=v,
        row=q[0].nbytes,
        v_row=v[0].nbytes,
        size=SIZE,
        **more,
        **outputs,
        **biased,
    )
    assert scratch_bytes(max(lengths), SIZE) < 1 << 20
    tokens, wide = sum(lengths), [int(width) for width in widths]
    if not integers:
        return from_tiles(floats, wide)[:, :tokens]
    both = from_rows(isa, rows, wide), from_int8x4(mixed.reshape(len(widths), -1, 4 * TILE), wide)
    assert (both[0][:, :tokens] == both[1][:, :tokens]).all()
    return both[0][:, :tokens]


def table_of_distances(reach: int, draw: np.random.Generator) -> Array:
    """Room before and behind the table too: what is read there is thrown away."""
    bias = room((HEADS, 2 * reach + 64), np.float32, np.nan)
    bias[:] = draw.standard_normal(bias.shape)
    return bias


@pytest.mark.parametrize("isa", DISTINCT)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "-".join(map(str, lengths)))
def test_attention_in_float32(lengths: tuple[int, ...], biased: bool, isa: str) -> None:
    draw, tokens = np.random.default_rng(sum(lengths)), sum(lengths)
    q, k, v = (room((HEADS * SIZE, tokens + 80), np.float32, np.nan) for _ in range(3))
    for part in (q, k, v):
        part[:, :tokens] = draw.standard_normal((HEADS * SIZE, tokens)) * 1.5
    bias, scale = table_of_distances(210, draw) if biased else None, np.array([0.35, 0.9], np.float32)
    for first in (64, 16):
        got = call_attention(isa, lengths, q, k, v, bias, first, scale=scale)
        for begin, length in zip(starts_of(lengths), lengths, strict=True):
            own = slice(begin, begin + length)
            heads = [part[:, own].reshape(HEADS, SIZE, length).astype(np.float64) for part in (q, k, v)]
            scores = np.einsum("hfq,hfk->hqk", heads[0], heads[1]) * scale[:, None, None]
            if bias is not None:
                scores += bias[:, np.arange(length)[:, None] - np.arange(length) + 210]
            weights = np.exp(scores - scores.max(2, keepdims=True))
            exact = np.einsum("hqk,hfk->hfq", weights / weights.sum(2, keepdims=True), heads[2])
            assert np.abs(got[:, own] - exact.reshape(-1, length)).max() <= 5e-6 * np.abs(heads[2]).max()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "-".join(map(str, lengths)))
def test_attention_of_bytes(lengths: tuple[int, ...], biased: bool, isa: str) -> None:
    draw, tokens = np.random.default_rng(sum(lengths)), sum(lengths)
    signed = [np.clip(np.rint(draw.standard_normal((HEADS * SIZE, tokens)) * 50), -128, 127) for _ in range(3)]
    signed[0][:, ::9], signed[1][:, ::5] = 127, -127
    signed[0][:, 6::9], signed[1][:, 6::5], signed[2][:, 6::7] = -128, -128, -128
    garbage = draw.integers(0, 256, (HEADS * SIZE, tokens + 80))
    q, k = (room((HEADS * SIZE // 4, (tokens + 80) * 4), dtype, 99) for dtype in (np.uint8, np.int8))
    v = room((HEADS * SIZE, tokens + 80), np.int8, 99)
    for part, numbers, shift in ((q, signed[0], 128), (k, signed[1], 0)):
        whole = garbage.copy()
        whole[:, :tokens] = numbers + shift
        part[:] = quads(whole.astype(part.dtype)).reshape(part.shape)
    v[:, :tokens] = signed[2]
    bias = table_of_distances(210, draw) if biased else None
    scale, gain = np.array([2e-4, 7e-5], np.float32), np.linspace(0.5, 1.6, HEADS * SIZE).astype(np.float32)
    zero = np.array([110], np.float32)
    got = call_attention(isa, lengths, q, k, v, bias, 64, scale=scale, gain=gain, zero=zero)
    assert (call_attention(isa, lengths, q, k, v, bias, 16, scale=scale, gain=gain, zero=zero) == got).all()
    apart = 0
    for begin, length in zip(starts_of(lengths), lengths, strict=True):
        own = slice(begin, begin + length)
        heads = [part[:, own].reshape(HEADS, SIZE, length).transpose(0, 2, 1) for part in signed]
        table_ = None if bias is None else bias[:, np.arange(length)[:, None] - np.arange(length) + 210]
        expected = integer.attention(*heads, scale, gain.reshape(HEADS, SIZE), 110.0, table_)
        ours = got[:, own].reshape(HEADS, SIZE, length).transpose(0, 2, 1).astype(int)
        # Equal; one apart where the output before rounding, or a weight that it is the sum of, lies next to a tie.
        assert (np.abs(ours - expected) <= 1).all()
        apart += int((ours != expected).sum())
    assert apart <= (3e-4 if ISAS[isa].product != "plain" else 5e-3) * got.size  # no fused products there
    assert len(np.unique(got)) > min(20, tokens)


def test_weights_of_attention_add_up_to_one() -> None:
    # Equal values come back as they are, however many keys there are and however they are weighed.
    for length in (1, 3, 100, 255, 256, 300):
        q, k = (room((HEADS * SIZE // 4, (length + 80) * 4), dtype, 5) for dtype in (np.uint8, np.int8))
        v = room((HEADS * SIZE, length + 80), np.int8, 0)
        v[:, :length] = 93
        gain, zero = np.ones(HEADS * SIZE, np.float32), np.zeros(1, np.float32)
        got = call_attention(HERE[0], (length,), q, k, v, None, 64, scale=gain[:HEADS], gain=gain, zero=zero)
        assert (got == 93).all()


# one feature after the other

FEATURES = 32


@pytest.mark.parametrize("isa", DISTINCT)
@pytest.mark.parametrize(("rows", "mixed"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("plain", [False, True])
def test_normalize(rows: bool, mixed: bool, plain: bool, isa: str) -> None:
    draw = np.random.default_rng(0)
    x = (draw.standard_normal((FEATURES, TOKENS)) * 3 + 100 * draw.standard_normal(TOKENS)).astype(np.float32)
    x[:, 5] = 7.0  # all features equal: a variance of zero
    x[3, 9] = 3000.0  # one loud feature among those the center is taken from
    gamma, beta = draw.standard_normal((2, FEATURES)).astype(np.float32)
    inverse, zero = np.linspace(5, 40, FEATURES).astype(np.float32), np.array([120], np.float32)
    tiles = to_tiles(x, WIDTHS, 77)
    in_rows, in_quads = (room(tiles.shape, np.uint8, 77) for _ in range(2))
    call(
        isa,
        (QuantizeSpec if plain else NormalizeSpec)(rows, mixed),
        (0, len(WIDTHS)),
        (0, 1),
        widths=np.array(WIDTHS),
        x=tiles,
        x_step=tiles[0].nbytes,
        features=FEATURES,
        gamma=gamma,
        beta=beta,
        epsilon=np.array([1e-5], np.float32),
        rows=in_rows,
        int8x4=in_quads,
        y_step=FEATURES * TILE,
        inverse=inverse,
        zero=zero,
    )
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + np.float32(1e-5)) * gamma[:, None] + beta[:, None]
    got = from_tiles(tiles, WIDTHS)
    if plain:
        assert (got == x).all()
    else:
        assert np.abs(got - exact).max() <= 5e-4  # the mean of 100 and a spread of 3: float32 loses two digits
        assert np.linalg.norm(got - exact) <= 1e-5 * np.linalg.norm(exact)
    for tile, width in zip(tiles, WIDTHS, strict=True):
        assert (tile[:, width:] == 77).all()
    scaled = np.clip(got.astype(np.float64) * inverse[:, None] + zero, 0, 255)
    for wanted, out in ((rows, in_rows), (mixed, in_quads)):
        if not wanted:
            assert (out == 77).all()
            continue
        stored = (
            from_rows(isa, out, WIDTHS) if out is in_rows else from_int8x4(out.reshape(len(out), -1, 4 * TILE), WIDTHS)
        )
        assert (np.abs(stored - scaled) <= TIE).all()


@pytest.mark.parametrize("isa", DISTINCT)
def test_embed_and_read(isa: str) -> None:
    draw = np.random.default_rng(0)
    tables = [draw.standard_normal((count, FEATURES)).astype(np.float32) for count in (50, 20, 2)]
    ids = [draw.integers(0, len(rows), TOKENS) for rows in tables]
    laid = [to_tiles(one[None].astype(np.int32), WIDTHS)[:, 0] for one in ids]
    x = room((len(WIDTHS), FEATURES, TILE), np.float32, 77)
    widths = np.array(WIDTHS)
    named = dict(zip(("word", "position", "type"), tables, strict=True))
    named |= {
        name: np.ascontiguousarray(one)
        for name, one in zip(("word_ids", "position_ids", "type_ids"), laid, strict=True)
    }
    sizes: dict[str, Array | int] = {"widths": widths, "x": x, "x_step": x[0].nbytes, "features": FEATURES}
    call(isa, EmbedSpec(), (0, len(WIDTHS)), (0, 1), **sizes, **named)
    expected = sum(rows[one].astype(np.float64) for rows, one in zip(tables, ids, strict=True))
    assert np.abs(from_tiles(x, WIDTHS).T - expected).max() < 1e-6
    y = room((TOKENS, FEATURES), np.float32, 77)
    starts = starts_of(WIDTHS)
    call(isa, ReadSpec(), (1, 3), (0, 1), **sizes, starts=starts, y=y, y_row=FEATURES * 4)
    part = slice(starts[1], starts[3])
    assert (y[part] == from_tiles(x, WIDTHS).T[part]).all()
    assert (y[: starts[1]] == 77).all()
    assert (y[starts[3] :] == 77).all()
