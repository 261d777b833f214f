"""From float32 to what the engine runs: ranges of activations, then packed weights.

    byte of x = round(x / step) + zero                 uint8, one step and zero for a tensor: inputs of linear layers
    byte of q, k, v = round(x / step[head])            int8, symmetric, one step a head

A range is the ``coverage`` quantile of each sequence's extremes, over all calibration sequences, and always holds 0.
Where a feature is larger than the others, its share moves into the weights that read it:

    factor[i] = max |x[i]|^smooth / max |w[:, i]|^(1 - smooth)        x / factor, w * factor      (Xiao et al., 2023, eq. 4)

which costs nothing: what writes the bytes multiplies each feature by a number of its own anyway.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.grid import byte_step_and_zero, symmetric_step
from prunus.runtime.families import DenseEncoder, Shape
from prunus.runtime.learned import Learned
from prunus.runtime.pack import Packed, choose_format, pack
from prunus.runtime.reference import encode
from prunus.runtime.sentences import Sentences

__all__ = ["ROLES", "Model", "Ranges", "calibrate", "chunks", "convert"]

Array = NDArray[Any]
ROLES = ("query", "key", "value", "out", "up", "down")
HEADED = ("query", "key", "value")
INPUTS = {"input": HEADED, "context": ("out",), "middle": ("up",), "intermediate": ("down",)}
"""What is stored as bytes, and which layers read it."""
SMOOTH = 0.85
FLOOR = 0.2


@dataclass
class Ranges:
    """What was seen of the activations: per tensor the lowest and highest of each sequence, and per feature the largest."""

    low: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    high: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lowest: dict[str, Array] = field(default_factory=dict)
    highest: dict[str, Array] = field(default_factory=dict)
    sequences: int = 0

    def see(self, begins: Array, name: str, value: Array) -> None:
        """Notes a tensor ``[tokens, features]`` of sequences that begin at these tokens."""
        self.low[name] += np.minimum.reduceat(value.min(1), begins).tolist()
        self.high[name] += np.maximum.reduceat(value.max(1), begins).tolist()
        self.lowest[name] = np.minimum(self.lowest.get(name, np.float32(0)), value.min(0))
        self.highest[name] = np.maximum(self.highest.get(name, np.float32(0)), value.max(0))

    def largest(self, name: str) -> Array:
        """Largest magnitude of each feature."""
        return np.maximum(-self.lowest[name], self.highest[name])

    def step(self, name: str, coverage: float, factor: Array) -> tuple[float, float]:
        """Step and zero of a tensor's bytes, each feature divided by its factor."""
        low = min(0.0, float((self.lowest[name] / factor).min()))
        high = max(0.0, float((self.highest[name] / factor).max()))
        # what single sequences reach beyond the others is cut off
        low *= share(np.quantile(self.low[name], 1 - coverage), min(self.low[name]))
        high *= share(np.quantile(self.high[name], coverage), max(self.high[name]))
        step, zero = byte_step_and_zero(np.float64(low), np.float64(high))
        return float(step), float(zero)


def floored(magnitudes: Array) -> Array:
    """Features that were quiet while calibrating may be louder later: none counts as less than a share of the loudest."""
    return np.maximum(magnitudes, max(FLOOR * float(magnitudes.max()), 1e-6))


def share(part: float, whole: float) -> float:
    """part / whole, at most one; one of nothing."""
    return min(1.0, float(part) / float(whole)) if part and whole and part * whole > 0 else 1.0


@dataclass(frozen=True)
class Model:
    """An encoder as the engine runs it, and the head beside it."""

    shape: Shape
    integers: bool
    layers: list[dict[str, Packed]]
    tensors: dict[str, Array]
    settings: dict[str, object]
    sentences: Sentences | None = None
    """What sentence-transformers does with the states; None where the model does not say."""


