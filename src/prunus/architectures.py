"""Names of modules and configuration keys, by model family.

Everything that looks for a part of a model by name reads this table: structured pruning and compaction, reports, quantization,
export, and the fused engine. To add a family, add one entry to ``ARCHITECTURES``; give the fused engine what the entry cannot
say in ``runtime/families.py`` (``canonical``); and add its name to the lists of families in the tests.

A family that has no entry is matched by the names of all entries, and by the spellings in ``_OTHER_SPELLINGS``.

    layer            the names of its Linear layers, relative to the layer:   attention.self.query
    body             names relative to the model's body:                     encoder.layer.3.
    checkpoint       the body's prefix before them:                           bert.encoder.layer.3.attention.self.query.weight
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "ACTIVATION_ATTRIBUTES",
    "ARCHITECTURES",
    "HEAD_COUNT_ATTRIBUTES",
    "INTERMEDIATE_SIZE_KEYS",
    "KEYS",
    "LAYER_PARTS",
    "POOLER",
    "Architecture",
    "Attention",
    "Classifier",
    "ConfigKeys",
    "Encoder",
    "FeedForward",
    "attentions",
    "feed_forwards",
    "is_score_operand",
    "layer_part",
    "split_layer",
    "structure_regex",
]


@dataclass(frozen=True)
class Attention:
    """Names of an attention's Linear layers. A fused layer, whose rows are query, key and value, is named three times."""

    module: str
    """Computes the attention; its output is what ``output`` reads."""
    query: str
    key: str
    value: str
    output: str
    positions: tuple[str, ...] = ()
    """Projections of relative positions, one head beside another as in ``query``; not every model has them."""

    @property
    def fused(self) -> bool:
        """Whether one layer computes query, key and value."""
        return self.query == self.key == self.value

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of query, key and value, without the positions."""
        return self.query, self.key, self.value


@dataclass(frozen=True)
class FeedForward:
    """Names of a feed-forward network's Linear layers. A fused layer is named twice: its rows are ``input``, then ``gate``."""

    module: str
    """Computes it; empty where the layer itself does."""
    input: str
    output: str
    gate: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what computes the neurons."""
        return (self.input, self.gate) if self.gate else (self.input,)


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier: first token -> ``first`` -> activation -> ``last``. Names are outside the body, or in it."""

    first: str = "classifier.dense"
    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    last: str = "classifier.out_proj"


@dataclass(frozen=True)
class ConfigKeys:
    """Keys of ``config.json``. transformers' configuration classes answer to the default names in every family."""

    hidden_size: str = "hidden_size"
    heads: str = "num_attention_heads"
    intermediate_size: str = "intermediate_size"
    layers: str = "num_hidden_layers"
    activation: str = "hidden_act"
    vocab_size: str = "vocab_size"
    positions: str = "max_position_embeddings"
    token_types: str = "type_vocab_size"
    norm_epsilon: str = "layer_norm_eps"
    padding: str = "pad_token_id"
    embedding_size: str = ""
    """The width of embeddings that are projected to the hidden size; empty where they have that size."""
    layer_groups: str = ""
    """How many layers have weights of their own, where layers share them; empty where all have."""
    layers_per_group: str = ""
    head_size: str = "head_dim"
    key_value_heads: str = "num_key_value_heads"
    pooler_sizes: tuple[str, ...] = ("pooler_hidden_size", "pooler_output_size")
    per_layer: tuple[str, ...] = ("layer_types", "layer_type", "mlp_layer_types")
    """Lists with one value for each layer."""


KEYS: Final = ConfigKeys()


@dataclass(frozen=True)
class Encoder:
    """What else the fused engine needs: a post-norm encoder. Names of norms are relative to the layer, others to the body."""

    attention_norm: str = "attention.output.LayerNorm"
    output_norm: str = "output.LayerNorm"
    word_embeddings: str = "embeddings.word_embeddings"
    position_embeddings: str = "embeddings.position_embeddings"
    type_embeddings: str = "embeddings.token_type_embeddings"
    """Empty where there are no token types."""
    embedding_norm: str = "embeddings.LayerNorm"
    projection: str = ""
    """From the embeddings to the hidden size."""
    always_projects: bool = False
    """Whether the projection is there where both sizes are equal, too."""
    relative_positions: str = ""
    """Table of attention biases by distance, shared by all layers (T5's buckets)."""
    positions_from_padding: bool = False
    """Whether positions count only tokens that are not padding, and start behind the id of padding (fairseq's models)."""
    padding: int = 0
    """Id of padding where ``config.json`` names none: the default of transformers' class."""
    pooler: str = "pooler.dense"
    classifier: Classifier = Classifier()


