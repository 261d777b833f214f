"""Checkpoints of post-norm encoders of several families, read as one canonical set of arrays.

embeddings.word [V, H]   embeddings.position [P, H]   embeddings.type [T, H]   embeddings.gamma, .beta [H]
projection.weight [H, E], .bias [H]                             where embeddings are narrower than the layers (ELECTRA)
relative [heads, 2 max_distance + 64]                            by query - key + max_distance (MPNet)
layers.N.{query,key,value,out,up,down}.weight [outputs, inputs], .bias [outputs]
layers.N.{attention_norm,output_norm}.{gamma,beta} [H]
head.*                                                          what lies outside the encoder, under its own name
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from prunus.architectures import ARCHITECTURES, KEYS, Architecture, EncoderNames, other_layers
from prunus.errors import EngineError, Problem, nearest
from prunus.runtime.compacted import filled, layout_of
from prunus.runtime.positions import relative_table

__all__ = [
    "ENCODERS",
    "DenseEncoder",
    "Shape",
    "canonical",
    "encoder_of",
    "layer_names",
    "layer_prefix",
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
    intermediate_size: int
    layers: int
    vocab_size: int
    positions: int
    types: int
    activation: str
    epsilon: float
    embedding_size: int = 0
    """Features of the embeddings, where they are projected; else 0."""
    max_distance: int = 0
    """Of the table of relative positions: distances -max_distance .. max_distance; 0 without one."""
    first_position: int = 0
    padding: int = 0
    """The id of padding; families that count positions from it skip it."""
    groups: int = 0
    """How many layers have weights of their own, where the others share them; else 0."""
    head: int = 0
    """Features of a head, where the stream was narrowed and they are not its share of it; else 0."""

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.head or self.hidden // self.heads


ENCODERS = {family: each for family, each in ARCHITECTURES.items() if each.encoder is not None}
"""Families with a fused engine."""


def layer_names(architecture: Architecture) -> dict[str, str]:
    """Canonical role -> name of the Linear layer, relative to its layer."""
    attention, feed_forward = architecture.attention, architecture.feed_forward
    return {
        "query": attention.query,
        "key": attention.key,
        "value": attention.value,
        "out": attention.output,
        "up": feed_forward.input,
        "down": feed_forward.output,
    }


def encoder_of(family: str) -> tuple[Architecture, EncoderNames]:
    """The names of a family with a fused engine. Raises ``EngineError`` for other families."""
    architecture = ENCODERS.get(family)
    if architecture is None or architecture.encoder is None:
        rule = f"be a family with a fused engine: {', '.join(ENCODERS)}"
        raise EngineError(Problem("config.json: model_type", family, rule, nearest(family, ENCODERS)))
    return architecture, architecture.encoder


def layer_prefix(shape: Shape, number: int) -> str:
    """Name of a layer in the body, with a dot behind it. Layers of one group share their weights, and so their name."""
    group = int(number / (shape.layers / shape.groups)) if shape.groups else number  # as transformers computes it
    return ENCODERS[shape.family].layer.format(group)


@dataclass(frozen=True)
class DenseEncoder:
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
    architecture, names = encoder_of(kind)
    keys = architecture.keys

    def setting(key: str, default_key: str, default: Any = None) -> Any:
        return settings.get(key, settings.get(default_key, default))

    sizes: dict[str, int] = {}
    for name in ("hidden_size", "heads", "intermediate_size", "layers", "vocab_size", "positions"):
        key = getattr(keys, name)
        value = setting(key, getattr(KEYS, name))
        most = 1000 if name == "layers" else 2**24
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < most:
            rule = f"be a whole number above 0 and below {most}"
            problems.append(Problem(f"config.json: {key}", value, rule))
        else:
            sizes[name] = value
    types = settings.get(keys.token_types) or 1
    if not isinstance(types, int) or not 0 < types < 2**24:
        problems.append(Problem(f"config.json: {keys.token_types}", types, "be a whole number"))
    epsilon = settings.get(keys.norm_epsilon, 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        problems.append(Problem(f"config.json: {keys.norm_epsilon}", epsilon, "be a number in [0, 1)"))
    if settings.get("is_decoder"):
        problems.append(Problem("config.json: is_decoder", True, "be false: the engine attends in both directions"))
    activation = str(setting(keys.activation, KEYS.activation, "gelu"))
    if activation not in ACTIVATION_NAMES:
        problems.append(
            Problem(f"config.json: {keys.activation}", activation, f"be one of {', '.join(ACTIVATION_NAMES)}")
        )
    positions = str(settings.get("position_embedding_type") or "absolute")
    if positions != "absolute":
        problems.append(Problem("config.json: position_embedding_type", positions, "be 'absolute'"))
    if problems:
        raise EngineError(*problems)
    hidden, heads = sizes["hidden_size"], sizes["heads"]
    if hidden % heads or (hidden // heads) % 4:
        rule = "be divisible by the heads, each a multiple of 4 features"
        raise EngineError(Problem(f"config.json: {keys.hidden_size}", f"{hidden} with {heads} heads", rule))
    _, left = layout_of(settings)
    head_size, hidden = hidden // heads if left else 0, left or hidden
    if hidden % 16:
        raise EngineError(Problem(f"config.json: {keys.hidden_size}", hidden, "be divisible by 16"))
    padding = padding_of(settings, architecture, names, sizes["vocab_size"])
    embedding_size = settings.get(keys.embedding_size, sizes["hidden_size"])
    if not isinstance(embedding_size, int) or embedding_size < 16 or embedding_size % 16:
        raise EngineError(Problem(f"config.json: {keys.embedding_size}", embedding_size, "be a multiple of 16"))
    projected = names.always_projects or embedding_size != sizes["hidden_size"]
    return Shape(
        kind,
        hidden,
        heads,
        sizes["intermediate_size"],
        sizes["layers"],
        sizes["vocab_size"],
        sizes["positions"],
        types if names.type_embeddings else 1,
        ACTIVATION_NAMES[activation],
        float(epsilon),
        embedding_size=embedding_size if projected else 0,
        max_distance=sizes["positions"] + 4 if names.relative_positions else 0,
        first_position=padding + 1 if names.positions_from_padding else 0,
        padding=padding,
        groups=groups_of(settings, architecture, sizes["layers"]),
        head=head_size,
    )


def padding_of(settings: Settings, architecture: Architecture, names: EncoderNames, vocab_size: int) -> int:
    """The id of padding, which the positions of some families depend on."""
    key = architecture.keys.padding
    stated = settings.get(key, names.padding)
    if isinstance(stated, int) and not isinstance(stated, bool) and 0 <= stated < vocab_size:
        return stated
    if names.positions_from_padding:
        rule = "be the id of a token: positions are counted from it"
        raise EngineError(Problem(f"config.json: {key}", stated, rule, str(names.padding)))
    return 0  # nothing depends on it


def groups_of(settings: Settings, architecture: Architecture, layers: int) -> int:
    """How many layers have weights of their own in a family whose layers share them; 0 in others."""
    keys = architecture.keys
    if not keys.layer_groups:
        return 0
    groups, per_group = settings.get(keys.layer_groups, 1), settings.get(keys.layers_per_group, 1)
    if type(groups) is not int or not 0 < groups <= layers:
        rule = f"be a whole number above 0, at most the {layers} layers"
        raise EngineError(Problem(f"config.json: {keys.layer_groups}", groups, rule))
    if per_group != 1:
        raise EngineError(Problem(f"config.json: {keys.layers_per_group}", per_group, "be 1"))
    return groups


class _Reader:
    """Takes tensors out of a checkpoint one by one, and collects what is wrong with each."""

    def __init__(self, state: dict[str, Array], prefix: str) -> None:
        self.state, self.prefix = state, prefix
        self.tensors: dict[str, Array] = {}
        self.problems: list[Problem] = []
        self.sources: set[str] = set()

    def take(self, name: str, source: str, *shape: int) -> None:
        """The tensor ``source`` of the body, as float32 under its canonical name."""
        source = self.prefix + source
        self.sources.add(source)
        value = self.state.get(source)
        if value is None:
            self.problems.append(Problem(source, "nothing", "be a tensor of the checkpoint"))
        elif value.shape != shape:
            self.problems.append(Problem(source, tuple(value.shape), f"have the shape {shape}"))
        elif value.dtype.kind != "f":
            self.problems.append(_integers(source, value))
        elif not np.isfinite(value).all():
            self.problems.append(Problem(source, "NaN or infinity", "hold finite numbers alone"))
        else:
            self.tensors[name] = np.ascontiguousarray(value, np.float32)

    def rows(self, source: str, default: int) -> int:
        """Rows of the weight of a layer of the body."""
        weight = self.state.get(f"{self.prefix}{source}.weight")
        return default if weight is None or weight.ndim != 2 else len(weight)


def _integers(source: str, value: Array) -> Problem:
    rule = "be stored in a float type: integers have lost the scales that make them weights"
    return Problem(source, str(value.dtype), rule, "the model as it was before it became integers")


def canonical(settings: Settings, state: dict[str, Array]) -> DenseEncoder:
    """Tensors of a Hugging Face checkpoint under canonical names, as float32.

    Layers that share their weights share the arrays.

    Raises:
        EngineError: tensors that are missing, have another shape, hold NaN or infinity, are stored as integers, or are of
            layers that ``settings`` do not describe.

    """
    shape = shape_of(settings)
    architecture, names = encoder_of(shape.family)
    body = architecture.prefix + "."
    read = _Reader(state, body if any(name.startswith(body) for name in state) else "")
    layout = {name.removeprefix(body): kept for name, kept in layout_of(settings)[0].items()}
    _read_embeddings(read, shape, names)
    for number in range(shape.layers):
        _read_layer(read, shape, number, layout)
    if names.relative_positions:
        buckets = settings.get("relative_attention_num_buckets", 32)
        rows = buckets if isinstance(buckets, int) and buckets >= 4 else 32
        read.take("relative", names.relative_positions, rows, shape.heads)
    beyond = other_layers(state, read.sources)
    if beyond:
        got, rule = f"{beyond[0]}, one of {len(beyond)} tensors of other layers", "be those that config.json describes"
        read.problems.insert(0, Problem("layers in the weights", got, rule, "the config.json that was saved with them"))
    if read.problems:
        raise EngineError(*read.problems[:20])
    if names.relative_positions:
        read.tensors["relative"] = relative_table(read.tensors["relative"], shape.heads, shape.max_distance)
    return DenseEncoder(shape, read.tensors | head_tensors(architecture, read.prefix, state), settings)


def _read_embeddings(read: _Reader, shape: Shape, names: EncoderNames) -> None:
    width = shape.embedding_size or shape.hidden
    read.take("embeddings.word", f"{names.word_embeddings}.weight", shape.vocab_size, width)
    read.take("embeddings.position", f"{names.position_embeddings}.weight", shape.positions, width)
    if names.type_embeddings:
        read.take("embeddings.type", f"{names.type_embeddings}.weight", shape.types, width)
    else:
        read.tensors["embeddings.type"] = np.zeros((1, width), np.float32)
    read.take("embeddings.gamma", f"{names.embedding_norm}.weight", width)
    read.take("embeddings.beta", f"{names.embedding_norm}.bias", width)
    if shape.embedding_size:
        read.take("projection.weight", f"{names.projection}.weight", shape.hidden, width)
        read.take("projection.bias", f"{names.projection}.bias", shape.hidden)


def _read_layer(read: _Reader, shape: Shape, number: int, layout: dict[str, list[int]]) -> None:
    architecture, names = encoder_of(shape.family)
    source, hidden = layer_prefix(shape, number), shape.hidden
    roles = {role: source + name for role, name in layer_names(architecture).items()}
    read.state = filled(
        read.state,
        {role: read.prefix + name for role, name in roles.items()},
        layout.get(roles["out"]),
        layout.get(roles["down"]),
        (shape.heads if names.relative_positions else 0, shape.size, hidden),
    )
    heads = read.rows(roles["query"], hidden)  # a compacted layer has fewer
    neurons = read.rows(roles["up"], shape.intermediate_size)
    if heads % shape.size:
        read.problems.append(Problem(roles["query"], heads, f"have whole heads of {shape.size} features"))
    sizes = {"out": (hidden, heads), "up": (neurons, hidden), "down": (hidden, neurons)}
    for role, name in roles.items():
        outputs, inputs = sizes.get(role, (heads, hidden))
        read.take(f"layers.{number}.{role}.weight", f"{name}.weight", outputs, inputs)
        read.take(f"layers.{number}.{role}.bias", f"{name}.bias", outputs)
    for norm, name in (("attention_norm", names.attention_norm), ("output_norm", names.output_norm)):
        read.take(f"layers.{number}.{norm}.gamma", f"{source}{name}.weight", hidden)
        read.take(f"layers.{number}.{norm}.beta", f"{source}{name}.bias", hidden)


def head_tensors(architecture: Architecture, prefix: str, state: dict[str, Array]) -> dict[str, Array]:
    """Tensors outside the encoder, as ``head.*``."""
    body_prefixes = ["embeddings.", "encoder.", architecture.layer.split("{")[0]]
    if architecture.encoder is not None and architecture.encoder.projection:
        body_prefixes.append(f"{architecture.encoder.projection}.")
    tensors, integers = {}, []
    for name, value in state.items():
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and bare.startswith(tuple(body_prefixes)):
            continue
        if value.dtype.kind == "f":
            tensors[f"head.{bare}"] = np.ascontiguousarray(value, np.float32)
        elif name.endswith((".weight", ".bias")):
            integers.append(_integers(name, value))
    if integers:
        raise EngineError(*integers[:20])
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise EngineError(*(Problem(name, "NaN or infinity", "hold finite numbers alone") for name in bad[:20]))
    return tensors


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


def read_checkpoint(directory: Path) -> DenseEncoder:
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