def calibrate(dense: DenseEncoder, sequences: Sequence[Array], types: Sequence[Array] | None = None) -> Ranges:
    """Runs real sequences through the float32 encoder."""
    if not len(sequences) or not all(map(len, sequences)):
        raise EngineError(Problem("sequences", f"{len(sequences)}", "be at least one, none of them empty"))
    ranges = Ranges(sequences=len(sequences))
    for chunk in chunks([len(ids) for ids in sequences], 1024):
        begins = np.cumsum([0, *(len(sequences[i]) for i in chunk[:-1])])
        kinds = None if types is None else [types[i] for i in chunk]
        chosen = [sequences[i] for i in chunk]
        encode(dense.shape, dense.tensors, chosen, kinds, partial(ranges.see, begins))
    return ranges


def chunks(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Sequences, in order, in groups of at most so many tokens, or of one longer sequence."""
    group: list[int] = []
    count = 0
    for i, length in enumerate(lengths):
        if group and count + length > tokens:
            yield group
            group, count = [], 0
        group.append(i)
        count += length
    if group:
        yield group


def convert(
    dense: DenseEncoder,
    ranges: Ranges | None = None,
    coverage: float = 1.0,
    smooth: float = SMOOTH,
    learned: Learned | None = None,
) -> Model:
    """Packs an encoder: float32 without ranges, int8 with them.

    What was ``learned`` is used as it is, without factors; ranges then serve what was not quantized in training (values).
    """
    s, t = dense.shape, dense.tensors
    dropped = tuple(f".{role}.{kind}" for role in ROLES for kind in ("weight", "bias"))
    tensors = {name: value for name, value in t.items() if not (name.startswith("layers.") and name.endswith(dropped))}
    layers = []
    for i in range(s.layers):
        key = f"layers.{i}."
        weights = {role: (t[f"{key}{role}.weight"], t[f"{key}{role}.bias"]) for role in ROLES}
        heads = len(weights["query"][0]) // s.size
        if ranges is None:
            layers.append({role: pack(choose_format(w != 0, False), w, b) for role, (w, b) in weights.items()})
            tensors[key + "attention.scale"] = np.full(heads, 1 / sqrt(s.size), np.float32)
            continue
        steps: dict[str, tuple[float, float, Array]] = {}
        for name, readers in INPUTS.items():
            target = key + ("attention" if name == "context" else name)
            seen = floored(ranges.largest(key + name))
            weight = floored(np.max([np.abs(weights[role][0]).max(0) for role in readers], axis=0))
            factor = (seen**smooth / weight ** (1 - smooth) if smooth else np.ones_like(seen)).astype(np.float32)
            factor /= np.exp(np.log(factor).mean())
            if learned is None:
                step, zero = ranges.step(key + name, coverage, factor)
            else:
                factor, (step, zero) = np.ones_like(factor), learned.inputs[key + name]
            steps |= dict.fromkeys(readers, (step, zero, factor))
            tensors[target + ".zero"] = np.array([zero], np.float32)
            if name != "context":
                inverse = 1 / (step * factor)
                tensors[target + ".inverse"] = np.pad(inverse, (0, -len(inverse) % 4)).astype(np.float32)
        by_head = {
            role: symmetric_step(ranges.largest(key + role).reshape(heads, s.size).max(1).astype(np.float32))
            for role in HEADED
        }
        for role in HEADED:
            if learned is not None and key + role in learned.outputs:
                by_head[role][:] = learned.outputs[key + role]
        tensors[key + "attention.scale"] = by_head["query"] * by_head["key"] / np.float32(sqrt(s.size))
        step, _, factor = steps["out"]
        tensors[key + "attention.gain"] = (np.repeat(by_head["value"], s.size) / (step * factor)).astype(np.float32)
        layer = {}
        for role, (weight, bias) in weights.items():
            step, zero, factor = steps[role]
            gain = np.repeat(1 / by_head[role], s.size) if role in HEADED else None
            layer[role] = pack(
                choose_format(weight != 0, True),
                weight * factor,
                bias,
                step,
                zero,
                gain,
                128.0 if role == "query" else 0.0,
                None if learned is None else learned.weights[key + role],
            )
        layers.append(layer)
    return Model(s, ranges is not None, layers, tensors, dense.settings)
