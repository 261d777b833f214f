"""Linear layers: y[o, t] = sum over i of w[o, i] x[i, t], for 64 tokens t at a time, and what is done to y at once.

    int8      sums = sum of w (int8) * x (uint8);  y = sums * scale[o] + bias[o]
              scale = s_w[o] s_x;  bias = b[o] - z_x scale[o] * sum of w[o]            (x = s_x (x_int - z_x), w = s_w w_int)

Vector lanes run over tokens, so a column of inputs is one contiguous load wherever its index points: zeros cost nothing to
skip. Weights come as one stream of records, four outputs (a *group*) at a time; ``first[g]`` is a group's first record. The
weight format says what a record is:

    group_sparse_int8       4 column indices (uint16), then 4 outputs x 4 columns (int8)                     24 bytes
    dense_int8x4            4 outputs x 4 consecutive columns (int8), column after column, none left out     16 bytes
    block_sparse_int8       one output alone: index of 4 consecutive columns (uint32), their weights (int8)   8 bytes
    group_sparse_float32    one column index (uint32), 4 outputs (float32)                                   20 bytes
    sparse_float32          one output alone: one column index (uint32), its weight (float32)                 8 bytes

``group_sparse_int8`` reads rows of bytes; the other int8 formats read bytes packed int8x4 (four features of a token in one
32-bit word); the float32 formats read floats.

The *epilogue* says what is done to y before it is stored, and where:

    add                x[o] += act(y)                               float tile: the residual
    store              x[o] = act(y)                                float tile
    quantize_rows      x[o] = byte of act(y) * inverse[o] + zero    tile of rows of bytes, for ``group_sparse_int8``
    quantize_int8x4    the same bytes packed int8x4                 for the other int8 formats
    queries            bytes of y, which has 128 added, packed int8x4, all tiles in one matrix
    keys               signed bytes of y, packed int8x4, all tiles in one matrix
    values             signed bytes of y in rows, all tiles in one matrix
    matrix             y as float32 in rows, all tiles in one matrix
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from prunus.grid import LARGEST_BYTE, signed_limits
from prunus.runtime.ir_builder import F32, I8, I16, I32, I64, Kernel, Type, Value, Variable
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.maths import ACTIVATIONS, bytes_of, joined, outer, quad_of, quads_of, row_of
from prunus.runtime.kernels.step import PARAMETERS, TILE, Arguments, DType, StepSpec, arguments_dtype, each_block

__all__ = ["EPILOGUES", "RECORD", "RECORDS", "LinearSpec"]

RECORDS: dict[str, DType] = {
    "group_sparse_int8": np.dtype([("columns", np.uint16, 4), ("weights", np.int8, (4, 4))]),
    "dense_int8x4": np.dtype([("weights", np.int8, (4, 4))]),
    "block_sparse_int8": np.dtype([("columns", np.uint32), ("weights", np.int8, 4)]),
    "group_sparse_float32": np.dtype([("columns", np.uint32), ("weights", np.float32, 4)]),
    "sparse_float32": np.dtype([("columns", np.uint32), ("weights", np.float32)]),
}
"""One record of each weight format."""
RECORD = {name: record.itemsize for name, record in RECORDS.items()}
"""Bytes of a record."""
FLOAT32_FORMATS = ("group_sparse_float32", "sparse_float32")
EPILOGUES = {
    "int8": ("add", "store", "quantize_rows", "quantize_int8x4", "queries", "keys", "values"),
    "float32": ("add", "store", "matrix"),
}
"""Epilogues of the weight formats of each precision."""
AHEAD = 3072
"""Bytes that records are asked for before they are used: weights that come from beyond the second cache arrive in time."""


@dataclass(frozen=True)
class LinearSpec(StepSpec):
    """A linear layer for tiles of tokens and groups of four outputs."""

    arguments = arguments_dtype(
        *("widths", "starts", "x", "x_step", "first", "records", "scale", "bias"),
        *("y", "y_step", "y_row", "inverse", "zero"),
    )
    weights: str
    """The weight format, a key of ``RECORDS``; it fixes the precision and the layout of x."""
    epilogue: str
    """What is done to y, one of ``EPILOGUES``; it fixes the layout of y."""
    activation: str = "none"
    """A key of ``ACTIVATIONS``."""

    def __post_init__(self) -> None:
        if self.weights not in RECORDS:
            raise ValueError(f"the weight format must be one of {', '.join(RECORDS)}, got {self.weights!r}")
        possible = EPILOGUES["float32" if self.weights in FLOAT32_FORMATS else "int8"]
        if self.epilogue not in possible:
            rule = f"the epilogue of {self.weights} must be one of {', '.join(possible)}"
            raise ValueError(f"{rule}, got {self.epilogue!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel."""
        with Kernel(self.symbol, PARAMETERS) as k:
            a = Arguments(k.arguments, self.arguments)
            x, x_step, first, records = (a.load(name) for name in ("x", "x_step", "first", "records"))
            widths, starts = a.load("widths"), a.load("starts")
            epilogue = _Epilogue(k, isa, self.epilogue, self.activation, a)
            accumulate = ACCUMULATE[self.weights]
            with k.loop(k.tile_begin, k.tile_end) as tile:
                source = x + tile * x_step
                token = (starts + tile * 8).load(I64)

                def body(block: int, start: Value) -> None:
                    with k.loop(k.group_begin, k.group_end) as group:
                        sums = accumulate(k, isa, block, source, start, first, records, group)
                        epilogue(block, tile, start, token, group, sums)

                each_block(k, isa, (widths + tile * 8).load(I64), body)
        return k


