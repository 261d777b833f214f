"""Linear layers: y[o, t] = sum over i of w[o, i] x[i, t], for 64 tokens t at a time, and what is done to y at once.

    int8      sums = sum of w (int8) * x (uint8);  y = sums * scale[o] + bias[o]
              scale = s_w[o] s_x;  bias = b[o] - z_x scale[o] * sum of w[o]            (x = s_x (x_int - z_x), w = s_w w_int)

Vector lanes run over tokens, so a column of inputs is one contiguous load wherever its index points: zeros cost nothing to
skip. Weights come as one stream of records, four outputs (a *group*) at a time; ``first[g]`` is a group's first record:

    gather     4 column indices (uint16), then 4 outputs x 4 columns (int8)                      24 bytes
    quads      4 outputs x 4 consecutive columns (int8), column after column, none left out      16 bytes
    blocks     one output alone: index of 4 consecutive columns (uint32), their weights (int8)    8 bytes
    columns    float32: one column index (uint32), 4 outputs (float32)                           20 bytes
    singles    float32: one output alone: one column index (uint32), its weight (float32)         8 bytes

``gather`` reads rows of bytes; ``quads`` and ``blocks`` read rows already mixed into quads; ``columns`` and ``singles`` floats.

What becomes of y (a *finish*):

    add        x[o] += y                                    float tile: the residual
    keep       x[o] = y                                     float tile
    rows       x[o] = byte of act(y) * inverse[o] + zero    row of bytes, for ``gather``
    mixed      the same, as quads                           for ``quads`` and ``blocks``
    queries    bytes of y, which has 128 added, quads by token, all tiles in one matrix
    keys       signed bytes of y, quads by token, all tiles in one matrix
    values     signed bytes of y, rows by token, all tiles in one matrix
    wide       float32, rows by token, all tiles in one matrix
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prunus.runtime.ir_builder import F32, I8, I16, I32, I64, Cell, Kernel, Type, Value
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.maths import ACTIVATIONS, bytes_of, joined, outer, quad_of, quads_of, row_of

__all__ = ["ARGUMENTS", "RECORD", "SIGNATURE", "TILE", "linear"]

TILE = 64
"""Tokens in a tile."""
RECORD = {"gather": 24, "quads": 16, "blocks": 8, "columns": 20, "singles": 8}
"""Bytes of a record."""
AHEAD = 3072
"""Bytes that records are asked for before they are used: weights that come from beyond the second cache arrive in time."""
SIGNATURE = ("table", "t0", "t1", "g0", "g1", "scratch")
"""Of every kernel that is a step: its table, tiles [t0, t1), groups [g0, g1), memory of the thread."""
ARGUMENTS = (
    "widths",
    "starts",
    "x",
    "x_step",
    "first",
    "records",
    "scale",
    "bias",
    "y",
    "y_step",
    "y_row",
    "inverse",
    "zero",
)
"""What the table of arguments holds, 64 bits each: addresses, bytes between tiles and rows, and two floats by address."""


@dataclass(frozen=True)
class Arguments:
    """Reads the table of arguments."""

    kernel: Kernel
    table: Value
    names: tuple[str, ...]

    def __getattr__(self, name: str) -> Value:
        return (self.table + 8 * self.names.index(name)).load(I64)


def each_block(k: Kernel, isa: Isa, width: Value, body: Callable[[int, Value], None]) -> None:
    """Covers ``width`` tokens (a multiple of 16) with blocks, the widest first: ``body(block, first token)``."""
    widest = isa.blocks[0]
    for start in k.range(0, (width // widest) * widest, widest):
        body(widest, start)
    covered = (width // widest) * widest
    for block in isa.blocks[1:]:
        for _ in k.when((width & block).compare("!=", 0)):
            body(block, covered)
        covered = covered + (width & block)


def linear(isa: Isa, kind: str, finish: str, activation: str = "none") -> Kernel:
    """A kernel for tiles [t0, t1) and groups of four outputs [g0, g1)."""
    name = f"linear_{kind}_{finish}_{activation}"
    with Kernel(name, SIGNATURE) as k:
        a = Arguments(k, k.table, ARGUMENTS)
        x, x_step, first, records = a.x, a.x_step, a.first, a.records
        widths, starts = a.widths, a.starts
        finisher = Finisher(k, isa, finish, activation, a)
        accumulate = ACCUMULATE[kind]
        for tile in k.range(k.t0, k.t1):
            source = x + tile * x_step
            token = (starts + tile * 8).load(I64)

            def body(
                block: int, start: Value, tile: Value = tile, source: Value = source, token: Value = token
            ) -> None:
                for group in k.range(k.g0, k.g1):
                    sums = accumulate(k, isa, block, source, start, first, records, group)
                    finisher(block, tile, start, token, group, sums)

            each_block(k, isa, (widths + tile * 8).load(I64), body)
    return k


Sums = list[list[Value]]


def span(k: Kernel, first: Value, index: Value, size: int, records: Value) -> tuple[Value, Value]:
    """Addresses of the records of one group, or of one output."""
    begin, end = ((first + (index + i) * 4).load(I32).to(I64, signed=False) for i in (0, 1))
    return records + begin * size, records + end * size


def values(sums: list[list[Cell]]) -> Sums:
    return [[cell.get() for cell in row] for row in sums]


def gather(k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value) -> Sums:
    sums = [k.cells(isa.vectors(block), I32 * isa.lanes) for _ in range(4)]
    begin, end = span(k, first, group, RECORD["gather"], records)
    x = x + start
    for at in k.range(begin, end, RECORD["gather"]):
        (at + AHEAD).prefetch()
        rows = [(x + (at + 2 * i).load(I16).to(I64, signed=False) * TILE).load(I8 * block) for i in range(4)]
        outer(isa, sums, quads_of(isa, rows), [(at + 8 + 4 * output).load(I32) for output in range(4)])
    return values(sums)


def quads(k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value) -> Sums:
    sums = [k.cells(isa.vectors(block), I32 * isa.lanes) for _ in range(4)]
    begin, end = span(k, first, group, RECORD["quads"], records)
    place = k.cell(I64)
    place.set(x + start * 4)
    for at in k.range(begin, end, RECORD["quads"]):
        (at + AHEAD).prefetch()
        row = place.get()
        mixed = [(row + 4 * isa.lanes * v).load(I32 * isa.lanes) for v in range(isa.vectors(block))]
        outer(isa, sums, mixed, [(at + 4 * output).load(I32) for output in range(4)])
        place.add(k.constant(I64, 4 * TILE))
    return values(sums)


def alone(
    number: Type, k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value
) -> Sums:
    """Four outputs one after the other, each with records of its own, two at a time so that sums do not wait for each other."""
    vectors, size, done = isa.vectors(block), RECORD["singles" if number.floating else "blocks"], []
    x = x + start * 4

    def step(at: Value, sums: list[Cell]) -> None:
        row = x + at.load(I32).to(I64, signed=False) * (4 * TILE)
        loaded = [(row + 4 * isa.lanes * v).load(number * isa.lanes) for v in range(vectors)]
        outer(isa, [sums], loaded, [(at + 4).load(number)])

    for output in range(4):
        even, odd = (k.cells(vectors, number * isa.lanes) for _ in range(2))
        begin, end = span(k, first, group * 4 + output, size, records)
        pairs = begin + ((end - begin) // (2 * size)) * (2 * size)
        for at in k.range(begin, pairs, 2 * size):
            (at + AHEAD).prefetch()
            step(at, even)
            step(at + size, odd)
        for at in k.range(pairs, end, size):
            step(at, even)
        done.append([a.get() + b.get() for a, b in zip(even, odd, strict=True)])
    return done


def columns(
    k: Kernel, isa: Isa, block: int, x: Value, start: Value, first: Value, records: Value, group: Value
) -> Sums:
    sums = [k.cells(isa.vectors(block), F32 * isa.lanes) for _ in range(4)]
    begin, end = span(k, first, group, RECORD["columns"], records)
    x = x + start * 4
    for at in k.range(begin, end, RECORD["columns"]):
        (at + AHEAD).prefetch()
        row = x + at.load(I32).to(I64, signed=False) * (4 * TILE)
        loaded = [(row + 4 * isa.lanes * v).load(F32 * isa.lanes) for v in range(isa.vectors(block))]
        outer(isa, sums, loaded, [(at + 4 + 4 * output).load(F32) for output in range(4)])
    return values(sums)


ACCUMULATE: dict[str, Callable[..., Sums]] = {
    "gather": gather,
    "quads": quads,
    "blocks": partial(alone, I32),
    "columns": columns,
    "singles": partial(alone, F32),
}


@dataclass(frozen=True)
class Finisher:
    """What becomes of the sums of four outputs."""

    kernel: Kernel
    isa: Isa
    finish: str
    activation: str
    arguments: Arguments

    def __call__(self, block: int, tile: Value, start: Value, token: Value, group: Value, sums: Sums) -> None:
        a, isa, k = self.arguments, self.isa, self.kernel
        act, short = ACTIVATIONS[self.activation], sums[0][0].type.floating is False
        results: Sums = []
        for output in range(4):
            place = (group * 4 + output) * 4
            bias = (a.bias + place).load(F32)
            scale = (a.scale + place).load(F32) if short else None
            row = [s.to(F32).fma(scale, bias) if scale is not None else s + bias for s in sums[output]]
            results.append([act(y, short) for y in row])
        whole = a.y + tile * a.y_step  # of a tile
        if self.finish in {"add", "keep", "wide"}:
            if self.finish == "wide":
                base, row_bytes = a.y + (token + start) * 4, a.y_row
            else:
                base, row_bytes = whole + start * 4, k.constant(I64, 4 * TILE)
            for output, row in enumerate(results):
                for v, y in enumerate(row):
                    place = base + (group * 4 + output) * row_bytes + 4 * isa.lanes * v
                    place.store(place.load(y.type) + y if self.finish == "add" else y)
            return
        low, high = {"queries": (1.0, 255.0), "keys": (-127.0, 127.0), "values": (-127.0, 127.0)}.get(
            self.finish, (0.0, 255.0)
        )
        if self.finish in {"rows", "mixed"}:
            zero = a.zero.load(F32)
            for output in range(4):
                inverse = (a.inverse + (group * 4 + output) * 4).load(F32)
                results[output] = [y.fma(inverse, zero) for y in results[output]]
        if self.finish in {"rows", "values"}:
            for output, row in enumerate(results):
                place = group * 4 + output
                if self.finish == "rows":
                    (whole + place * TILE + start).store(row_of(isa, row))
                else:
                    natural = joined([bytes_of(y, low, high).to(I8) for y in row])
                    (a.y + place * a.y_row + token + start).store(natural)
            return
        for v in range(isa.vectors(block)):
            mixed = quad_of(isa, [row[v] for row in results], low, high)
            if self.finish == "mixed":
                (whole + group * (4 * TILE) + start * 4 + 4 * isa.lanes * v).store(mixed)
            else:
                (a.y + group * a.y_row + (token + start) * 4 + 4 * isa.lanes * v).store(mixed)
