"""Which tensor of a checkpoint is what: post-norm encoders of several families, as one canonical set of arrays.

embeddings.word [V, H]   embeddings.position [P, H]   embeddings.type [T, H]   embeddings.gamma, .beta [H]
projection.weight [H, E], .bias [H]                             where embeddings are narrower than the layers (ELECTRA)
relative [heads, 2 reach + 64]                                  by query - key + reach (MPNet)
layers.N.{query,key,value,out,up,down}.weight [outputs, inputs], .bias [outputs]
layers.N.{attention_norm,output_norm}.{gamma,beta} [H]
head.*                                                          what lies outside the encoder, under its own name
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from prunus.errors import EngineError, Problem, nearest
from prunus.runtime.layout import filled, layout_of

__all__ = [
    "FAMILIES",
    "Dense",
    "Family",
    "Shape",
    "canonical",
    "places",
    "read_checkpoint",
    "read_settings",
    "shape_of",
]

Array = NDArray[Any]
Settings = dict[str, Any]
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Shape:
    """What an encoder is, apart from its numbers."""

    family: str
    hidden: int
    heads: int
    inner: int
    layers: int
    words: int
    positions: int
    types: int
    activation: str
    epsilon: float
    narrow: int = 0
    """Features of the embeddings, where they are projected; else 0."""
    reach: int = 0
    """Of the table of relative positions: distances -reach .. reach; 0 without one."""
    first_position: int = 0
    padding: int = 0
    """The id of padding; families that count positions from it skip it."""
    head: int = 0
    """Features of a head, where the stream was narrowed and they are not its share of it; else 0."""

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.head or self.hidden // self.heads


BERT_ROLES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
BERT_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


@dataclass(frozen=True)
class Family:
    """Names of one family's tensors and settings."""

    prefix: str
    layer: str = "encoder.layer.{}."
    roles: dict[str, str] = field(default_factory=lambda: dict(BERT_ROLES))
    norms: dict[str, str] = field(default_factory=lambda: dict(BERT_NORMS))
    settings: dict[str, str] = field(default_factory=dict)
    """Names of settings that differ from BERT's."""
    types: bool = True
    positions_from_padding: bool = False
    padding: int = 0
    """The id of padding of a configuration that does not name one: the default of transformers' class."""
    relative: str = ""


ROBERTA = Family("roberta.", positions_from_padding=True, padding=1)
FAMILIES = {
    "bert": Family("bert."),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": Family("electra."),
    "distilbert": Family(
        "distilbert.",
        "transformer.layer.{}.",
        {
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "out": "attention.out_lin",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
        },
        {"attention_norm": "sa_layer_norm", "output_norm": "output_layer_norm"},
        {
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "num_hidden_layers": "n_layers",
            "hidden_act": "activation",
        },
        types=False,
    ),
    "mpnet": Family(
        "mpnet.",
        roles=BERT_ROLES
        | {
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "out": "attention.attn.o",
        },
        norms=BERT_NORMS | {"attention_norm": "attention.LayerNorm"},
        types=False,
        positions_from_padding=True,
        padding=1,
        relative="encoder.relative_attention_bias.weight",
    ),
}


@dataclass(frozen=True)
class Dense:
    """An encoder in float32, under canonical names, and what came with it."""

    shape: Shape
    tensors: dict[str, Array]
    settings: Settings
    """``config.json``."""


