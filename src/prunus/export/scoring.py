"""A task's official metrics of a packed model: the same features, the same score, another engine."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.engine import Engine
from prunus.tasks.base import Feature

__all__ = ["agreement", "engine_outputs"]

Array = NDArray[Any]
NOWHERE = float(np.finfo(np.float32).min)  # an answer cannot start in padding
AT_ONCE = 256


def engine_outputs(
    engine: Engine, features: Sequence[Feature], progress: Callable[[int, int], None] | None = None
) -> list[Array]:
    """``[logits]`` with ``[rows, classes]``, or ``[start, end]`` padded to the longest row, in the order of ``features``."""
    longest = max(len(feature["input_ids"]) for feature in features)
    rows: list[Array] = []
    for begin in range(0, len(features), AT_ONCE):
        part = [features[i] for i in range(begin, min(begin + AT_ONCE, len(features)))]
        types = [np.array(feature["token_type_ids"]) for feature in part] if "token_type_ids" in part[0] else None
        states = engine.states([np.array(feature["input_ids"]) for feature in part], types)
        if engine.head.kind == "sequence":
            rows += list(engine.head(np.stack([state[0] for state in states])))
        else:
            for state in states:
                row = np.full((2, longest), NOWHERE, np.float32)
                row[:, : len(state)] = engine.head(state).T
                rows.append(row)
        if progress is not None:
            progress(begin + len(part), len(features))
    logits = np.stack(rows)
    return [logits] if engine.head.kind == "sequence" else [logits[:, 0], logits[:, 1]]


def agreement(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Share of rows whose highest output (of answers: start and end) is the same."""
    same = np.ones(len(first[0]), bool)
    for a, b in zip(first, second, strict=True):
        same &= a.argmax(-1) == b.argmax(-1)
    return float(same.mean())
