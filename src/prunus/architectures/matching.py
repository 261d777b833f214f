"""Which part of a model a name belongs to, for families with an entry in the table and for others.

A family that has no entry is matched by the names of all entries, and by the spellings in ``_OTHER_SPELLINGS``.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal

from prunus.architectures.table import ARCHITECTURES, Attention, FeedForward

__all__ = [
    "LAYER_PARTS",
    "attentions",
    "feed_forwards",
    "is_score_operand",
    "layer_part",
    "other_layers",
    "split_layer",
    "structure_regex",
]

_OTHER_ATTENTIONS: Final = (Attention(module="attn", query="attn.q", key="attn.k", value="attn.v", output="attn.o"),)
"""Attentions of families without an entry."""

LAYER_PARTS: Final = ("qkv", "q", "k", "v", "o", "ffn in", "ffn gate", "ffn out")
"""Linear layers of a layer. A name is matched in this order: ``attention.output.dense`` ends in ``output.dense``, too."""
# Regular expressions on names in lower case, for families without an entry.
_OTHER_SPELLINGS: Final = {
    "qkv": r"c_attn|wqkv|qkv|qkv_proj|query_key_value|in_proj_weight|in_proj",
    "q": r"query|query_proj|q_lin|q_proj|q",
    "k": r"key|key_proj|k_lin|k_proj|k",
    "v": r"value|value_proj|v_lin|v_proj|v",
    "o": (
        r"(attention|crossattention)\.output\.dense|out_lin|o_proj|self_attn\.out_proj|encoder_attn\.out_proj"
        r"|(attn|attention)\.(c_proj|o|wo|out_proj|dense)|(selfattention|encdecattention)\.o|self_attention\.dense"
    ),
    "ffn in": r"intermediate\.dense|ffn|lin1|fc1|c_fc|up_proj|mlp\.wi|wi|wi_1|dense_h_to_4h|linear1",
    "ffn gate": r"gate_proj|wi_0",
    "ffn out": r"output\.dense|ffn_output|lin2|fc2|mlp\.c_proj|down_proj|mlp\.wo|wo|dense_4h_to_h|linear2",
}
# What ``pattern: heads`` and ``ffn`` prune in families without an entry; fewer names than reports know.
_OTHER_HEADS: Final = r"(cross)?attention\.output\.dense|out_lin|o_proj|(attn|attention)\.(o|out_proj|Wo|dense|c_proj)"
_OTHER_NEURONS: Final = r"output\.dense|lin2|fc2|down_proj|mlp\.Wo|ffn_output|linear2"
_OTHER_SCORE_OPERANDS: Final = r"query|key|[qk]_(lin|proj)|[qk]"


def attentions() -> tuple[Attention, ...]:
    """The attentions of all families, each once."""
    return (*dict.fromkeys(each.attention for each in ARCHITECTURES.values()), *_OTHER_ATTENTIONS)


def feed_forwards() -> tuple[FeedForward, ...]:
    """The feed-forward networks of all families, each once."""
    return tuple(dict.fromkeys(each.feed_forward for each in ARCHITECTURES.values()))


def _any_of(names: Iterable[str], spellings: str) -> str:
    """A regular expression for these names or spellings."""
    return "|".join([*(re.escape(name) for name in dict.fromkeys(names) if name), spellings])


def structure_regex(structure: Literal["heads", "ffn"]) -> str:
    """A regular expression on the names of the weights whose input columns are heads, or neurons."""
    if structure == "heads":
        return rf"(^|\.)({_any_of((each.output for each in attentions()), _OTHER_HEADS)})\.weight$"
    return rf"(?<!attention)\.({_any_of((each.output for each in feed_forwards()), _OTHER_NEURONS)})\.weight$"


_SCORE_OPERAND: Final = re.compile(
    rf"(^|\.)({_any_of((n for a in attentions() if not (a.fused or a.positions) for n in (a.query, a.key)), '(?!)')})$"
    rf"|(^|[._])({_OTHER_SCORE_OPERANDS})$"
)


def is_score_operand(name: str) -> bool:
    """Whether the layer of this name computes an operand of the attention scores, query or key, and nothing else.

    Not DeBERTa's: its scores are sums of several products.
    """
    return _SCORE_OPERAND.search(name) is not None


def _known_parts() -> dict[str, list[str]]:
    names: dict[str, list[str]] = {part: [] for part in LAYER_PARTS}
    for attention in attentions():
        if attention.fused:
            names["qkv"].append(attention.query)
        else:
            for part, name in zip(("q", "k", "v"), attention.inputs, strict=True):
                names[part].append(name)
        names["o"].append(attention.output)
    for network in feed_forwards():
        names["ffn in"].append(network.input)
        names["ffn gate"].append(network.gate if network.gate != network.input else "")
        names["ffn out"].append(network.output)
    return names


_PARTS: Final = tuple(
    (part, re.compile(rf"(^|\.)({_any_of((n.lower() for n in names), _OTHER_SPELLINGS[part])})(\.weight)?$"))
    for part, names in _known_parts().items()
)
_LAYER: Final = re.compile(r"(?P<stem>.*?)(?:^|\.)(?P<number>\d{1,6})\.(?P<rest>.+)")


def split_layer(name: str) -> tuple[str, int, str] | None:
    """Splits a name at its first number: what is before it, the number of the layer, and the name inside the layer.

    Returns None for names outside any layer.
    """
    match = _LAYER.fullmatch(name)
    return (match["stem"], int(match["number"]), match["rest"]) if match else None


def layer_part(name: str) -> str | None:
    """Which of ``LAYER_PARTS`` a name inside a layer is; None for other names."""
    lower = name.lower()
    return next((part for part, pattern in _PARTS if pattern.search(lower)), None)


def other_layers(stored: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names of ``stored`` that would be among ``known`` if a number in them were another: tensors of layers beyond those.

    A layer that has any tensor in ``known`` is not beyond them, whatever else is stored for it.
    """
    layers, patterns = set[tuple[str, ...]](), set[tuple[str, ...]]()
    for name in known:
        for place, parts in _numbered(name):
            layers.add(parts[: place + 1])
            patterns.add((*parts[:place], "*", *parts[place + 1 :]))
    return sorted(
        name
        for name in set(stored)
        if any(
            parts[: place + 1] not in layers and (*parts[:place], "*", *parts[place + 1 :]) in patterns
            for place, parts in _numbered(name)
        )
    )


def _numbered(name: str) -> list[tuple[int, tuple[str, ...]]]:
    """Each place of a number among the parts of a dotted name, and the parts."""
    parts = tuple(name.split("."))
    return [(place, parts) for place, part in enumerate(parts) if part.isdigit()]
