"""Attention of packed sequences: softmax(q k^T * scale + bias) v, one head and at most 64 queries of one sequence at a time.

Lanes run over queries, so maximum and sum of a softmax need no step across lanes. Sequences lie one after the other without
padding; a *segment* is the part of a sequence whose queries lie in one tile: (first key, keys, first query, queries).

    int8      s[j, t] = scale * (sum of (q + 128) k - 128 * sum of k[j])
              p[j, t] = round(255 * exp(s[j, t] - max_j s[j, t]))                 uint8
              y[f, t] = sum_j p[j, t] v[f, j] * gain[f] / sum_j p[j, t] + zero    the weights add up to one exactly
    float32   the same without rounding

``scale`` has s_q s_k / sqrt(size of a head) in it, one number a head; ``gain`` s_v / s_y, one number a feature. ``bias``
(relative positions; MPNet) is one number for each distance: bias[head, query - key + max_distance].
"""

from dataclasses import dataclass

import numpy as np

from prunus.runtime.ir_builder import F32, I8, I32, I64, Kernel, Value, Variable
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.maths import LOG2_E, ROUND, exp2, low_bytes, ordered, outer, quads_of
from prunus.runtime.kernels.step import PARAMETERS, TILE, Arguments, StepSpec, arguments_dtype, each_block

__all__ = ["SEGMENT", "AttentionSpec", "scratch_bytes"]

SEGMENT = np.dtype([(name, np.int64) for name in ("first_key", "keys", "first_query", "queries")])
"""A segment: where its keys and queries begin among all tokens, and how many there are."""
WIDE = 2 * TILE
"""Tokens in a row of the stage: a tile, and what a last block may run over its end."""
NEVER = -1e30


def scratch_bytes(longest: int, size: int) -> int:
    """What one thread needs: the stage of one head, sums of keys, scores."""
    return 4 * WIDE * size + 4 * (longest + 64) * (TILE + 1) + 256


