"""Ranges that quantization-aware training learned, under canonical names: they are used as they are.

``ranges.safetensors`` names them after the model's layers (``quantization.strip`` wrote it): ``LAYER.weight_range``
``[rows, 1]``, ``LAYER.bits``, ``LAYER.input_range.low`` and ``.high`` or ``.bound``, ``LAYER.output_range.bound``.

    weights    step = range / 127 (of 7 bits: / 63)
    inputs     low, high: step = (high - low) / 255, zero = round(-low / step);   bound: step = bound / 127, zero = 128
    outputs    bound: step = bound / 127
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from prunus.errors import EngineError, Problem
from prunus.runtime.families import Shape, encoder_of, layer_names, layer_prefix

__all__ = ["RANGES", "Learned", "read_learned"]

Array = NDArray[Any]
RANGES = "ranges.safetensors"
READS = {"query": "input", "out": "context", "up": "middle", "down": "inner"}
"""Which of a layer's tensors a role reads; key and value read what query reads."""


@dataclass(frozen=True)
class Learned:
    """Steps by canonical name; what was left in float has none."""

    weights: dict[str, Array]
    """``layers.N.ROLE`` -> ``[outputs]``."""
    inputs: dict[str, tuple[float, float]]
    """``layers.N.`` and ``input``, ``context``, ``middle``, ``inner`` -> step and zero."""
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
            held = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise EngineError(Problem(str(path), str(error), "be a whole safetensors file")) from None
    bad = [name for name, value in held.items() if not np.isfinite(value.astype(np.float64)).all()]
    if bad:
        raise EngineError(*(Problem(f"{RANGES}: {name}", "NaN or infinity", "be finite") for name in bad[:20]))
    architecture, problems = encoder_of(shape.family)[0], list[Problem]()
    body = architecture.prefix + "."
    prefix = body if any(name.startswith(body) for name in held) else ""
    found = Learned({}, {}, {})
    for i in range(shape.layers):
        for role, part in layer_names(architecture).items():
            name = f"{prefix}{layer_prefix(shape, i)}{part}"
            key = f"layers.{i}.{role}"
            own = held.get(f"{name}.weight_range")
            if own is None:
                problems.append(Problem(f"{RANGES}: {name}.weight_range", "nothing", "be there for every layer"))
                continue
            most = 2 ** (int(held.get(f"{name}.bits", np.array(8))) - 1) - 1
            found.weights[key] = np.maximum(own.reshape(-1).astype(np.float32), 1e-8) / np.float32(most)
            if role in READS:
                read = step_and_zero(held, f"{name}.input_range")
                if read is None:
                    problems.append(Problem(f"{RANGES}: {name}.input_range", "nothing", "be there for every layer"))
                else:
                    found.inputs[f"layers.{i}.{READS[role]}"] = read
            bound = held.get(f"{name}.output_range.bound")
            if bound is not None:
                found.outputs[key] = max(float(bound), 1e-8) / 127
    if problems:
        raise EngineError(*problems[:20])
    return found


def step_and_zero(held: dict[str, Array], name: str) -> tuple[float, float] | None:
    bound, low, high = (held.get(f"{name}.{key}") for key in ("bound", "low", "high"))
    if bound is not None:
        return max(float(bound), 1e-8) / 127, 128.0
    if low is None or high is None:
        return None
    bottom, top = min(float(low), 0.0), max(float(high), 0.0)
    step = max(top - bottom, 1e-8) / 255
    return step, float(np.clip(np.rint(-bottom / step), 0, 255))
