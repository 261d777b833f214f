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
projection, and of the gate where there is one. ``prunus.architectures`` says how families name them.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

from prunus.architectures import KEYS, attentions, feed_forwards, structure_regex
from prunus.errors import Problem, TargetError
from prunus.sparsity.patterns import Block, Pattern, parse_pattern
from prunus.sparsity.wrappers import text_config

__all__ = ["STRUCTURES", "Structure", "Writer", "pattern_for", "reads", "structures"]

STRUCTURES: Final[dict[str, str]] = {"heads": structure_regex("heads"), "ffn": structure_regex("ffn")}
"""Structure -> the names of the weights that read it, as a regular expression."""
Kind = Literal["heads", "ffn"]


@dataclass(frozen=True)
class _Names:
    """Where a family keeps a structure: ends of the names of its reader, its owner and its writers."""

    reader: str
    owner: str
    writers: dict[str, int]
    """Name -> how many blocks of rows it has; a fused layer has several, one behind the other."""
    optional: tuple[str, ...] = ()
    sum: tuple[str, ...] = ()
    """Dropout and norm of the owner, where it adds its input to what the reader gives."""


_NAMES: Final[dict[Kind, tuple[_Names, ...]]] = {
    "heads": tuple(
        _Names(
            each.output,
            each.module,
            {**Counter(each.inputs), **dict.fromkeys(each.positions, 1)},
            each.positions,
            (each.dropout, each.norm) if each.norm else (),
        )
        for each in attentions()
    ),
    "ffn": tuple(_Names(each.output, each.module, {**Counter(each.inputs)}) for each in feed_forwards()),
}


@dataclass(frozen=True)
class Writer:
    """A Linear module that writes structures: ``parts`` blocks of rows, in each of them ``width`` rows for each structure."""

    name: str
    parts: int
    width: int


@dataclass(frozen=True)
class Structure:
    """The heads, or the neurons, of one layer."""

    kind: Kind
    reader: str
    """The Linear module that reads them, ``width`` columns each."""
    owner: str
    """The module that computes them."""
    writers: tuple[Writer, ...]
    units: int
    width: int
    sum: tuple[str, ...] = ()
    """Names of the dropout and the norm of ``owner``, where it adds its input to what the reader gives; else none."""


def structures(model: nn.Module) -> list[Structure]:
    """Heads and neurons of every layer of ``model``, in the model's order.

    Raises ``TargetError`` for a model in which none are found, and for a reader whose writers are not.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    result = []
    for name, reader in linears.items():
        for kind in _NAMES:
            if reads(kind, f"{name}.weight") and reader.in_features:  # none are left in a layer that lost all
                block = pattern_for(model, kind)
                width = block.cell((1, reader.in_features))[1] if isinstance(block, Block) else 1
                result.append(_structure(linears, kind, name, width))
    if not result:
        rule = "have attention heads or feed-forward neurons under a name that is known"
        raise TargetError(Problem("model", type(model).__name__, rule, "pattern: rows or columns"))
    return result


def _structure(linears: dict[str, nn.Linear], kind: Kind, reader: str, width: int) -> Structure:
    units = linears[reader].in_features // width
    for names in _NAMES[kind]:
        stem = reader.removesuffix(names.reader)
        present = {name: parts for name, parts in names.writers.items() if stem + name in linears}
        if stem + names.reader == reader and present.keys() | {*names.optional} >= names.writers.keys():
            writers = [
                Writer(stem + name, parts, linears[stem + name].out_features // (parts * units))
                for name, parts in present.items()
            ]
            owner = stem + names.owner if names.owner else ""
            added = tuple(stem + name for name in names.sum)
            return Structure(kind, reader, owner, tuple(writers), units, width, added)
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
    heads = getattr(config, KEYS.heads, None)
    if config is None or not isinstance(heads, int):
        rule = f"be another for a model whose configuration has no {KEYS.heads}"
        raise TargetError(Problem(key, text, rule, "columns, or a block such as *x64"))
    width = getattr(config, KEYS.head_size, None) or getattr(config, KEYS.hidden_size) // heads
    groups = getattr(config, KEYS.key_value_heads, None) or heads
    return Block(None, width * (heads // groups))