Sums = list[list[Value]]


def _record_span(k: Kernel, first: Value, index: Value, size: int, records: Value) -> tuple[Value, Value]:
    """Where the records of one group, or of one output, begin and end."""
    begin, end = ((first + (index + i) * 4).load(I32).convert_unsigned(I64) for i in (0, 1))
    return records + begin * size, records + end * size


def _values(sums: list[list[Variable]]) -> Sums:
    return [[variable.get() for variable in row] for row in sums]


def _group_sparse_int8(
    k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value
) -> Sums:
    sums = [k.variables(isa.vectors(block), I32 * isa.lanes) for _ in range(4)]
    begin, end = _record_span(k, first, group, RECORD["group_sparse_int8"], records)
    x = x + start
    with k.loop(begin, end, RECORD["group_sparse_int8"]) as at:
        (at + AHEAD).prefetch()
        rows = [(x + (at + 2 * i).load(I16).convert_unsigned(I64) * TILE).load(I8 * block) for i in range(4)]
        outer(isa, sums, quads_of(isa, rows), [(at + 8 + 4 * output).load(I32) for output in range(4)])
    return _values(sums)


def _dense_int8x4(
    k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value
) -> Sums:
    sums = [k.variables(isa.vectors(block), I32 * isa.lanes) for _ in range(4)]
    begin, end = _record_span(k, first, group, RECORD["dense_int8x4"], records)
    place = k.variable(I64)
    place.set(x + start * 4)
    with k.loop(begin, end, RECORD["dense_int8x4"]) as at:
        (at + AHEAD).prefetch()
        row = place.get()
        words = [(row + 4 * isa.lanes * v).load(I32 * isa.lanes) for v in range(isa.vectors(block))]
        outer(isa, sums, words, [(at + 4 * output).load(I32) for output in range(4)])
        place.add(k.constant(I64, 4 * TILE))
    return _values(sums)


def _single_outputs(
    number: Type, k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value
) -> Sums:
    """Four outputs one after the other, each with its records, two at a time so that sums do not wait for each other."""
    vectors, size, done = isa.vectors(block), RECORD["sparse_float32" if number.floating else "block_sparse_int8"], []
    x = x + start * 4

    def step(at: Value, sums: list[Variable]) -> None:
        row = x + at.load(I32).convert_unsigned(I64) * (4 * TILE)
        loaded = [(row + 4 * isa.lanes * v).load(number * isa.lanes) for v in range(vectors)]
        outer(isa, [sums], loaded, [(at + 4).load(number)])

    for output in range(4):
        even, odd = (k.variables(vectors, number * isa.lanes) for _ in range(2))
        begin, end = _record_span(k, first, group * 4 + output, size, records)
        pairs = begin + (end - begin).divide_unsigned(2 * size) * (2 * size)
        with k.loop(begin, pairs, 2 * size) as at:
            (at + AHEAD).prefetch()
            step(at, even)
            step(at + size, odd)
        with k.loop(pairs, end, size) as at:
            step(at, even)
        done.append([a.get() + b.get() for a, b in zip(even, odd, strict=True)])
    return done


