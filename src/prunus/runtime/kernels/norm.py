"""Embedding, layer normalization and reading out: one feature after the other, lanes over tokens.

    normalize     x[f, t] <- (x[f, t] - mean_t) / sqrt(var_t + eps) * gamma[f] + beta[f]      over all features f of a token t
                  and, for the linear layer that reads it:  byte = x[f, t] * inverse[f] + zero

No sum runs across the lanes of a vector. Mean and variance come from one pass over distances from a center, which is the mean
of a token's first features: var = mean((x - c)^2) - mean(x - c)^2, without the loss of digits that c = 0 would have.
"""

from dataclasses import dataclass

from prunus.runtime.ir_builder import F32, I32, I64, Kernel, Value
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.maths import quad_of, row_of, transpose
from prunus.runtime.kernels.step import PARAMETERS, TILE, Arguments, StepSpec, arguments_dtype, each_block

__all__ = ["EmbedSpec", "NormalizeSpec", "QuantizeSpec", "ReadSpec"]

CENTER = 16
"""Features whose mean is the center; every encoder has as many."""


@dataclass(frozen=True)
class NormalizeSpec(StepSpec):
    """Layer normalization for tiles, and the bytes of the result in the layouts that the following layers read."""

    arguments = arguments_dtype(
        *("widths", "x", "x_step", "features", "gamma", "beta", "epsilon"),
        *("rows", "int8x4", "y_step", "inverse", "zero"),
    )
    rows: bool = False
    """Whether bytes are stored in rows."""
    int8x4: bool = False
    """Whether bytes are stored packed int8x4."""

    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel."""
        return _normalize(self, isa, plain=False)


@dataclass(frozen=True)
class QuantizeSpec(StepSpec):
    """The bytes of x alone, without normalization."""

    arguments = NormalizeSpec.arguments
    rows: bool = False
    """Whether bytes are stored in rows."""
    int8x4: bool = False
    """Whether bytes are stored packed int8x4."""

    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel."""
        return _normalize(self, isa, plain=True)


def _normalize(spec: NormalizeSpec | QuantizeSpec, isa: Isa, plain: bool) -> Kernel:
    with Kernel(spec.symbol, PARAMETERS) as k:
        a = Arguments(k.arguments, spec.arguments)
        features = a.load("features")
        stores_bytes = spec.rows or spec.int8x4
        epsilon = None if plain else a.load("epsilon").load(F32)
        zero = a.load("zero").load(F32) if stores_bytes else None
        with k.loop(k.tile_begin, k.tile_end) as tile:
            x = a.load("x") + tile * a.load("x_step")
            out = tile * a.load("y_step")

            def body(block: int, start: Value) -> None:
                count = isa.vectors(block)
                offsets = [start * 4 + 4 * isa.lanes * v for v in range(count)]
                means, scales = ([], []) if epsilon is None else _statistics(k, isa, x, features, offsets, epsilon)
                with k.loop(0, features, 4) as four:
                    numbers = []
                    for feature in (four + i for i in range(4)):
                        row = x + feature * (4 * TILE)
                        scaled = []
                        for v, offset in enumerate(offsets):
                            y = (row + offset).load(F32 * isa.lanes)
                            if not plain:
                                gamma, beta = ((a.load(t) + feature * 4).load(F32) for t in ("gamma", "beta"))
                                y = ((y - means[v]) * scales[v]).fma(gamma, beta)
                                (row + offset).store(y)
                            if zero is not None:
                                inverse = (a.load("inverse") + feature * 4).load(F32)
                                scaled.append(y.fma(inverse, zero))
                        numbers.append(scaled)
                        if spec.rows:
                            (a.load("rows") + out + feature * TILE + start).store(row_of(isa, scaled))
                    if spec.int8x4:
                        for v in range(count):
                            words = quad_of(isa, [scaled[v] for scaled in numbers])
                            (a.load("int8x4") + out + four * TILE + offsets[v]).store(words)

            each_block(k, isa, (a.load("widths") + tile * 8).load(I64), body)
    return k


