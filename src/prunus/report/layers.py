"""Layers: tensor names -> the grid "layer x part" that a transformer's weights form.

A name such as ``encoder.layer.3.attention.self.query.weight`` has a layer, the path up to its first number, and a part,
told by its last words (``prunus.architectures`` lists how families name the parts). A name that is no known part, or whose
cell is already taken, is returned apart: nothing is left out, nothing is counted twice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prunus.architectures import layer_part, split_layer
from prunus.report.facts_file import number as number_of
from prunus.report.facts_file import text

__all__ = ["COLUMNS", "Layer", "fraction_of_zeros", "layer_grid"]

COLUMNS: Final = (
    "q",
    "k",
    "v",
    "qkv",
    "o",
    "cross q",
    "cross k",
    "cross v",
    "cross o",
    "ffn in",
    "ffn gate",
    "ffn out",
)
"""Parts of a layer in the order in which a token meets them."""

_CROSS: Final = re.compile(r"(^|\.)(crossattention|encoder_attn|encdecattention|cross_attn)\.")


@dataclass(frozen=True)
class Layer:
    """One row of the grid: the tensors of a layer by part."""

    label: str
    cells: Mapping[str, Mapping[str, Any]]


def fraction_of_zeros(tensors: Sequence[Mapping[str, Any]]) -> float | None:
    """Zeros / weights over ``tensors``; the mean of their sparsities where counts are missing; None without either."""
    zeros = [number_of(tensor, "zeros") for tensor in tensors]
    weights = [number_of(tensor, "weights") for tensor in tensors]
    if None not in zeros and None not in weights and sum(filter(None, weights)) > 0:
        return sum(filter(None, zeros)) / sum(filter(None, weights))
    known = [value for tensor in tensors if (value := number_of(tensor, "sparsity")) is not None]
    return sum(known) / len(known) if known else None


def layer_grid(
    tensors: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[Layer], list[Mapping[str, Any]]]:
    """The parts that occur, the layers in the model's order, and the tensors that fit in no cell."""
    grid: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    others: list[Mapping[str, Any]] = []
    for tensor in tensors:
        place = split_layer(text(tensor, "name"))
        part = _part(place[2]) if place else None
        cells = grid.setdefault(place[:2], {}) if place and part else {}
        if part is None or part in cells:
            others.append(tensor)
        else:
            cells[part] = tensor
    stems = list(dict.fromkeys(stem for stem, _ in grid))
    several = len(stems) > 1
    layers = [
        Layer(f"{_stack(stem)} {number}" if several else f"layer {number}", grid[stem, number])
        for stem in stems
        for number in sorted(number for other, number in grid if other == stem)
    ]
    columns = [part for part in COLUMNS if any(part in layer.cells for layer in layers)]
    return columns, layers, others


def _part(rest: str) -> str | None:
    """The column of a name inside a layer."""
    part = layer_part(rest)
    return f"cross {part}" if _CROSS.search(rest.lower()) and f"cross {part}" in COLUMNS else part


def _stack(stem: str) -> str:
    """The word "encoder" or "decoder" where the stem has it, otherwise its last word."""
    words = [word for word in stem.split(".") if word]
    named = [word for word in words if word in {"encoder", "decoder"}]
    return named[-1] if named else (words[-1] if words else "layer")
