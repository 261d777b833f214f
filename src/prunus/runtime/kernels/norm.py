"""Embedding, layer normalization and reading out: one feature after the other, lanes over tokens.

    normalize     x[f, t] <- (x[f, t] - mean_t) / sqrt(var_t + eps) * gamma[f] + beta[f]      over all features f of a token t
                  and, for the linear layer that reads it:  byte = x[f, t] * inverse[f] + zero

No sum runs across the lanes of a vector. Mean and variance come from one pass over distances from a center, which is the mean
of a token's first features: var = mean((x - c)^2) - mean(x - c)^2, without the loss of digits that c = 0 would have.
"""

from prunus.runtime.ir_builder import F32, I32, I64, Kernel, Value
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.linear import SIGNATURE, TILE, Arguments, each_block
from prunus.runtime.kernels.maths import quad_of, row_of, transpose

__all__ = ["EMBED", "NORMALIZE", "READ", "embed", "normalize", "read"]

NORMALIZE = (
    "widths",
    "x",
    "x_step",
    "features",
    "gamma",
    "beta",
    "epsilon",
    "rows",
    "mixed",
    "y_step",
    "inverse",
    "zero",
)
EMBED = ("widths", "x", "x_step", "features", "words", "positions", "types", "word", "position", "type")
READ = ("widths", "starts", "x", "x_step", "features", "y", "y_row")


CENTER = 16
"""Features whose mean is the center; every encoder has as many."""


def normalize(isa: Isa, rows: bool, mixed: bool, plain: bool = False) -> Kernel:
    """Layer normalization of tiles [t0, t1); as bytes too: in rows, mixed into quads, or both. ``plain``: only the bytes."""
    with Kernel(f"{'store' if plain else 'normalize'}_{rows:d}{mixed:d}", SIGNATURE) as k:
        a = Arguments(k, k.table, NORMALIZE)
        features = a.features
        epsilon = a.epsilon.load(F32)
        zero = a.zero.load(F32)
        for tile in k.range(k.t0, k.t1):
            x = a.x + tile * a.x_step
            out = tile * a.y_step

            def body(block: int, start: Value, x: Value = x, out: Value = out) -> None:
                count = isa.vectors(block)
                offsets = [start * 4 + 4 * isa.lanes * v for v in range(count)]
                means, scales = ([], []) if plain else statistics(k, isa, x, features, offsets, epsilon)
                for four in k.range(0, features, 4):
                    numbers = []
                    for feature in (four + i for i in range(4)):
                        row = x + feature * (4 * TILE)
                        whole = []
                        for v, offset in enumerate(offsets):
                            y = (row + offset).load(F32 * isa.lanes)
                            if not plain:
                                gamma, beta = ((table + feature * 4).load(F32) for table in (a.gamma, a.beta))
                                y = ((y - means[v]) * scales[v]).fma(gamma, beta)
                                (row + offset).store(y)
                            if rows or mixed:
                                inverse = (a.inverse + feature * 4).load(F32)
                                whole.append(y.fma(inverse, zero))
                        numbers.append(whole)
                        if rows:
                            (a.rows + out + feature * TILE + start).store(row_of(isa, whole))
                    if mixed:
                        for v in range(count):
                            quad = quad_of(isa, [whole[v] for whole in numbers])
                            (a.mixed + out + four * TILE + offsets[v]).store(quad)

            each_block(k, isa, (a.widths + tile * 8).load(I64), body)
    return k


def statistics(
    k: Kernel, isa: Isa, x: Value, features: Value, offsets: list[Value], epsilon: Value
) -> tuple[list[Value], list[Value]]:
    """Mean and 1 / sqrt(variance + epsilon) of each token."""
    number, count = F32 * isa.lanes, len(offsets)
    first = k.cells(count, number)
    for feature in k.range(0, CENTER):
        for cell, offset in zip(first, offsets, strict=True):
            cell.add((x + feature * (4 * TILE) + offset).load(number))
    centers = [cell.get() * (1 / CENTER) for cell in first]
    halves = [
        (k.cells(count, number), k.cells(count, number)) for _ in range(2)
    ]  # so that sums do not wait for each other
    for feature in k.range(0, features, 2):
        for half, (sums, squares) in enumerate(halves):
            row = x + (feature + half) * (4 * TILE)
            for total, square, offset, center in zip(sums, squares, offsets, centers, strict=True):
                apart = (row + offset).load(number) - center
                total.add(apart)
                square.set(apart.fma(apart, square.get()))
    share = k.constant(F32, 1.0) / features.to(F32)
    (sums, squares), (more_sums, more_squares) = halves
    shifts = [(one.get() + other.get()) * share for one, other in zip(sums, more_sums, strict=True)]
    variances = [
        (one.get() + other.get()) * share - shift * shift
        for one, other, shift in zip(squares, more_squares, shifts, strict=True)
    ]
    means = [center + shift for center, shift in zip(centers, shifts, strict=True)]
    return means, [(variance.maximum(0.0) + epsilon).sqrt().reciprocal() for variance in variances]


def embed(isa: Isa) -> Kernel:
    """x[f, t] = word[words[t], f] + position[positions[t], f] + type[types[t], f]; features a multiple of 16."""
    with Kernel("embed", SIGNATURE) as k:
        a = Arguments(k, k.table, EMBED)
        row_bytes = a.features * 4
        for tile in k.range(k.t0, k.t1):
            for token in k.range(0, (a.widths + tile * 8).load(I64), isa.lanes):
                sources = []
                for lane in range(isa.lanes):
                    at = (tile * TILE + token + lane) * 4
                    indices = [
                        (table + at).load(I32).to(I64, signed=False) for table in (a.words, a.positions, a.types)
                    ]
                    tables = (a.word, a.position, a.type)
                    sources.append([table + i * row_bytes for table, i in zip(tables, indices, strict=True)])
                for feature in k.range(0, a.features, isa.lanes):
                    rows = []
                    for three in sources:
                        word, position, kind = ((row + feature * 4).load(F32 * isa.lanes) for row in three)
                        rows.append(word + kind + position)
                    for i, column in enumerate(transpose(rows)):
                        (a.x + tile * a.x_step + (feature + i) * (4 * TILE) + token * 4).store(column)
    return k


def read(isa: Isa) -> Kernel:
    """y[token, f] = x[f, t] for all tokens of the tiles: back to rows of features; features a multiple of 16."""
    with Kernel("read", SIGNATURE) as k:
        a = Arguments(k, k.table, READ)
        for tile in k.range(k.t0, k.t1):
            place = a.y + (a.starts + tile * 8).load(I64) * a.y_row
            for token in k.range(0, (a.widths + tile * 8).load(I64), isa.lanes):
                for feature in k.range(0, a.features, isa.lanes):
                    source = a.x + tile * a.x_step + feature * (4 * TILE) + token * 4
                    rows = [(source + lane * (4 * TILE)).load(F32 * isa.lanes) for lane in range(isa.lanes)]
                    for lane, column in enumerate(transpose(rows)):
                        (place + (token + lane) * a.y_row + feature * 4).store(column)
    return k