@dataclass(frozen=True)
class AttentionSpec(StepSpec):
    """Attention for tiles of tokens and heads, which are its groups."""

    arguments = arguments_dtype(
        *("widths", "starts", "spans", "segments", "q", "k", "v", "row", "v_row", "size"),
        *("scale", "gain", "zero", "rows", "int8x4", "floats", "y_step", "bias", "bias_row", "max_distance"),
    )
    integers: bool
    """Whether q, k, v and y are bytes; else float32."""
    biased: bool
    """Whether each distance of query and key has a bias."""

    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel."""
        with Kernel(self.symbol, PARAMETERS) as k:
            a = Arguments(k.arguments, self.arguments)
            with k.loop(k.tile_begin, k.tile_end) as tile:
                begin, end = ((a.load("spans") + (tile + i) * 8).load(I64) for i in (0, 1))
                width, start = ((a.load(table) + tile * 8).load(I64) for table in ("widths", "starts"))
                with k.loop(k.group_begin, k.group_end) as head:
                    with k.loop(begin, end) as number:
                        segment = Arguments(a.load("segments") + number * SEGMENT.itemsize, SEGMENT)
                        part = _Part(k, isa, a, self, head, segment.load("first_key"), segment.load("keys"))
                        query, count = segment.load("first_query"), segment.load("queries")
                        part.sum_keys()

                        def body(block: int, at: Value) -> None:
                            part.attend(block, query + at, query + at - start)

                        each_block(k, isa, (count + 15).shift_right_unsigned(4) << 4, body)
                    _flush(k, isa, a, self.integers, tile, head, width)
        return k


@dataclass(frozen=True)
class _Part:
    """One head of one sequence; writes what a block of its queries needs."""

    kernel: Kernel
    isa: Isa
    a: Arguments
    spec: AttentionSpec
    head: Value
    first: Value
    keys: Value

    @property
    def rows(self) -> Value:
        """Rows of q and k in a head: int8x4 words of features, or features."""
        return self.a.load("size").shift_right_unsigned(2) if self.spec.integers else self.a.load("size")

    @property
    def key_sums(self) -> Value:
        return self.kernel.scratch + self.a.load("size") * (4 * WIDE)

    @property
    def scores(self) -> Value:
        return self.key_sums + (self.keys + 64) * 4

    def sum_keys(self) -> None:
        """-128 * sum of k[j] for each key, for queries that carry 128 too much."""
        if not self.spec.integers:
            return
        k, isa = self.kernel, self.isa
        base = self.a.load("k") + self.head * self.rows * self.a.load("row") + self.first * 4
        much = isa.prepare(k.constant(I32 * isa.lanes, -0x7F7F7F80))  # four bytes of 128
        with k.loop(0, self.keys, isa.lanes) as key:
            total = k.variable(I32 * isa.lanes)
            with k.loop(0, self.rows) as row:
                four = (base + row * self.a.load("row") + key * 4).load(I32 * isa.lanes)
                total.set(isa.dot(total.get(), much, isa.weight(four)))
            (self.key_sums + key * 4).store(total.get() * -1)

    def attend(self, block: int, query: Value, column: Value) -> None:
        """Queries [query, query + block): their outputs go to the stage, at ``column``."""
        k, keys = self.kernel, self.keys
        count = self.isa.vectors(block)
        largest = k.variables(count, F32 * self.isa.lanes, NEVER)
        whole = keys.shift_right_unsigned(2) << 2
        with k.loop(0, whole, 4) as key:
            self.score(block, query, key, largest, last=False)
        with k.if_((keys & 3).compare_signed("!=", 0)):
            self.score(block, query, whole, largest, last=True)
        totals = self.weigh(block, [cell.get() for cell in largest])
        self.collect(block, column, totals)

    def score(self, block: int, query: Value, key: Value, largest: list[Variable], last: bool) -> None:
        """Scores of four keys; of the last four, those behind the end count for nothing."""
        k, isa, a = self.kernel, self.isa, self.a
        count, number = isa.vectors(block), I32 if self.spec.integers else F32
        head = self.head * self.rows * a.load("row")
        q, keys = a.load("q") + head + query * 4, a.load("k") + head + (self.first + key) * 4
        sums = [k.variables(count, number * isa.lanes) for _ in range(4)]
        if self.spec.integers:
            for i, cells in enumerate(sums):
                start = (self.key_sums + (key + i) * 4).load(I32).splat(isa.lanes)
                for cell in cells:
                    cell.set(start)
        with k.loop(0, self.rows) as row:
            loaded = [(q + row * a.load("row") + 4 * isa.lanes * v).load(number * isa.lanes) for v in range(count)]
            outer(isa, sums, loaded, [(keys + row * a.load("row") + 4 * i).load(number) for i in range(4)])
        scale = (a.load("scale") + self.head * 4).load(F32) * LOG2_E  # scores are powers of two
        for i, cells in enumerate(sums):
            inside = (key + i).compare_signed("<", self.keys)
            for v, cell in enumerate(cells):
                score = cell.get().convert_signed(F32) * scale
                if self.spec.biased:
                    distance = query + isa.lanes * v - (self.first + key + i) + a.load("max_distance")
                    score = (
                        (a.load("bias") + self.head * a.load("bias_row") + distance * 4)
                        .load(score.type)
                        .fma(LOG2_E, score)
                    )
                if last:
                    score = inside.select(score, NEVER)
                (self.scores + (key + i) * (4 * block) + 4 * isa.lanes * v).store(score)
                largest[v].set(score.maximum(largest[v].get()))

    def weigh(self, block: int, largest: list[Value]) -> list[Value]:
        """Scores -> weights in their place; returns 1 / their sum."""
        k, isa, count = self.kernel, self.isa, self.isa.vectors(block)
        if not self.spec.integers:
            totals = k.variables(count, F32 * isa.lanes)
            with k.loop(0, self.keys) as key:
                for v in range(count):
                    place = self.scores + key * (4 * block) + 4 * isa.lanes * v
                    weight = exp2(place.load(F32 * isa.lanes) - largest[v], short=False)
                    place.store(weight)
                    totals[v].add(weight)
            return [cell.get().reciprocal() for cell in totals]
        sums = k.variables(count, I32 * isa.lanes)
        ones = isa.weight(k.constant(I32, 0x01010101))
        with k.loop(0, self.keys, 4) as key:
            for v in range(count):
                four = []
                for i in range(4):
                    score = (self.scores + (key + i) * (4 * block) + 4 * isa.lanes * v).load(F32 * isa.lanes)
                    weight = exp2(score - largest[v], short=True).fma(255.0, ROUND)
                    four.append(weight.bitcast(I32 * isa.lanes))
                quad = low_bytes(four)
                (self.scores + key * block + 4 * isa.lanes * v).store(quad)
                sums[v].set(isa.dot(sums[v].get(), isa.prepare(quad), ones))
        return [cell.get().convert_signed(F32).reciprocal() for cell in sums]

    def collect(self, block: int, column: Value, totals: list[Value]) -> None:
        """Weights times values, four features at a time."""
        k, isa, a, count = self.kernel, self.isa, self.a, self.isa.vectors(block)
        number = I32 if self.spec.integers else F32
        bytes_each = 1 if self.spec.integers else 4
        step = 4 if self.spec.integers else 1
        values = a.load("v") + self.head * a.load("size") * a.load("v_row") + self.first * bytes_each
        with k.loop(0, a.load("size"), 4) as feature:
            sums = [k.variables(count, number * isa.lanes) for _ in range(4)]
            with k.loop(0, self.keys, step) as key:
                place = self.scores + key * (4 * block // step)
                loaded = [(place + 4 * isa.lanes * v).load(number * isa.lanes) for v in range(count)]
                rows = [values + (feature + i) * a.load("v_row") + key * bytes_each for i in range(4)]
                outer(isa, sums, loaded, [row.load(number) for row in rows])
            for i, cells in enumerate(sums):
                stage = k.scratch + (feature + i) * (WIDE * bytes_each) + column * bytes_each
                for v, cell in enumerate(cells):
                    y = cell.get().convert_signed(F32) * totals[v]
                    if self.spec.integers:
                        gain = (a.load("gain") + (self.head * a.load("size") + feature + i) * 4).load(F32)
                        y = y.fma(gain, a.load("zero").load(F32))
                        whole = y.maximum(0.0).minimum(255.0) + ROUND
                        (stage + isa.lanes * v).store(whole.bitcast(I32 * isa.lanes).truncate(I8))
                    else:
                        (stage + 4 * isa.lanes * v).store(y)


def _flush(k: Kernel, isa: Isa, a: Arguments, integers: bool, tile: Value, head: Value, width: Value) -> None:
    """Copies the outputs of one head into the tile: as floats, or as bytes in rows or int8x4, whichever has an address."""

    def body(block: int, start: Value) -> None:
        with k.loop(0, a.load("size"), 4) as local:
            feature = head * a.load("size") + local
            if integers:
                store_bytes(block, start, local, feature)
            else:
                store_floats(block, start, local, feature)

    def store_floats(block: int, start: Value, local: Value, feature: Value) -> None:
        for i in range(4):
            for v in range(isa.vectors(block)):
                at = start * 4 + 4 * isa.lanes * v
                row = (k.scratch + (local + i) * (4 * WIDE) + at).load(F32 * isa.lanes)
                (a.load("floats") + tile * a.load("y_step") + (feature + i) * (4 * TILE) + at).store(row)

    def store_bytes(block: int, start: Value, local: Value, feature: Value) -> None:
        rows = [ordered(isa, (k.scratch + (local + i) * WIDE + start).load(I8 * block)) for i in range(4)]
        with k.if_(a.load("rows").compare_signed("!=", 0)):
            for i, row in enumerate(rows):
                (a.load("rows") + tile * a.load("y_step") + (feature + i) * TILE + start).store(row)
        with k.if_(a.load("int8x4").compare_signed("!=", 0)):
            for v, words in enumerate(quads_of(isa, rows)):
                to = a.load("int8x4") + tile * a.load("y_step") + feature * TILE + start * 4
                (to + 4 * isa.lanes * v).store(words)

    each_block(k, isa, width, body)
