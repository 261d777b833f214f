"""Ranges that quantization-aware training learned, under canonical names: they are used as they are.

``ranges.safetensors`` names them after the model's layers (``quantization.to_float`` wrote it): ``LAYER.weight_range``
``[rows, 1]``, ``LAYER.bits``, ``LAYER.input_range.low`` and ``.high`` or ``.bound``, ``LAYER.output_range.bound``.

Steps and zero points are those of ``prunus.grid``, in float32 as in training. A signed activation is stored as an
unsigned byte, with the zero point 128.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from prunus.errors import EngineError, Problem
from prunus.grid import byte_step_and_zero, symmetric_step
from prunus.runtime.families import Shape, encoder_of, layer_names, layer_prefix

__all__ = ["RANGES", "Learned", "read_learned"]

Array = NDArray[Any]
RANGES = "ranges.safetensors"
READS = {"query": "input", "out": "context", "up": "middle", "down": "intermediate"}
"""Which of a layer's tensors a role reads; key and value read what query reads."""


@dataclass(frozen=True)
class Learned:
    """Steps by canonical name; what was left in float has none."""

    weights: dict[str, Array]
    """``layers.N.ROLE`` -> ``[outputs]``."""
    inputs: dict[str, tuple[float, float]]
    """``layers.N.`` and ``input``, ``context``, ``middle``, ``intermediate`` -> step and zero."""
    outputs: dict[str, float]
    """``layers.N.query`` and ``key``."""


def read_learned(directory: Path, shape: Shape) -> Learned | None:
    """The learned ranges beside a model, or None where there are none.

    Raises:
        EngineError: a damaged file, or ranges that do not fit the model.

    """
    path = directory / RANGES
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise EngineError(Problem(str(path), str(error), "be a whole safetensors file")) from None
    bad = [name for name, value in tensors.items() if not np.isfinite(value.astype(np.float64)).all()]
    if bad:
        raise EngineError(*(Problem(f"{RANGES}: {name}", "NaN or infinity", "be finite") for name in bad[:20]))
    architecture, problems = encoder_of(shape.family)[0], list[Problem]()
    body = architecture.prefix + "."
    prefix = body if any(name.startswith(body) for name in tensors) else ""
    learned = Learned({}, {}, {})
    for i in range(shape.layers):
        for role, part in layer_names(architecture).items():
            name = f"{prefix}{layer_prefix(shape, i)}{part}"
            key = f"layers.{i}.{role}"
            weight_range = tensors.get(f"{name}.weight_range")
            if weight_range is None:
                problems.append(Problem(f"{RANGES}: {name}.weight_range", "nothing", "be there for every layer"))
                continue
            bits = int(tensors.get(f"{name}.bits", np.array(8)))
            learned.weights[key] = symmetric_step(weight_range.reshape(-1).astype(np.float32), bits)
            if role in READS:
                read = step_and_zero(tensors, f"{name}.input_range")
                if read is None:
                    problems.append(Problem(f"{RANGES}: {name}.input_range", "nothing", "be there for every layer"))
                else:
                    learned.inputs[f"layers.{i}.{READS[role]}"] = read
            bound = tensors.get(f"{name}.output_range.bound")
            if bound is not None:
                learned.outputs[key] = float(symmetric_step(np.float32(bound)))
    if problems:
        raise EngineError(*problems[:20])
    return learned


def step_and_zero(tensors: dict[str, Array], name: str) -> tuple[float, float] | None:
    bound, low, high = (tensors.get(f"{name}.{key}") for key in ("bound", "low", "high"))
    if bound is not None:
        return float(symmetric_step(np.float32(bound))), 128.0
    if low is None or high is None:
        return None
    step, zero = byte_step_and_zero(np.float32(low), np.float32(high))  # in training's precision: the same zero point
    return float(step), float(zero)
