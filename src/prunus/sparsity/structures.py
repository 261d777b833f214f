"""Heads and neurons: the structures of a transformer as patterns of the Linear layers that read them.

A head reaches the rest of the model only through its inputs of the attention's output projection ``[hidden, heads x width]``,
a neuron of the feed-forward network only through its input of the second projection ``[hidden, neurons]``. With those columns
zero the structure does nothing, whatever its other weights:

    heads    all outputs x the columns of one head (of one group of key and value heads, where heads share them)
    ffn      all outputs x one column

The gate m of a structure, 1 for all, multiplies those inputs; its gradient is that of the columns C, which is the first-order
importance of the structure (Michel et al. 2019, arXiv:1905.10650, equation 2; Molchanov et al. 2017, arXiv:1611.06440):

    |dL/dm| = |sum over C of w * dL/dw|          criterion first_order
"""

import re
from typing import Any, Final

from torch import nn

from prunus.errors import Problem, TargetError
from prunus.sparsity.patterns import Block, Pattern, parse_pattern

__all__ = ["STRUCTURES", "pattern_for", "reads"]

_ATTENTION: Final = (
    r"(^|\.)((cross)?attention\.output\.dense|out_lin|o_proj|(attn|attention)\.(o|out_proj|Wo|dense|c_proj))\.weight$"
)
_FEED_FORWARD: Final = r"(?<!attention)\.(output\.dense|lin2|fc2|down_proj|mlp\.Wo|ffn_output|linear2)\.weight$"
STRUCTURES: Final[dict[str, str]] = {"heads": _ATTENTION, "ffn": _FEED_FORWARD}
"""Structure -> which parameters read it, as a regular expression on names."""


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
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(config, "num_attention_heads", None)
    if config is None or not isinstance(heads, int):
        rule = "be another for a model whose configuration has no num_attention_heads"
        raise TargetError(Problem(key, text, rule, "columns, or a block such as *x64"))
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return Block(None, width * (heads // groups))
