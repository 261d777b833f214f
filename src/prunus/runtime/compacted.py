"""Compacted models: what ``config.json`` says is left of their layers, and layers that lost everything.

The kernels want at least one head and four neurons. A layer that lost all gets ones that do nothing: zeros that are read, a few
microseconds. Heads whose positions are their own (MPNet) go back to their places, zeros in those that went.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem

__all__ = ["filled", "layout_of"]

Array = NDArray[Any]


def layout_of(settings: dict[str, Any]) -> tuple[dict[str, list[int]], int]:
    """What is left of the layers of a compacted model, and how many features of a narrowed stream (0: all).

    Raises ``EngineError`` for what is no layout.
    """
    config = settings.get("quantization_config")
    if not isinstance(config, dict) or config.get("quant_method") != "prunus":
        return {}, 0
    layout, hidden = config.get("layout") or {}, config.get("hidden") or []
    numbers = [*layout.values(), hidden] if isinstance(layout, dict) else [None]
    if not all(isinstance(each, list) and all(type(j) is int and 0 <= j < 2**24 for j in each) for each in numbers):
        rule = "map layers to the numbers that are left"
        raise EngineError(Problem("config.json: quantization_config: layout", str(layout)[:60], rule))
    return layout, len(hidden)


def filled(
    state: dict[str, Array],
    names: dict[str, str],
    heads: list[int] | None,
    neurons: list[int] | None,
    sizes: tuple[int, int, int],
) -> dict[str, Array]:
    """The tensors of a checkpoint, with those of one layer filled up.

    Args:
        state: name -> tensor.
        names: ``query``, ``key``, ``value``, ``out``, ``up``, ``down`` -> name of the layer.
        heads: numbers of the heads that are left; None: all.
        neurons: the same of neurons.
        sizes: heads with positions of their own (0: they have none), features of a head, and of the stream.

    """
    placed, size, hidden = sizes
    state = dict(state)
    if heads is not None and (placed or not heads):
        count = placed or 1
        rows = [j * size + i for j in heads for i in range(size) if j < count]
        for role in ("query", "key", "value"):
            for part, width in (("weight", (hidden,)), ("bias", ())):
                state[f"{names[role]}.{part}"] = _spread(
                    state.get(f"{names[role]}.{part}"), (count * size, *width), rows
                )
        out_weight = state.get(f"{names['out']}.weight")
        spread = _spread(None if out_weight is None else out_weight.T, (count * size, hidden), rows)
        state[f"{names['out']}.weight"] = np.ascontiguousarray(spread.T)
    if neurons is not None and not neurons:
        state[f"{names['up']}.weight"] = np.zeros((4, hidden), np.float32)
        state[f"{names['up']}.bias"] = np.zeros(4, np.float32)
        state[f"{names['down']}.weight"] = np.zeros((hidden, 4), np.float32)
    return state


def _spread(tensor: Array | None, shape: tuple[int, ...], rows: list[int]) -> Array:
    """Zeros, with ``held`` in these rows; a tensor that does not fit is left for the check of shapes to name."""
    if tensor is not None and tensor.shape != (len(rows), *shape[1:]):
        return tensor
    full = np.zeros(shape, np.float32)
    if tensor is not None and rows:
        full[rows] = tensor
    return full
