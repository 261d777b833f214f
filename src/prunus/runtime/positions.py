"""The table of relative positions, which MPNet reads in buckets and the engine reads by distance."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["relative_table"]

Array = NDArray[Any]


def relative_table(weight: Array, heads: int, max_distance: int) -> Array:
    """T5's buckets (Raffel et al., 2020, section 2.1) as MPNet uses them, for each distance: ``[heads, 2 max_distance + 64]``.

    The last 64 are for lanes that run over the end of a sequence; what is computed there is thrown away.
    """
    buckets = len(weight)
    half = buckets // 2
    distance = np.arange(-max_distance, max_distance + 64)  # query - key
    away = np.abs(distance)
    exact = half // 2
    safe = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
    far = exact + (np.log(safe) / np.float32(math.log(128 / exact)) * (half - exact)).astype(np.int64)
    bucket = np.where(away < exact, away, np.minimum(far, half - 1)) + half * (distance < 0)
    return np.ascontiguousarray(weight[bucket].T[:heads], np.float32)
