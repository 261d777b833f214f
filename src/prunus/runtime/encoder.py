"""An encoder as a program of kernels: post-norm transformer layers over packed tokens.

    x <- norm(word[ids] + position[positions] + type[types]), projected where embeddings are narrower than the layers
    each layer:  x <- norm(x + out(attend(query(x), key(x), value(x))))
                 x <- norm(x + down(act(up(x))))

Tokens of all sequences lie one after the other, without padding, and are cut into tiles of up to 64. A thread owns tiles; what
one tile needs of another is only keys and values, so the threads meet once a layer, before attention (keys and values of one
layer may still be read while the next one's are written: there are two of each). Where there are fewer tiles than threads
the threads share each layer's outputs instead, and meet before every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.convert import Model
from prunus.runtime.ir_builder import Kernel
from prunus.runtime.isa import Isa
from prunus.runtime.jit import Code, load
from prunus.runtime.kernels.attention import ATTEND, attend, scratch_bytes
from prunus.runtime.kernels.drive import HEAD, drive
from prunus.runtime.kernels.linear import ARGUMENTS, TILE, linear
from prunus.runtime.kernels.norm import EMBED, NORMALIZE, READ, embed, normalize, read
from prunus.runtime.pack import Packed, pack
from prunus.runtime.thread_pool import Team, aligned, table_of

__all__ = ["Encoder"]

Array = NDArray[Any]
NAMES = ("query", "key", "value")


@dataclass(frozen=True)
class Step:
    """One kernel of the program: what it is called with, and how it is shared."""

    kernel: str
    table: Array
    groups: int
    """Groups of outputs, or heads, that threads may share; 1 where tiles alone can be shared."""
    meet: bool
    """Whether all tiles must be done with the step before."""


class Arena:
    """Memory for ``capacity`` tokens and the program that uses it."""

    def __init__(self, model: Model, code: Code, capacity: int, threads: int) -> None:
        self.model, self.capacity = model, capacity
        tiles = max(threads, capacity // TILE + 1)
        hidden = model.shape.hidden
        inner = max(padded(layer["up"].shape[0]) for layer in model.layers)
        attended = max(layer["query"].shape[0] for layer in model.layers)
        self.widths, self.starts = np.zeros(tiles, np.int64), np.zeros(tiles, np.int64)
        self.spans = np.zeros(tiles + 1, np.int64)
        self.segments = np.zeros((capacity + tiles, 4), np.int64)
        self.ids = np.zeros((3, tiles, TILE), np.int32)
        self.row = capacity + TILE + 16  # of q, k, v: never a multiple of a large power of two
        self.output = aligned((self.row, hidden), np.float32)
        self.x = aligned((tiles, hidden, TILE), np.float32)
        number = np.uint8 if model.integers else np.float32
        self.buffers = {"x": self.x, "inner": aligned((tiles, inner, TILE), number)}
        for layout in ("rows", "mixed") if model.integers else ():
            self.buffers[layout] = aligned((tiles, hidden, TILE), np.uint8)
            self.buffers["context_" + layout] = aligned((tiles, attended, TILE), np.uint8)
        if not model.integers:
            self.buffers["context"] = aligned((tiles, attended, TILE), np.float32)
        self.qkv = [[aligned((attended, self.row), number) for _ in range(3)] for _ in range(2)]
        self.narrow = aligned((tiles, model.shape.narrow, TILE), np.float32)
        self.laid, self.tiles, self.places = b"", 0, np.zeros(0, np.int64)
        self.keep: list[object] = []
        self.steps: list[Step] = []
        self._build()
        self._finish_program(code, threads)

    @property
    def bytes(self) -> int:
        held = [self.output, self.ids, self.segments, self.narrow, *self.buffers.values(), *self.qkv[0], *self.qkv[1]]
        return sum(array.nbytes for array in held)

    def table(self, names: tuple[str, ...], **values: int | Array) -> Array:
        """A table of arguments; arrays are given by address and kept alive."""
        self.keep.append(list(values.values()))
        return table_of(names, {"widths": self.widths, "starts": self.starts} | values)

    def _bytes(self, name: str, readers: Sequence[Packed]) -> tuple[str, dict[str, int | Array]]:
        """How the hidden states are stored for the layers that read them: which layouts, and the table's part of it."""
        if not self.model.integers:
            return "00", {}
        rows = any(reader.kind == "gather" for reader in readers)
        mixed = any(reader.kind != "gather" for reader in readers)
        t = self.model.tensors
        where: dict[str, int | Array] = {"rows": self.buffers["rows"], "mixed": self.buffers["mixed"]}
        where |= {"inverse": t[f"{name}.inverse"], "zero": t[f"{name}.zero"]} if readers else {}
        return f"{rows:d}{mixed:d}", where

    def _norm(self, name: str, bytes_name: str = "", readers: Sequence[Packed] = (), x: Array | None = None) -> Step:
        """Layer normalization of x, and bytes for who reads it; without a name, the bytes alone."""
        t, x = self.model.tensors, self.x if x is None else x
        layouts, where = self._bytes(bytes_name, readers)
        if name:
            where |= {"gamma": t[f"{name}.gamma"], "beta": t[f"{name}.beta"]}
        table = self.table(
            NORMALIZE,
            x=x,
            x_step=x[0].nbytes,
            features=x.shape[1],
            epsilon=np.array([self.model.shape.epsilon], np.float32),
            y_step=x.shape[1] * TILE,
            **where,
        )
        return Step(f"{'normalize' if name else 'store'}_{layouts}", table, 1, False)

    def _linear(
        self, packed: Packed, finish: str, source: Array, y: Array, activation: str = "none", **more: int | Array
    ) -> Step:
        table = self.table(
            ARGUMENTS,
            x=source,
            x_step=source[0].nbytes,
            first=packed.first,
            records=packed.records,
            scale=packed.scale,
            bias=packed.bias,
            y=y,
            y_step=y[0].nbytes,
            **more,
        )
        return Step(f"linear_{packed.kind}_{finish}_{activation}", table, padded(packed.shape[0]) // 4, False)

    def _source(self, name: str, reader: Packed) -> Array:
        """The buffer that a layer reads: hidden states or context, in its layout."""
        if not self.model.integers:
            return self.buffers[name]
        layout = "rows" if reader.kind == "gather" else "mixed"
        return self.buffers[layout if name == "x" else f"{name}_{layout}"]

    def _build(self) -> None:
        model, s, byte = self.model, self.model.shape, self.model.integers
        t, layers, add = model.tensors, model.layers, self.steps.append
        words = {"words": self.ids[0], "positions": self.ids[1], "types": self.ids[2]}
        tables = {name: t[f"embeddings.{name}"] for name in ("word", "position", "type")}
        x = self.narrow if s.narrow else self.x
        entry = self.table(EMBED, x=x, x_step=x[0].nbytes, features=x.shape[1], **words, **tables)
        add(Step("embed", entry, 1, False))
        first = [layers[0][name] for name in NAMES]
        if s.narrow:
            add(self._norm("embeddings", x=x))
            projection = pack("columns", t["projection.weight"], t["projection.bias"])
            add(self._linear(projection, "keep", x, self.x))
        add(self._norm("" if s.narrow else "embeddings", "layers.0.input", first))
        for i, layer in enumerate(layers):
            key, own = f"layers.{i}.", self.qkv[i % 2]
            for name, finish, y in zip(
                NAMES, ("queries", "keys", "values") if byte else ("wide",) * 3, own, strict=True
            ):
                row = self.row * (1 if finish == "values" else 4)
                add(self._linear(layer[name], finish, self._source("x", layer[name]), y, y_row=row))
            add(self._attention(key, layer, own))
            add(self._linear(layer["out"], "add", self._source("context", layer["out"]), self.x))
            up, down = layer["up"], layer["down"]
            add(self._norm(key + "attention_norm", key + "middle", [up]))
            finish, more = "keep", dict[str, int | Array]()
            if byte:
                finish = "rows" if down.kind == "gather" else "mixed"
                more = {"inverse": t[key + "inner.inverse"], "zero": t[key + "inner.zero"]}
            add(self._linear(up, finish, self._source("x", up), self.buffers["inner"], s.activation, **more))
            add(self._linear(down, "add", self.buffers["inner"], self.x))
            following = [layers[i + 1][name] for name in NAMES] if i + 1 < len(layers) else []
            add(self._norm(key + "output_norm", f"layers.{i + 1}.input", following))
        reading = self.table(
            READ, x=self.x, x_step=self.x[0].nbytes, features=s.hidden, y=self.output, y_row=s.hidden * 4
        )
        add(Step("read", reading, 1, False))

    def _attention(self, key: str, layer: dict[str, Packed], own: list[Array]) -> Step:
        model, s, byte = self.model, self.model.shape, self.model.integers
        t, out = model.tensors, layer["out"]
        context = self._source("context", out)
        more: dict[str, int | Array] = {"floats": context}
        if byte:
            more = {"gain": t[key + "attention.gain"], "zero": t[key + "attention.zero"]}
            more["rows" if out.kind == "gather" else "mixed"] = context
        if s.reach:
            more |= {"bias": t["relative"], "bias_row": t["relative"][0].nbytes, "reach": s.reach}
        table = self.table(
            ATTEND,
            spans=self.spans,
            segments=self.segments,
            q=own[0],
            k=own[1],
            v=own[2],
            row=self.row * 4,
            v_row=self.row if byte else self.row * 4,
            size=s.size,
            scale=t[key + "attention.scale"],
            y_step=context[0].nbytes,
            **more,
        )
        return Step(attention_name(model), table, layer["query"].shape[0] // s.size, True)

    def _finish_program(self, code: Code, threads: int) -> None:
        program = np.zeros((len(self.steps), HEAD + 4 * threads), np.int64)
        for place, step in zip(program, self.steps, strict=True):
            place[:HEAD] = code.addresses[step.kernel], step.table.ctypes.data, step.meet
        groups = np.array([step.groups for step in self.steps])
        self.by_tiles, self.by_groups = program, program.copy()
        self.by_tiles[:, HEAD + 3 :: 4] = groups[:, None]
        self.by_groups[:, 2] = 1
        for thread in range(threads):
            begin, end = thread * groups // threads, (thread + 1) * groups // threads
            alone = groups == 1
            self.by_groups[:, HEAD + 4 * thread + 2] = np.where(alone, 0, begin)
            self.by_groups[:, HEAD + 4 * thread + 3] = np.where(alone, int(thread == 0), end)

    def lay(self, lengths: Array, inputs: Array, threads: int) -> Array:
        """Places tokens in tiles; returns the program for them.

        Args:
            lengths: ``[sequences]``, each at least one.
            inputs: ``[3, tokens]``: words, positions, types.
            threads: how many there are.

        """
        tokens = int(lengths.sum())
        if lengths.tobytes() != self.laid:
            self._cut(lengths, tokens, threads)
            self.laid = lengths.tobytes()
        self.ids.reshape(3, -1)[:, self.places] = inputs
        return self.by_groups if self.tiles < threads else self.by_tiles

    def _cut(self, lengths: Array, tokens: int, threads: int) -> None:
        """Tiles, segments and shares of the threads for sequences of these lengths."""
        vectors = -(-tokens // 16)
        tiles = max(-(-vectors // 4), min(threads, vectors))
        edges = (np.arange(tiles + 1) * vectors // tiles) * 16
        self.starts[:tiles], self.widths[:tiles] = edges[:-1], np.diff(edges)
        # segments: cut sequences where tiles end
        begins = np.concatenate([[0], np.cumsum(lengths)])
        cuts = np.unique(np.concatenate([begins, edges[1:-1]]))
        cuts = cuts[cuts <= tokens]
        owner = np.searchsorted(begins, cuts[:-1], side="right") - 1
        count = len(cuts) - 1
        self.segments[:count] = np.stack([begins[owner], lengths[owner], cuts[:-1], np.diff(cuts)], axis=1)
        self.spans[: tiles + 1] = np.searchsorted(cuts[:-1], edges)
        token = np.arange(tokens)
        tile = np.searchsorted(edges, token, side="right") - 1
        self.tiles, self.places = tiles, tile * TILE + token - edges[tile]
        if tiles < threads:
            program = self.by_groups
            program[:, HEAD::4], program[:, HEAD + 1 :: 4] = 0, tiles
            program[:, HEAD + 1 :: 4][program[:, HEAD + 2 :: 4] == program[:, HEAD + 3 :: 4]] = 0  # nothing to do
            return
        shares = np.arange(threads + 1) * tiles // threads
        self.by_tiles[:, HEAD::4], self.by_tiles[:, HEAD + 1 :: 4] = shares[:-1], shares[1:]


class Encoder:
    """Runs the program of a model with a team of threads."""

    def __init__(self, model: Model, isa: Isa, threads: int) -> None:
        self.model, self.isa = model, isa
        self._code = load(isa, builders(isa, model))
        self.team = Team(self._code, threads)
        self._arena: Arena | None = None

    @property
    def bytes(self) -> int:
        """Working memory now held."""
        return self.team.bytes + (self._arena.bytes if self._arena else 0)

    def run(self, lengths: Array, inputs: Array) -> Array:
        """Hidden states ``[tokens, hidden]`` of the last layer, of sequences that lie one after the other.

        Args:
            lengths: ``[sequences]``, each at least one.
            inputs: ``[3, tokens]``: words, positions, types, all in range.

        """
        tokens = int(lengths.sum())
        with self.team:
            if self._arena is None or self._arena.capacity < tokens:
                capacity = 1 << max(7, (tokens - 1).bit_length())
                self._arena = Arena(self.model, self._code, capacity, self.team.threads)
            arena = self._arena
            program = arena.lay(lengths, inputs, self.team.threads)
            self.team.run(program, scratch_bytes(int(lengths.max()), self.model.shape.size))
            return arena.output[:tokens].copy()


def padded(outputs: int) -> int:
    return outputs + -outputs % 4


def attention_name(model: Model) -> str:
    return f"attend_{'int8' if model.integers else 'float32'}{'_bias' if model.shape.reach else ''}"


def builders(isa: Isa, model: Model) -> dict[str, Callable[[], Kernel]]:
    """The kernels that an encoder needs, by name."""
    integers, biased = model.integers, bool(model.shape.reach)
    names: dict[str, Callable[[], Kernel]] = {"drive": drive, "embed": partial(embed, isa), "read": partial(read, isa)}
    for rows in (False, True):
        for mixed in (False, True):
            names[f"normalize_{rows:d}{mixed:d}"] = partial(normalize, isa, rows, mixed)
            if model.shape.narrow:
                names[f"store_{rows:d}{mixed:d}"] = partial(normalize, isa, rows, mixed, plain=True)
                names["linear_columns_keep_none"] = partial(linear, isa, "columns", "keep")
    names[attention_name(model)] = partial(attend, isa, integers, biased)
    for layer in model.layers:
        for role, packed in layer.items():
            activation = model.shape.activation if role == "up" else "none"
            if not integers:
                finish = {"out": "add", "down": "add", "up": "keep"}.get(role, "wide")
            else:
                inner = "rows" if layer["down"].kind == "gather" else "mixed"
                finish = {"query": "queries", "key": "keys", "value": "values", "up": inner}.get(role, "add")
            name = f"linear_{packed.kind}_{finish}_{activation}"
            names[name] = partial(linear, isa, packed.kind, finish, activation)
    return names