def shape_of(settings: Settings) -> Shape:
    """The shape that a ``config.json`` states; heads and FFN of any size are read from the tensors later.

    Raises:
        EngineError: a family, an activation or a kind of position that the engine does not know, each named.

    """
    problems = []
    kind = str(settings.get("model_type", ""))
    family = FAMILIES.get(kind)
    if family is None:
        rule = f"be a family with a fused engine: {', '.join(FAMILIES)}"
        raise EngineError(Problem("config.json: model_type", kind, rule, nearest(kind, FAMILIES)))

    def setting(name: str, default: Any = None) -> Any:
        return settings.get(family.settings.get(name, name), settings.get(name, default))

    whole: dict[str, int] = {}
    for name in (
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
    ):
        value = setting(name)
        most = 1000 if name == "num_hidden_layers" else 2**24
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < most:
            rule = f"be a whole number above 0 and below {most}"
            problems.append(Problem(f"config.json: {family.settings.get(name, name)}", value, rule))
        else:
            whole[name] = value
    types = settings.get("type_vocab_size") or 1
    if not isinstance(types, int) or not 0 < types < 2**24:
        problems.append(Problem("config.json: type_vocab_size", types, "be a whole number"))
    epsilon = settings.get("layer_norm_eps", 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        problems.append(Problem("config.json: layer_norm_eps", epsilon, "be a number in [0, 1)"))
    if settings.get("is_decoder"):
        problems.append(Problem("config.json: is_decoder", True, "be false: the engine attends in both directions"))
    activation = str(setting("hidden_act", "gelu"))
    if activation not in ACTIVATION_NAMES:
        problems.append(Problem("config.json: hidden_act", activation, f"be one of {', '.join(ACTIVATION_NAMES)}"))
    positions = str(settings.get("position_embedding_type") or "absolute")
    if positions != "absolute":
        problems.append(Problem("config.json: position_embedding_type", positions, "be 'absolute'"))
    if problems:
        raise EngineError(*problems)
    hidden, heads = whole["hidden_size"], whole["num_attention_heads"]
    if hidden % heads or (hidden // heads) % 4:
        rule = "be divisible by the heads, each a multiple of 4 features"
        raise EngineError(Problem("config.json: hidden_size", f"{hidden} with {heads} heads", rule))
    _, left = layout_of(settings)
    own, hidden = hidden // heads if left else 0, left or hidden
    if hidden % 16:
        raise EngineError(Problem("config.json: hidden_size", hidden, "be divisible by 16"))
    padding = padding_of(settings, family, whole["vocab_size"])
    narrow = settings.get("embedding_size", whole["hidden_size"]) if kind == "electra" else whole["hidden_size"]
    if not isinstance(narrow, int) or narrow < 16 or narrow % 16:
        raise EngineError(Problem("config.json: embedding_size", narrow, "be a multiple of 16"))
    return Shape(
        kind,
        hidden,
        heads,
        whole["intermediate_size"],
        whole["num_hidden_layers"],
        whole["vocab_size"],
        whole["max_position_embeddings"],
        types if family.types else 1,
        ACTIVATION_NAMES[activation],
        float(epsilon),
        narrow if narrow != whole["hidden_size"] else 0,
        whole["max_position_embeddings"] + 4 if family.relative else 0,
        padding + 1 if family.positions_from_padding else 0,
        padding,
        own,
    )


def padding_of(settings: Settings, family: Family, words: int) -> int:
    """The id of padding, which the positions of some families depend on."""
    stated = settings.get("pad_token_id", family.padding)
    if isinstance(stated, int) and not isinstance(stated, bool) and 0 <= stated < words:
        return stated
    if family.positions_from_padding:
        rule = "be the id of a token: positions are counted from it"
        raise EngineError(Problem("config.json: pad_token_id", stated, rule, str(family.padding)))
    return 0  # nothing depends on it


def canonical(settings: Settings, state: dict[str, Array]) -> Dense:
    """Tensors of a Hugging Face checkpoint under canonical names, as float32.

    Raises:
        EngineError: tensors that are missing, have another shape, or hold NaN or infinity.

    """
    shape = shape_of(settings)
    family = FAMILIES[shape.family]
    prefix = family.prefix if any(name.startswith(family.prefix) for name in state) else ""
    layout = {name.removeprefix(family.prefix): kept for name, kept in layout_of(settings)[0].items()}
    problems: list[Problem] = []
    found: dict[str, Array] = {}

    def take(name: str, source: str, *expected: int) -> None:
        value = state.get(prefix + source)
        if value is None:
            problems.append(Problem(prefix + source, "nothing", "be a tensor of the checkpoint"))
        elif expected and value.shape != expected:
            problems.append(Problem(prefix + source, tuple(value.shape), f"have the shape {expected}"))
        elif not np.isfinite(value).all():
            problems.append(Problem(prefix + source, "NaN or infinity", "hold finite numbers alone"))
        else:
            found[name] = np.ascontiguousarray(value, np.float32)

    h, wide = shape.hidden, shape.narrow or shape.hidden
    take("embeddings.word", "embeddings.word_embeddings.weight", shape.words, wide)
    take("embeddings.position", "embeddings.position_embeddings.weight", shape.positions, wide)
    if family.types:
        take("embeddings.type", "embeddings.token_type_embeddings.weight", shape.types, wide)
    else:
        found["embeddings.type"] = np.zeros((1, wide), np.float32)
    take("embeddings.gamma", "embeddings.LayerNorm.weight", wide)
    take("embeddings.beta", "embeddings.LayerNorm.bias", wide)
    if shape.narrow:
        take("projection.weight", "embeddings_project.weight", h, wide)
        take("projection.bias", "embeddings_project.bias", h)
    for i in range(shape.layers):
        source = family.layer.format(i)
        state = filled(
            state,
            {role: prefix + source + name for role, name in family.roles.items()},
            layout.get(source + family.roles["out"]),
            layout.get(source + family.roles["down"]),
            (shape.heads if family.relative else 0, shape.size, h),
        )
        heads = rows_of(state, prefix + source + family.roles["query"], h)  # a compacted layer has fewer
        inner = rows_of(state, prefix + source + family.roles["up"], shape.inner)
        if heads % shape.size:
            problems.append(
                Problem(source + family.roles["query"], heads, f"have whole heads of {shape.size} features")
            )
        sizes = {"out": (h, heads), "up": (inner, h), "down": (h, inner)}
        for role, name in family.roles.items():
            outputs, inputs = sizes.get(role, (heads, h))
            take(f"layers.{i}.{role}.weight", f"{source}{name}.weight", outputs, inputs)
            take(f"layers.{i}.{role}.bias", f"{source}{name}.bias", outputs)
        for norm, name in family.norms.items():
            take(f"layers.{i}.{norm}.gamma", f"{source}{name}.weight", h)
            take(f"layers.{i}.{norm}.beta", f"{source}{name}.bias", h)
    if family.relative:
        buckets = settings.get("relative_attention_num_buckets", 32)
        take("relative", family.relative, buckets if isinstance(buckets, int) and buckets >= 4 else 32, shape.heads)
    if problems:
        raise EngineError(*problems[:20])
    if family.relative:
        found["relative"] = relative_table(found["relative"], shape.heads, shape.reach)
    return Dense(shape, found | head_tensors(family, prefix, state), settings)


def head_tensors(family: Family, prefix: str, state: dict[str, Array]) -> dict[str, Array]:
    """What lies outside the encoder, as ``head.*``."""
    inside = ("embeddings.", "embeddings_project.", family.layer.split("{")[0], "encoder.")
    found = {}
    for name, value in state.items():
        own = name.removeprefix(prefix)
        if not (name.startswith(prefix) and own.startswith(inside)) and np.issubdtype(value.dtype, np.floating):
            found[f"head.{own}"] = np.ascontiguousarray(value, np.float32)
    bad = [name for name, value in found.items() if not np.isfinite(value).all()]
    if bad:
        raise EngineError(*(Problem(name, "NaN or infinity", "hold finite numbers alone") for name in bad[:20]))
    return found


def rows_of(state: dict[str, Array], name: str, default: int) -> int:
    weight = state.get(name + ".weight")
    return default if weight is None or weight.ndim != 2 else len(weight)


def relative_table(weight: Array, heads: int, reach: int) -> Array:
    """T5's buckets (Raffel et al., 2020, section 2.1) as MPNet uses them, for each distance: ``[heads, 2 reach + 64]``.

    The last 64 are for lanes that run over the end of a sequence; what is computed there is thrown away.
    """
    buckets = len(weight)
    half = buckets // 2
    distance = np.arange(-reach, reach + 64)  # query - key
    away = np.abs(distance)
    exact = half // 2
    safe = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
    far = exact + (np.log(safe) / np.float32(math.log(128 / exact)) * (half - exact)).astype(np.int64)
    bucket = np.where(away < exact, away, np.minimum(far, half - 1)) + half * (distance < 0)
    return np.ascontiguousarray(weight[bucket].T[:heads], np.float32)


def places(shape: Shape, ids: Array) -> Array:
    """Positions of token ids ``[..., tokens]``, as transformers counts them: some families count only what is no padding."""
    if not shape.first_position:
        return np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
    real = ids != shape.padding
    return np.asarray(np.cumsum(real, axis=-1) * real + shape.padding)


def read_settings(path: Path) -> Settings:
    """``config.json`` of a directory."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise EngineError(Problem(str(path), "nothing", "be a file")) from None
    except (ValueError, RecursionError) as error:
        raise EngineError(Problem(str(path), str(error), "be JSON")) from None
    if not isinstance(settings, dict):
        raise EngineError(Problem(str(path), type(settings).__name__, "hold an object"))
    return settings


def read_checkpoint(directory: Path) -> Dense:
    """Reads ``config.json`` and ``model.safetensors`` of a Hugging Face directory.

    Raises:
        EngineError: a file that is missing or damaged, or a model that has no fused engine.

    """
    config, weights = directory / "config.json", directory / "model.safetensors"
    missing = [Problem(str(path), "nothing", "be a file") for path in (config, weights) if not path.is_file()]
    if missing:
        raise EngineError(*missing)
    settings = read_settings(config)
    try:
        with safe_open(weights, framework="numpy") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise EngineError(
            Problem(str(weights), str(error), "be a safetensors file of float32 or float16 tensors")
        ) from None
    return canonical(settings, state)
