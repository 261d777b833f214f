"""Batch planning: where the tokens of packed sequences lie in tiles, and which parts of sequences each tile attends to.

Sequences lie one after the other without padding. Tiles hold up to 64 tokens, cut at multiples of 16, as equal as possible and
at least one for each thread if there are enough tokens. A *segment* is the part of a sequence whose queries lie in one tile.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.kernels.attention import SEGMENT
from prunus.runtime.kernels.step import TILE

__all__ = ["BatchPlan", "plan_batch"]

Array = NDArray[Any]
CUT = 16
"""Tiles begin at multiples of this many tokens: kernels compute as many at a time."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Where tokens lie."""

    starts: Array
    """int64 ``[tiles]``: the first token of each."""
    widths: Array
    """int64 ``[tiles]``: tokens of each, a multiple of 16; the last ones may hold nothing."""
    segments: Array
    """``[segments]`` of ``SEGMENT``."""
    spans: Array
    """int64 ``[tiles + 1]``: the first segment of each tile, and the end."""
    places: Array
    """int64 ``[tokens]``: the place of each token among those of all tiles, 64 to a tile."""

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return len(self.starts)


def plan_batch(lengths: Array, threads: int) -> BatchPlan:
    """Cuts sequences of these lengths ``[sequences]``, each at least one, into tiles for so many threads."""
    tokens = int(lengths.sum())
    units = -(-tokens // CUT)
    tiles = max(-(-units // (TILE // CUT)), min(threads, units))
    edges = (np.arange(tiles + 1) * units // tiles) * CUT
    begins = np.concatenate([[0], np.cumsum(lengths)])
    cuts = np.unique(np.concatenate([begins, edges[1:-1]]))  # where sequences or tiles begin
    cuts = cuts[cuts <= tokens]
    sequence = np.searchsorted(begins, cuts[:-1], side="right") - 1
    segments = np.zeros(len(cuts) - 1, SEGMENT)
    segments["first_key"], segments["keys"] = begins[sequence], lengths[sequence]
    segments["first_query"], segments["queries"] = cuts[:-1], np.diff(cuts)
    token = np.arange(tokens)
    tile = np.searchsorted(edges, token, side="right") - 1
    places = tile * TILE + token - edges[tile]
    return BatchPlan(edges[:-1], np.diff(edges), segments, np.searchsorted(cuts[:-1], edges), places)