@dataclass(frozen=True)
class Architecture:
    """One model family: the names of its parts."""

    prefix: str
    """Of the body's tensors in a checkpoint with a head (``base_model_prefix``)."""
    layer: str
    """Name of a layer in the body, with ``{}`` for its number (or that of its group, where layers share weights)."""
    attention: Attention
    feed_forward: FeedForward
    keys: ConfigKeys = KEYS
    encoder: Encoder | None = None
    """None: no fused engine."""


_BERT_ATTENTION: Final = Attention(
    module="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
)
_BERT_FEED_FORWARD: Final = FeedForward(module="", input="intermediate.dense", output="output.dense")
_BERT_LAYER: Final = "encoder.layer.{}."
_ROBERTA: Final = Architecture(
    prefix="roberta",
    layer=_BERT_LAYER,
    attention=_BERT_ATTENTION,
    feed_forward=_BERT_FEED_FORWARD,
    encoder=Encoder(positions_from_padding=True, padding=1),
)

ARCHITECTURES: Final[dict[str, Architecture]] = {
    "bert": Architecture(
        prefix="bert",
        layer=_BERT_LAYER,
        attention=_BERT_ATTENTION,
        feed_forward=_BERT_FEED_FORWARD,
        encoder=Encoder(classifier=Classifier("pooler.dense", "tanh", "classifier")),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Architecture(
        prefix="electra",
        layer=_BERT_LAYER,
        attention=_BERT_ATTENTION,
        feed_forward=_BERT_FEED_FORWARD,
        keys=ConfigKeys(embedding_size="embedding_size"),
        encoder=Encoder(projection="embeddings_project", classifier=Classifier(activation="gelu")),
    ),
    "distilbert": Architecture(
        prefix="distilbert",
        layer="transformer.layer.{}.",
        attention=Attention(
            module="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
        ),
        feed_forward=FeedForward(module="ffn", input="ffn.lin1", output="ffn.lin2"),
        keys=ConfigKeys(
            hidden_size="dim",
            heads="n_heads",
            intermediate_size="hidden_dim",
            layers="n_layers",
            activation="activation",
        ),
        encoder=Encoder(
            attention_norm="sa_layer_norm",
            output_norm="output_layer_norm",
            type_embeddings="",
            classifier=Classifier("pre_classifier", "relu", "classifier"),
        ),
    ),
    "mpnet": Architecture(
        prefix="mpnet",
        layer=_BERT_LAYER,
        attention=Attention(
            module="attention.attn",
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            output="attention.attn.o",
        ),
        feed_forward=_BERT_FEED_FORWARD,
        encoder=Encoder(
            attention_norm="attention.LayerNorm",
            type_embeddings="",
            relative_positions="encoder.relative_attention_bias.weight",
            positions_from_padding=True,
            padding=1,
        ),
    ),
    "deberta-v2": Architecture(
        prefix="deberta",
        layer=_BERT_LAYER,
        attention=Attention(
            module="attention.self",
            query="attention.self.query_proj",
            key="attention.self.key_proj",
            value="attention.self.value_proj",
            output="attention.output.dense",
            positions=("attention.self.pos_query_proj", "attention.self.pos_key_proj"),
        ),
        feed_forward=_BERT_FEED_FORWARD,
    ),
    "modernbert": Architecture(
        prefix="model",
        layer="layers.{}.",
        attention=Attention(module="attn", query="attn.Wqkv", key="attn.Wqkv", value="attn.Wqkv", output="attn.Wo"),
        feed_forward=FeedForward(module="mlp", input="mlp.Wi", gate="mlp.Wi", output="mlp.Wo"),
    ),
    "llama": Architecture(
        prefix="model",
        layer="layers.{}.",
        attention=Attention(
            module="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.o_proj",
        ),
        feed_forward=FeedForward(module="mlp", input="mlp.up_proj", gate="mlp.gate_proj", output="mlp.down_proj"),
    ),
    "vit": Architecture(
        prefix="vit",
        layer="layers.{}.",
        attention=Attention(
            module="attention",
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            output="attention.o_proj",
        ),
        feed_forward=FeedForward(module="mlp", input="mlp.fc1", output="mlp.fc2"),
    ),
}

_OTHER_ATTENTIONS: Final = (Attention(module="attn", query="attn.q", key="attn.k", value="attn.v", output="attn.o"),)
"""Attentions of families without an entry."""

POOLER: Final = "pooler"
"""Name of the module in the body that pools a sequence's states, in every family that has one."""
ACTIVATION_ATTRIBUTES: Final = ("intermediate_act_fn", "activation", "activation_fn", "act", "act_fn")
"""Where the modules that hold a feed-forward network's ``input`` keep the activation behind it."""
HEAD_COUNT_ATTRIBUTES: Final = ("num_attention_heads", "all_head_size")
"""Where the modules that compute attention keep the number of heads, and of their features."""
INTERMEDIATE_SIZE_KEYS: Final = tuple(dict.fromkeys(each.keys.intermediate_size for each in ARCHITECTURES.values()))
"""Configuration keys of the number of neurons, of all families."""

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
