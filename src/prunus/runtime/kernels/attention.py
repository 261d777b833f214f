"""Attention of packed sequences: softmax(q k^T * scale + bias) v, one head and at most 64 queries of one sequence at a time.

Lanes run over queries, so maximum and sum of a softmax need no step across lanes. Sequences lie one after the other without
padding; a *segment* is the part of a sequence whose queries lie in one tile: (first key, keys, first query, queries).

    int8      s[j, t] = scale * (sum of (q + 128) k - 128 * sum of k[j])
              p[j, t] = round(255 * exp(s[j, t] - max_j s[j, t]))                 uint8
              y[f, t] = sum_j p[j, t] v[f, j] * gain[f] / sum_j p[j, t] + zero    the weights add up to one exactly
    float32   the same without rounding

``scale`` has s_q s_k / sqrt(size of a head) in it, one number a head; ``gain`` s_v / s_y, one number a feature. ``bias``
(relative positions; MPNet) is one number for each distance: bias[head, query - key + reach].
"""

from dataclasses import dataclass

from prunus.runtime.ir_builder import F32, I8, I32, I64, Cell, Kernel, Value
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.linear import SIGNATURE, TILE, Arguments, each_block
from prunus.runtime.kernels.maths import LOG2_E, ROUND, exp2, low_bytes, ordered, outer, quads_of

__all__ = ["ATTEND", "SEGMENT", "attend", "scratch_bytes"]

ATTEND = (
    *("widths", "starts", "spans", "segments", "q", "k", "v", "row", "v_row", "size"),
    *("scale", "gain", "zero", "rows", "mixed", "floats", "y_step", "bias", "bias_row", "reach"),
)
SEGMENT = 32
"""Bytes of a segment: four 64-bit numbers."""
WIDE = 2 * TILE
"""Tokens in a row of the stage: a tile, and what a last block may run over its end."""
NEVER = -1e30


def scratch_bytes(longest: int, size: int) -> int:
    """What one thread needs: the stage of one head, sums of keys, scores."""
    return 4 * WIDE * size + 4 * (longest + 64) * (TILE + 1) + 256


def attend(isa: Isa, integers: bool, biased: bool) -> Kernel:
    """Attention of tiles [t0, t1) and heads [g0, g1)."""
    name = f"attend_{'int8' if integers else 'float32'}{'_bias' if biased else ''}"
    with Kernel(name, SIGNATURE) as k:
        a = Arguments(k, k.table, ATTEND)
        for tile in k.range(k.t0, k.t1):
            begin, end = ((a.spans + (tile + i) * 8).load(I64) for i in (0, 1))
            width, start = ((table + tile * 8).load(I64) for table in (a.widths, a.starts))
            for head in k.range(k.g0, k.g1):
                for segment in k.range(begin, end):
                    first, keys, query, count = ((a.segments + segment * SEGMENT + 8 * i).load(I64) for i in range(4))
                    part = Part(k, isa, a, integers, biased, head, first, keys)
                    part.sum_keys()

                    def body(
                        block: int, at: Value, part: Part = part, query: Value = query, start: Value = start
                    ) -> None:
                        part.attend(block, query + at, query + at - start)

                    each_block(k, isa, ((count + 15).shr(4)) << 4, body)
                flush(k, isa, a, integers, tile, head, width)
    return k


