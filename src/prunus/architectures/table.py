"""What each model family calls its parts: names of modules and configuration keys.

Names of Linear layers are relative to their layer (``attention.self.query``), names of layers to the model's body
(``encoder.layer.3.``); in a checkpoint with a head the body's prefix (``bert.``) stands before both.
"""

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "ACTIVATION_ATTRIBUTES",
    "ARCHITECTURES",
    "HEAD_COUNT_ATTRIBUTES",
    "INTERMEDIATE_SIZE_KEYS",
    "KEYS",
    "LAYER_GROUPS_KEYS",
    "POOLER",
    "Architecture",
    "Attention",
    "Classifier",
    "ConfigKeys",
    "EncoderNames",
    "FeedForward",
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
    dropout: str = ""
    """Of the output, where ``module`` adds its input to the output and normalizes the sum."""
    norm: str = ""
    """Of that sum; empty where ``module`` gives the output alone."""

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
class EncoderNames:
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
    encoder: EncoderNames | None = None
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
    encoder=EncoderNames(positions_from_padding=True, padding=1),
)

ARCHITECTURES: Final[dict[str, Architecture]] = {
    "bert": Architecture(
        prefix="bert",
        layer=_BERT_LAYER,
        attention=_BERT_ATTENTION,
        feed_forward=_BERT_FEED_FORWARD,
        encoder=EncoderNames(classifier=Classifier("pooler.dense", "tanh", "classifier")),
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
        encoder=EncoderNames(projection="embeddings_project", classifier=Classifier(activation="gelu")),
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
        encoder=EncoderNames(
            attention_norm="sa_layer_norm",
            output_norm="output_layer_norm",
            type_embeddings="",
            classifier=Classifier("pre_classifier", "relu", "classifier"),
        ),
    ),
    "albert": Architecture(
        prefix="albert",
        layer="encoder.albert_layer_groups.{}.albert_layers.0.",
        attention=Attention(
            module="attention",
            query="attention.query",
            key="attention.key",
            value="attention.value",
            output="attention.dense",
            dropout="attention.output_dropout",
            norm="attention.LayerNorm",
        ),
        feed_forward=FeedForward(module="", input="ffn", output="ffn_output"),
        keys=ConfigKeys(
            embedding_size="embedding_size", layer_groups="num_hidden_groups", layers_per_group="inner_group_num"
        ),
        encoder=EncoderNames(
            attention_norm="attention.LayerNorm",
            output_norm="full_layer_layer_norm",
            projection="encoder.embedding_hidden_mapping_in",
            always_projects=True,
            pooler="pooler",
            classifier=Classifier("pooler", "tanh", "classifier"),
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
        encoder=EncoderNames(
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

POOLER: Final = "pooler"
"""Name of the module in the body that pools a sequence's states, in every family that has one."""
ACTIVATION_ATTRIBUTES: Final = ("intermediate_act_fn", "activation", "activation_fn", "act", "act_fn")
"""Where the modules that hold a feed-forward network's ``input`` keep the activation behind it."""
HEAD_COUNT_ATTRIBUTES: Final = ("num_attention_heads", "all_head_size")
"""Where the modules that compute attention keep the number of heads, and of their features."""
INTERMEDIATE_SIZE_KEYS: Final = tuple(dict.fromkeys(each.keys.intermediate_size for each in ARCHITECTURES.values()))
"""Configuration keys of the number of neurons, of all families."""
LAYER_GROUPS_KEYS: Final = tuple({each.keys.layer_groups for each in ARCHITECTURES.values()} - {""})
"""Configuration keys of the number of layers with weights of their own, of families whose layers share weights."""