def _group_sparse_float32(
    k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value
) -> Sums:
    sums = [k.variables(isa.vectors(block), F32 * isa.lanes) for _ in range(4)]
    begin, end = _record_span(k, first, group, RECORD["group_sparse_float32"], records)
    x = x + start * 4
    with k.loop(begin, end, RECORD["group_sparse_float32"]) as at:
        (at + AHEAD).prefetch()
        row = x + at.load(I32).convert_unsigned(I64) * (4 * TILE)
        loaded = [(row + 4 * isa.lanes * v).load(F32 * isa.lanes) for v in range(isa.vectors(block))]
        outer(isa, sums, loaded, [(at + 4 + 4 * output).load(F32) for output in range(4)])
    return _values(sums)


ACCUMULATE: dict[str, Callable[..., Sums]] = {
    "group_sparse_int8": _group_sparse_int8,
    "dense_int8x4": _dense_int8x4,
    "block_sparse_int8": partial(_single_outputs, I32),
    "group_sparse_float32": _group_sparse_float32,
    "sparse_float32": partial(_single_outputs, F32),
}
SIGNED = dict.fromkeys(("keys", "values"), signed_limits())
"""Where these epilogues clip; the others store unsigned bytes (queries carry 128 too much)."""


@dataclass(frozen=True)
class _Epilogue:
    """Turns the sums of four outputs into y and stores it."""

    kernel: Kernel
    isa: Isa
    epilogue: str
    activation: str
    arguments: Arguments

    def __call__(self, block: int, tile: Value, start: Value, token: Value, group: Value, sums: Sums) -> None:
        a, isa, k = self.arguments, self.isa, self.kernel
        act, short = ACTIVATIONS[self.activation], sums[0][0].type.floating is False
        results: Sums = []
        for output in range(4):
            place = (group * 4 + output) * 4
            bias = (a.load("bias") + place).load(F32)
            scale = (a.load("scale") + place).load(F32) if short else None
            row = [s.convert_signed(F32).fma(scale, bias) if scale is not None else s + bias for s in sums[output]]
            results.append([act(y, short) for y in row])
        tile_start = a.load("y") + tile * a.load("y_step")  # of a tile
        if self.epilogue in {"add", "store", "matrix"}:
            if self.epilogue == "matrix":
                base, row_bytes = a.load("y") + (token + start) * 4, a.load("y_row")
            else:
                base, row_bytes = tile_start + start * 4, k.constant(I64, 4 * TILE)
            for output, row in enumerate(results):
                for v, y in enumerate(row):
                    place = base + (group * 4 + output) * row_bytes + 4 * isa.lanes * v
                    place.store(place.load(y.type) + y if self.epilogue == "add" else y)
            return
        low, high = map(float, SIGNED.get(self.epilogue, (0, LARGEST_BYTE)))
        if self.epilogue.startswith("quantize"):
            zero = a.load("zero").load(F32)
            for output in range(4):
                inverse = (a.load("inverse") + (group * 4 + output) * 4).load(F32)
                results[output] = [y.fma(inverse, zero) for y in results[output]]
        if self.epilogue in {"quantize_rows", "values"}:
            for output, row in enumerate(results):
                place = group * 4 + output
                if self.epilogue == "quantize_rows":
                    (tile_start + place * TILE + start).store(row_of(isa, row))
                else:
                    natural = joined([bytes_of(y, low, high).truncate(I8) for y in row])
                    (a.load("y") + place * a.load("y_row") + token + start).store(natural)
            return
        for v in range(isa.vectors(block)):
            words = quad_of(isa, [row[v] for row in results], low, high)
            if self.epilogue == "quantize_int8x4":
                (tile_start + group * (4 * TILE) + start * 4 + 4 * isa.lanes * v).store(words)
            else:
                base = a.load("y") + group * a.load("y_row")
                (base + (token + start) * 4 + 4 * isa.lanes * v).store(words)