@dataclass(frozen=True)
class Part:
    """One head of one sequence; writes what a block of its queries needs."""

    kernel: Kernel
    isa: Isa
    a: Arguments
    integers: bool
    biased: bool
    head: Value
    first: Value
    keys: Value

    @property
    def rows(self) -> Value:
        """Rows of q and k in a head: quads of features, or features."""
        return self.a.size.shr(2) if self.integers else self.a.size

    @property
    def key_sums(self) -> Value:
        return self.kernel.scratch + self.a.size * (4 * WIDE)

    @property
    def scores(self) -> Value:
        return self.key_sums + (self.keys + 64) * 4

    def sum_keys(self) -> None:
        """-128 * sum of k[j] for each key, for queries that carry 128 too much."""
        if not self.integers:
            return
        k, isa = self.kernel, self.isa
        base = self.a.k + self.head * self.rows * self.a.row + self.first * 4
        much = isa.prepare(k.constant(I32 * isa.lanes, -0x7F7F7F80))  # four bytes of 128
        for key in k.range(0, self.keys, isa.lanes):
            total = k.cell(I32 * isa.lanes)
            for row in k.range(0, self.rows):
                four = (base + row * self.a.row + key * 4).load(I32 * isa.lanes)
                total.set(isa.dot(total.get(), much, isa.weight(four)))
            (self.key_sums + key * 4).store(total.get() * -1)

    def attend(self, block: int, query: Value, column: Value) -> None:
        """Queries [query, query + block): their outputs go to the stage, at ``column``."""
        k, keys = self.kernel, self.keys
        count = self.isa.vectors(block)
        largest = k.cells(count, F32 * self.isa.lanes, NEVER)
        whole = (keys.shr(2)) << 2
        for key in k.range(0, whole, 4):
            self.score(block, query, key, largest, last=False)
        for _ in k.when((keys & 3).compare("!=", 0)):
            self.score(block, query, whole, largest, last=True)
        totals = self.weigh(block, [cell.get() for cell in largest])
        self.collect(block, column, totals)

    def score(self, block: int, query: Value, key: Value, largest: list[Cell], last: bool) -> None:
        """Scores of four keys; of the last four, those behind the end count for nothing."""
        k, isa, a = self.kernel, self.isa, self.a
        count, number = isa.vectors(block), I32 if self.integers else F32
        head = self.head * self.rows * a.row
        q, keys = a.q + head + query * 4, a.k + head + (self.first + key) * 4
        sums = [k.cells(count, number * isa.lanes) for _ in range(4)]
        if self.integers:
            for i, cells in enumerate(sums):
                start = (self.key_sums + (key + i) * 4).load(I32).splat(isa.lanes)
                for cell in cells:
                    cell.set(start)
        for row in k.range(0, self.rows):
            loaded = [(q + row * a.row + 4 * isa.lanes * v).load(number * isa.lanes) for v in range(count)]
            outer(isa, sums, loaded, [(keys + row * a.row + 4 * i).load(number) for i in range(4)])
        scale = (a.scale + self.head * 4).load(F32) * LOG2_E  # scores are powers of two
        for i, cells in enumerate(sums):
            inside = (key + i).compare("<", self.keys)
            for v, cell in enumerate(cells):
                score = cell.get().to(F32) * scale
                if self.biased:
                    distance = query + isa.lanes * v - (self.first + key + i) + a.reach
                    score = (a.bias + self.head * a.bias_row + distance * 4).load(score.type).fma(LOG2_E, score)
                if last:
                    score = inside.select(score, NEVER)
                (self.scores + (key + i) * (4 * block) + 4 * isa.lanes * v).store(score)
                largest[v].set(score.maximum(largest[v].get()))

    def weigh(self, block: int, largest: list[Value]) -> list[Value]:
        """Scores -> weights in their place; returns 1 / their sum."""
        k, isa, count = self.kernel, self.isa, self.isa.vectors(block)
        if not self.integers:
            totals = k.cells(count, F32 * isa.lanes)
            for key in k.range(0, self.keys):
                for v in range(count):
                    place = self.scores + key * (4 * block) + 4 * isa.lanes * v
                    weight = exp2(place.load(F32 * isa.lanes) - largest[v], short=False)
                    place.store(weight)
                    totals[v].add(weight)
            return [cell.get().reciprocal() for cell in totals]
        sums = k.cells(count, I32 * isa.lanes)
        ones = isa.weight(k.constant(I32, 0x01010101))
        for key in k.range(0, self.keys, 4):
            for v in range(count):
                four = []
                for i in range(4):
                    score = (self.scores + (key + i) * (4 * block) + 4 * isa.lanes * v).load(F32 * isa.lanes)
                    weight = exp2(score - largest[v], short=True).fma(255.0, ROUND)
                    four.append(weight.as_(I32 * isa.lanes))
                quad = low_bytes(four)
                (self.scores + key * block + 4 * isa.lanes * v).store(quad)
                sums[v].set(isa.dot(sums[v].get(), isa.prepare(quad), ones))
        return [cell.get().to(F32).reciprocal() for cell in sums]

    def collect(self, block: int, column: Value, totals: list[Value]) -> None:
        """Weights times values, four features at a time."""
        k, isa, a, count = self.kernel, self.isa, self.a, self.isa.vectors(block)
        number = I32 if self.integers else F32
        bytes_each = 1 if self.integers else 4
        step = 4 if self.integers else 1
        values = a.v + self.head * a.size * a.v_row + self.first * bytes_each
        for feature in k.range(0, a.size, 4):
            sums = [k.cells(count, number * isa.lanes) for _ in range(4)]
            for key in k.range(0, self.keys, step):
                place = self.scores + key * (4 * block // step)
                loaded = [(place + 4 * isa.lanes * v).load(number * isa.lanes) for v in range(count)]
                rows = [values + (feature + i) * a.v_row + key * bytes_each for i in range(4)]
                outer(isa, sums, loaded, [row.load(number) for row in rows])
            for i, cells in enumerate(sums):
                stage = k.scratch + (feature + i) * (WIDE * bytes_each) + column * bytes_each
                for v, cell in enumerate(cells):
                    y = cell.get().to(F32) * totals[v]
                    if self.integers:
                        gain = (a.gain + (self.head * a.size + feature + i) * 4).load(F32)
                        y = y.fma(gain, a.zero.load(F32))
                        whole = y.maximum(0.0).minimum(255.0) + ROUND
                        (stage + isa.lanes * v).store(whole.as_(I32 * isa.lanes).to(I8))
                    else:
                        (stage + 4 * isa.lanes * v).store(y)


def flush(k: Kernel, isa: Isa, a: Arguments, integers: bool, tile: Value, head: Value, width: Value) -> None:
    """The stage of one head -> its rows in the tile: as floats, or as bytes in rows or quads, whichever has an address."""

    def body(block: int, start: Value) -> None:
        for local in k.range(0, a.size, 4):
            feature = head * a.size + local
            if not integers:
                for i in range(4):
                    for v in range(isa.vectors(block)):
                        at = start * 4 + 4 * isa.lanes * v
                        row = (k.scratch + (local + i) * (4 * WIDE) + at).load(F32 * isa.lanes)
                        (a.floats + tile * a.y_step + (feature + i) * (4 * TILE) + at).store(row)
                continue
            rows = [ordered(isa, (k.scratch + (local + i) * WIDE + start).load(I8 * block)) for i in range(4)]
            for _ in k.when(a.rows.compare("!=", 0)):
                for i, row in enumerate(rows):
                    (a.rows + tile * a.y_step + (feature + i) * TILE + start).store(row)
            for _ in k.when(a.mixed.compare("!=", 0)):
                for v, quad in enumerate(quads_of(isa, rows)):
                    (a.mixed + tile * a.y_step + feature * TILE + start * 4 + 4 * isa.lanes * v).store(quad)

    each_block(k, isa, width, body)
