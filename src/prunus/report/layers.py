"""Layers: tensor names -> the grid "layer x part" that a transformer's weights form.

A name such as ``encoder.layer.3.attention.self.query.weight`` has a layer, the path up to its first number, and a part,
told by its last words. Families name the same part differently; ``_PARTS`` lists the spellings. A name that fits no
spelling, or a cell that is already taken, is returned apart: nothing is left out, nothing is counted twice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prunus.report.facts_file import number, text

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

_LAYER: Final = re.compile(r"(?P<layer>(?P<stem>.*?)(?:^|\.)(?P<index>\d{1,6}))\.(?P<rest>.+)")
_CROSS: Final = re.compile(r"(^|\.)(crossattention|encoder_attn|encdecattention|cross_attn)\.")
# Order matters: the output projection of an attention also ends in the words of a feed-forward output.
_PARTS: Final = tuple(
    (part, re.compile(rf"(^|\.)({spellings})(\.weight)?$"))
    for part, spellings in (
        ("qkv", r"c_attn|wqkv|qkv|qkv_proj|query_key_value|in_proj_weight|in_proj"),
        ("q", r"query|query_proj|q_lin|q_proj|q"),
        ("k", r"key|key_proj|k_lin|k_proj|k"),
        ("v", r"value|value_proj|v_lin|v_proj|v"),
        (
            "o",
            r"(attention|crossattention)\.output\.dense|out_lin|o_proj|self_attn\.out_proj|encoder_attn\.out_proj"
            r"|(attn|attention)\.(c_proj|o|wo|out_proj|dense)|(selfattention|encdecattention)\.o|self_attention\.dense",
        ),
        ("ffn in", r"intermediate\.dense|ffn|lin1|fc1|c_fc|up_proj|mlp\.wi|wi|wi_1|dense_h_to_4h|linear1"),
        ("ffn gate", r"gate_proj|wi_0"),
        ("ffn out", r"output\.dense|ffn_output|lin2|fc2|mlp\.c_proj|down_proj|mlp\.wo|wo|dense_4h_to_h|linear2"),
    )
)


@dataclass(frozen=True)
class Layer:
    """One row of the grid: the tensors of a layer by part."""

    label: str
    cells: Mapping[str, Mapping[str, Any]]


def fraction_of_zeros(tensors: Sequence[Mapping[str, Any]]) -> float | None:
    """Zeros / weights over ``tensors``; the mean of their sparsities where counts are missing; None without either."""
    zeros = [number(tensor, "zeros") for tensor in tensors]
    weights = [number(tensor, "weights") for tensor in tensors]
    if None not in zeros and None not in weights and sum(filter(None, weights)) > 0:
        return sum(filter(None, zeros)) / sum(filter(None, weights))
    known = [value for tensor in tensors if (value := number(tensor, "sparsity")) is not None]
    return sum(known) / len(known) if known else None


def layer_grid(
    tensors: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[Layer], list[Mapping[str, Any]]]:
    """The parts that occur, the layers in the model's order, and the tensors that fit in no cell."""
    found: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    others: list[Mapping[str, Any]] = []
    for tensor in tensors:
        name = text(tensor, "name")
        match, part = _LAYER.fullmatch(name), _part(name)
        cells = found.setdefault((match["stem"], int(match["index"])), {}) if match and part else {}
        if not match or part is None or part in cells:
            others.append(tensor)
        else:
            cells[part] = tensor
    stems = list(dict.fromkeys(stem for stem, _ in found))
    several = len(stems) > 1
    layers = [
        Layer(f"{_stack(stem)} {index}" if several else f"layer {index}", found[stem, index])
        for stem in stems
        for index in sorted(index for other, index in found if other == stem)
    ]
    columns = [part for part in COLUMNS if any(part in layer.cells for layer in layers)]
    return columns, layers, others


def _part(name: str) -> str | None:
    lower = name.lower()
    match = _LAYER.fullmatch(lower)
    if not match:
        return None
    rest = match["rest"]
    for part, pattern in _PARTS:
        if pattern.search(rest):
            return f"cross {part}" if _CROSS.search(rest) and f"cross {part}" in COLUMNS else part
    return None


def _stack(stem: str) -> str:
    """The word "encoder" or "decoder" where the stem has it, otherwise its last word."""
    words = [word for word in stem.split(".") if word]
    named = [word for word in words if word in {"encoder", "decoder"}]
    return named[-1] if named else (words[-1] if words else "layer")
