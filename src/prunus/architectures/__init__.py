"""One table of architectures: what each model family calls its modules and configuration keys.

Everything that looks for a part of a model by name reads it: structured pruning and compaction, reports, quantization, export,
and the fused engine. To add a family, add one entry to ``ARCHITECTURES`` (``table.py``), teach the fused engine what the entry
cannot say (``canonical`` in ``runtime/families.py``), and add the family to the lists in the tests.
"""

from prunus.architectures.matching import (
    LAYER_PARTS,
    attentions,
    feed_forwards,
    is_score_operand,
    layer_part,
    other_layers,
    split_layer,
    structure_regex,
)
from prunus.architectures.table import (
    ACTIVATION_ATTRIBUTES,
    ARCHITECTURES,
    HEAD_COUNT_ATTRIBUTES,
    INTERMEDIATE_SIZE_KEYS,
    KEYS,
    LAYER_GROUPS_KEYS,
    POOLER,
    Architecture,
    Attention,
    Classifier,
    ConfigKeys,
    EncoderNames,
    FeedForward,
)

__all__ = [
    "ACTIVATION_ATTRIBUTES",
    "ARCHITECTURES",
    "HEAD_COUNT_ATTRIBUTES",
    "INTERMEDIATE_SIZE_KEYS",
    "KEYS",
    "LAYER_GROUPS_KEYS",
    "LAYER_PARTS",
    "POOLER",
    "Architecture",
    "Attention",
    "Classifier",
    "ConfigKeys",
    "EncoderNames",
    "FeedForward",
    "attentions",
    "feed_forwards",
    "is_score_operand",
    "layer_part",
    "other_layers",
    "split_layer",
    "structure_regex",
]
