"""The working memory of an encoder: buffers for a number of tokens, and the batch that lies in them.

x, embeddings         float32 [tiles, features, 64]     hidden states, and embeddings narrower than them
x_rows, x_int8x4      uint8   [tiles, features, 64]     bytes of x, in the layouts that linear layers read
context, context_*    the same of the attention's outputs; float32 models have ``context`` alone
intermediate          the same of the intermediate activations of the feed-forward layers
queries_N, keys_N     [features / 4, tokens, 4] of bytes or [features, tokens] of float32, for layers of parity N
values_N              [features, tokens]
word_ids, position_ids, type_ids     int32 [tiles, 64]           inputs
widths, starts, spans, segments                         see ``batch_plan``
output                float32 [tokens, features]
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.batch_plan import plan_batch
from prunus.runtime.convert import Model
from prunus.runtime.kernels.attention import SEGMENT
from prunus.runtime.kernels.step import TILE
from prunus.runtime.thread_pool import aligned

__all__ = ["Workspace", "padded"]

Array = NDArray[Any]


def padded(outputs: int) -> int:
    """Outputs of a packed layer, which come in groups of four."""
    return outputs + -outputs % 4


class Workspace:
    """Memory for ``capacity`` tokens, by name in ``buffers``."""

    def __init__(self, model: Model, capacity: int, threads: int) -> None:
        self.capacity, self._threads = capacity, threads
        tiles = max(threads, capacity // TILE + 1)
        hidden = model.shape.hidden
        intermediate_size = max(padded(layer["up"].shape[0]) for layer in model.layers)
        attended = max(layer["query"].shape[0] for layer in model.layers)
        row = capacity + TILE + 16  # tokens of queries, keys, values: never a multiple of a large power of two
        number = np.uint8 if model.integers else np.float32
        self._ids = np.zeros((3, tiles, TILE), np.int32)
        self.output = aligned((row, hidden), np.float32)
        self.buffers: dict[str, Array] = {
            **{name: np.zeros(tiles, np.int64) for name in ("widths", "starts")},
            "spans": np.zeros(tiles + 1, np.int64),
            "segments": np.zeros(capacity + tiles, SEGMENT),
            **dict(zip(("word_ids", "position_ids", "type_ids"), self._ids, strict=True)),
            "output": self.output,
            "x": aligned((tiles, hidden, TILE), np.float32),
            "intermediate": aligned((tiles, intermediate_size, TILE), number),
            "embeddings": aligned((tiles, model.shape.embedding_size, TILE), np.float32),
        }
        for layout in ("rows", "int8x4") if model.integers else ():
            self.buffers[f"x_{layout}"] = aligned((tiles, hidden, TILE), np.uint8)
            self.buffers[f"context_{layout}"] = aligned((tiles, attended, TILE), np.uint8)
        if not model.integers:
            self.buffers["context"] = aligned((tiles, attended, TILE), np.float32)
        packed = (attended // 4, row, 4) if model.integers else (attended, row)
        for parity in (0, 1):
            self.buffers[f"queries_{parity}"] = aligned(packed, number)
            self.buffers[f"keys_{parity}"] = aligned(packed, number)
            self.buffers[f"values_{parity}"] = aligned((attended, row), number)
        self.tiles = 0
        self._lengths, self._places = b"", np.zeros(0, np.int64)

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(array.nbytes for array in self.buffers.values())

    def place(self, lengths: Array, inputs: Array) -> bool:
        """Places the tokens of a batch in tiles; returns whether sequences of other lengths lay there before.

        Args:
            lengths: ``[sequences]``, each at least one, ``capacity`` together.
            inputs: ``[3, tokens]``: ids of words, positions and types.

        """
        changed = lengths.tobytes() != self._lengths
        if changed:
            self._plan(lengths)
        self._ids.reshape(3, -1)[:, self._places] = inputs
        return changed

    def _plan(self, lengths: Array) -> None:
        plan, to = plan_batch(lengths, self._threads), self.buffers
        to["starts"][: plan.tiles], to["widths"][: plan.tiles] = plan.starts, plan.widths
        to["segments"][: len(plan.segments)] = plan.segments
        to["spans"][: plan.tiles + 1] = plan.spans
        self.tiles, self._places, self._lengths = plan.tiles, plan.places, lengths.tobytes()
