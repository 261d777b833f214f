"""Heads and neurons: the structures of a transformer, which layers write them and which one reads them.

A head reaches the rest of the model only through its inputs of the attention's output projection ``[hidden, heads x width]``,
a neuron of the feed-forward network only through its input of the second projection ``[hidden, neurons]``. With those columns
zero the structure does nothing, whatever its other weights:

    heads    all outputs x the columns of one head (of one group of key and value heads, where heads share them)
    ffn      all outputs x one column

The gate m of a structure, 1 for all, multiplies those inputs; its gradient is that of the columns C, which is the first-order
importance of the structure (Michel et al. 2019, arXiv:1905.10650, equation 2; Molchanov et al. 2017, arXiv:1611.06440):

    |dL/dm| = |sum over C of w * dL/dw|          criterion first_order

A structure is written by rows of other layers: a head by those of query, key and value, a neuron by one of the first
projection, and of the gate where there is one. ``_WRITERS`` lists how families name them, from the name of the reader.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

from prunus.errors import Problem, TargetError
from prunus.sparsity.patterns import Block, Pattern, parse_pattern
from prunus.sparsity.wrappers import text_config

__all__ = ["STRUCTURES", "Structure", "Writer", "pattern_for", "reads", "structures"]

_ATTENTION: Final = (
    r"(^|\.)((cross)?attention\.output\.dense|out_lin|o_proj|(attn|attention)\.(o|out_proj|Wo|dense|c_proj))\.weight$"
)
_FEED_FORWARD: Final = r"(?<!attention)\.(output\.dense|lin2|fc2|down_proj|mlp\.Wo|ffn_output|linear2)\.weight$"
STRUCTURES: Final[dict[str, str]] = {"heads": _ATTENTION, "ffn": _FEED_FORWARD}
"""Structure -> which parameters read it, as a regular expression on names."""


# End of the reader's name -> (end of the owner's name, {end of a writer's name: parts in it}), the first that is there whole.
# Parts of a head are query, key, value (and those of positions); a fused layer has several, one behind the other.
_WRITERS: Final[tuple[tuple[str, str, dict[str, int]], ...]] = (
    (
        "attention.output.dense",
        "attention.self",
        {
            "attention.self.query_proj": 1,
            "attention.self.key_proj": 1,
            "attention.self.value_proj": 1,
            "attention.self.pos_query_proj": 1,
            "attention.self.pos_key_proj": 1,
        },
    ),
    (
        "attention.output.dense",
        "attention.self",
        {"attention.self.query": 1, "attention.self.key": 1, "attention.self.value": 1},
    ),
    (
        "attention.out_lin",
        "attention",
        {"attention.q_lin": 1, "attention.k_lin": 1, "attention.v_lin": 1},
    ),
    ("attn.o", "attn", {"attn.q": 1, "attn.k": 1, "attn.v": 1}),
    ("attn.Wo", "attn", {"attn.Wqkv": 3}),
    ("self_attn.o_proj", "self_attn", {"self_attn.q_proj": 1, "self_attn.k_proj": 1, "self_attn.v_proj": 1}),
    ("attention.o_proj", "attention", {"attention.q_proj": 1, "attention.k_proj": 1, "attention.v_proj": 1}),
    ("mlp.Wo", "mlp", {"mlp.Wi": 2}),
    ("mlp.down_proj", "mlp", {"mlp.up_proj": 1, "mlp.gate_proj": 1}),
    ("mlp.fc2", "mlp", {"mlp.fc1": 1}),
    ("ffn.lin2", "ffn", {"ffn.lin1": 1}),
    ("output.dense", "", {"intermediate.dense": 1}),
)
_OPTIONAL: Final = ("pos_query_proj", "pos_key_proj")


@dataclass(frozen=True)
class Writer:
    """A Linear module that writes structures: ``parts`` blocks of rows, in each of them ``width`` rows for each structure."""

    name: str
    parts: int
    width: int


@dataclass(frozen=True)
class Structure:
    """The heads, or the neurons, of one layer."""

    kind: Literal["heads", "ffn"]
    reader: str
    """The Linear module that reads them, ``width`` columns each."""
    owner: str
    """The module that computes them."""
    writers: tuple[Writer, ...]
    units: int
    width: int


def structures(model: nn.Module) -> list[Structure]:
    """Heads and neurons of every layer of ``model``, in the model's order.

    Raises ``TargetError`` for a model in which none are found, and for a reader whose writers are not.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    kinds: tuple[Literal["heads", "ffn"], ...] = ("heads", "ffn")
    found = []
    for name, reader in linears.items():
        for kind in kinds:
            if reads(kind, f"{name}.weight") and reader.in_features:  # none are left in a layer that lost all
                block = pattern_for(model, kind)
                width = block.cell((1, reader.in_features))[1] if isinstance(block, Block) else 1
                found.append(_structure(linears, kind, name, width))
    if not found:
        rule = "have attention heads or feed-forward neurons under a name that is known"
        raise TargetError(Problem("model", type(model).__name__, rule, "pattern: rows or columns"))
    return found


def _structure(linears: dict[str, nn.Linear], kind: Literal["heads", "ffn"], reader: str, width: int) -> Structure:
    units = linears[reader].in_features // width
    for end, owner, ends in _WRITERS:
        stem = reader.removesuffix(end)
        names = [stem + each for each in ends]
        there = [name for name in names if name in linears]
        needed = [name for name in names if not name.endswith(_OPTIONAL)]
        if stem + end == reader and all(name in there for name in needed):
            writers = [
                Writer(name, parts, linears[name].out_features // (parts * units))
                for name, parts in zip(names, ends.values(), strict=True)
                if name in there
            ]
            return Structure(kind, reader, stem + owner if owner else "", tuple(writers), units, width)
    rule = "be read by a layer whose query, key and value (or first projection) are known by name"
    raise TargetError(Problem(reader, kind, rule, "pattern: columns"))


def reads(structure: str, name: str) -> bool:
    """Whether the parameter ``name`` is the projection that reads this structure."""
    return re.search(STRUCTURES[structure], name) is not None


def pattern_for(model: nn.Module, text: str, key: str = "pattern") -> Pattern:
    """``parse_pattern``, with the width of a head (of a group of heads) as the model's configuration says it.

    Raises ``TargetError`` for ``heads`` of a model that does not say how many it has.
    """
    pattern = parse_pattern(text, key)
    if text != "heads":
        return pattern
    config = text_config(model)
    heads = getattr(config, "num_attention_heads", None)
    if config is None or not isinstance(heads, int):
        rule = "be another for a model whose configuration has no num_attention_heads"
        raise TargetError(Problem(key, text, rule, "columns, or a block such as *x64"))
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return Block(None, width * (heads // groups))