def _statistics(
    k: Kernel, isa: Isa, x: Value, features: Value, offsets: list[Value], epsilon: Value
) -> tuple[list[Value], list[Value]]:
    """Mean and 1 / sqrt(variance + epsilon) of each token."""
    number, count = F32 * isa.lanes, len(offsets)
    first = k.variables(count, number)
    with k.loop(0, CENTER) as feature:
        for cell, offset in zip(first, offsets, strict=True):
            cell.add((x + feature * (4 * TILE) + offset).load(number))
    centers = [cell.get() * (1 / CENTER) for cell in first]
    halves = [
        (k.variables(count, number), k.variables(count, number)) for _ in range(2)
    ]  # so that sums do not wait for each other
    with k.loop(0, features, 2) as feature:
        for half, (sums, squares) in enumerate(halves):
            row = x + (feature + half) * (4 * TILE)
            for total, square, offset, center in zip(sums, squares, offsets, centers, strict=True):
                apart = (row + offset).load(number) - center
                total.add(apart)
                square.set(apart.fma(apart, square.get()))
    share = k.constant(F32, 1.0) / features.convert_signed(F32)
    (sums, squares), (more_sums, more_squares) = halves
    shifts = [(one.get() + other.get()) * share for one, other in zip(sums, more_sums, strict=True)]
    variances = [
        (one.get() + other.get()) * share - shift * shift
        for one, other, shift in zip(squares, more_squares, shifts, strict=True)
    ]
    means = [center + shift for center, shift in zip(centers, shifts, strict=True)]
    return means, [(variance.maximum(0.0) + epsilon).sqrt().reciprocal() for variance in variances]


@dataclass(frozen=True)
class EmbedSpec(StepSpec):
    """x[f, t] = word[word_ids[t], f] + position[position_ids[t], f] + type[type_ids[t], f]; features are a multiple of 16."""

    arguments = arguments_dtype(
        *("widths", "x", "x_step", "features", "word_ids", "position_ids", "type_ids", "word", "position", "type")
    )

    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel."""
        with Kernel(self.symbol, PARAMETERS) as k:
            a = Arguments(k.arguments, self.arguments)
            row_bytes = a.load("features") * 4
            with (
                k.loop(k.tile_begin, k.tile_end) as tile,
                k.loop(0, (a.load("widths") + tile * 8).load(I64), isa.lanes) as token,
            ):
                sources = []
                for lane in range(isa.lanes):
                    at = (tile * TILE + token + lane) * 4
                    ids = [a.load(name) for name in ("word_ids", "position_ids", "type_ids")]
                    indices = [(base + at).load(I32).convert_unsigned(I64) for base in ids]
                    tables = [a.load(name) for name in ("word", "position", "type")]
                    sources.append([table + i * row_bytes for table, i in zip(tables, indices, strict=True)])
                with k.loop(0, a.load("features"), isa.lanes) as feature:
                    rows = []
                    for three in sources:
                        word, position, kind = ((row + feature * 4).load(F32 * isa.lanes) for row in three)
                        rows.append(word + kind + position)
                    for i, column in enumerate(transpose(rows)):
                        x = a.load("x") + tile * a.load("x_step")
                        (x + (feature + i) * (4 * TILE) + token * 4).store(column)
        return k


@dataclass(frozen=True)
class ReadSpec(StepSpec):
    """y[token, f] = x[f, t] for all tokens of the tiles: back to rows of features; features are a multiple of 16."""

    arguments = arguments_dtype("widths", "starts", "x", "x_step", "features", "y", "y_row")

    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel."""
        with Kernel(self.symbol, PARAMETERS) as k:
            a = Arguments(k.arguments, self.arguments)
            with k.loop(k.tile_begin, k.tile_end) as tile:
                place = a.load("y") + (a.load("starts") + tile * 8).load(I64) * a.load("y_row")
                with (
                    k.loop(0, (a.load("widths") + tile * 8).load(I64), isa.lanes) as token,
                    k.loop(0, a.load("features"), isa.lanes) as feature,
                ):
                    source = a.load("x") + tile * a.load("x_step") + feature * (4 * TILE) + token * 4
                    rows = [(source + lane * (4 * TILE)).load(F32 * isa.lanes) for lane in range(isa.lanes)]
                    for lane, column in enumerate(transpose(rows)):
                        (place + (token + lane) * a.load("y_row") + feature * 4).store(column)
        return k
