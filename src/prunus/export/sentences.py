"""What a sentence-transformers directory does after the encoder, read once and for all when the model is exported.

Read are Transformer, Pooling (all modes), Dense, LayerNorm, Dropout (nothing, when a model is used) and Normalize, with the
prompts, ``truncate_dim``, ``max_seq_length`` and ``do_lower_case``. Anything else would change embeddings in silence if it
were left out, and is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.checkpoint.sentence_files import CONFIGS, SentenceFiles, SentenceModule, find_sentence_files, read_object
from prunus.checkpoint.weights import read_weights
from prunus.errors import CheckpointError, Problem
from prunus.runtime.convert import Model
from prunus.runtime.sentences import DENSE_ACTIVATIONS, MODES, EmbeddingStep, Sentences, sentences_of

__all__ = ["SentenceModel", "cross_encoder_settings", "read_sentences"]

Array = NDArray[Any]
FIX: Final = "encoding with sentence-transformers itself"
KNOWN: Final = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
OLD_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How older versions write the modes, in the order in which their results are joined."""
TRANSFORMER: Final[dict[str, tuple[Any, ...]]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "backend": ("torch",),
}
"""Settings of the transformer that are read, and the values that the engine has; others must be empty."""
HARMLESS: Final = {"max_seq_length", "do_lower_case", "unpad_inputs"}
ARGUMENTS: Final = ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs")
NUMERIC: Final = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code", "model_max_length"}
"""Arguments of loading that leave the numbers what they are, up to rounding; ``model_max_length`` is read."""


@dataclass(frozen=True)
class SentenceModel:
    """The description and its tensors, ``sentence.N.*``."""

    sentences: Sentences
    tensors: dict[str, Array] = field(default_factory=dict)

    def add(self, model: Model) -> Model:
        """The packed model with this."""
        sentences_of(self.sentences.json(), model.shape.hidden, self.tensors)
        return replace(model, sentences=self.sentences, tensors=model.tensors | self.tensors)


def read_sentences(directory: Path) -> SentenceModel | None:
    """The modules of a sentence-transformers directory; None for any other, and for a CrossEncoder, which is a classifier.

    Raises:
        CheckpointError: every module and setting that the engine does not have, and files that cannot be read.

    """
    files = find_sentence_files(directory)
    if files is None:
        return None
    if files.settings().get("model_type") == "CrossEncoder" and len(files.modules) == 1:
        return None
    problems = [
        Problem(f"modules.json: module {module.name}", module.kind, f"be one of {', '.join(KNOWN)}", FIX)
        for module in files.modules
        if kind_of(module) not in KNOWN
    ]
    kinds = [kind_of(module) for module in files.modules]
    if not problems and (kinds[0] != "Transformer" or kinds.count("Transformer") > 1 or kinds.count("Pooling") != 1):
        rule = "be one Transformer, then one Pooling, then the others"
        problems.append(Problem("modules.json", " ".join(kinds), rule, FIX))
    elif not problems and kinds[1] != "Pooling" and set(kinds[1 : kinds.index("Pooling")]) != {"Dropout"}:
        rule = "have the Pooling next to the Transformer"
        problems.append(Problem("modules.json", " ".join(kinds), rule, FIX))
    if problems:
        raise CheckpointError(*problems)
    settings = transformer_settings(files)
    pooling = read_object(files.root / files.modules[kinds.index("Pooling")].path / "config.json")
    steps, tensors = read_steps(files, kinds.index("Pooling") + 1)
    prompts, name = read_prompts(files.settings())
    sentences = Sentences(
        modes_of(pooling),
        bool(pooling.get("include_prompt", True)),
        tuple(steps),
        length_of(settings),
        bool(settings.get("do_lower_case")),
        prompts,
        name,
        features_of(files.settings()),
    )
    return SentenceModel(sentences, tensors)


def cross_encoder_settings(directory: Path) -> dict[str, Any]:
    """The activation that a CrossEncoder directory names, as ``config.json`` of its older versions holds it."""
    files = find_sentence_files(directory)
    settings = {} if files is None else files.settings()
    if settings.get("model_type") != "CrossEncoder" or not settings.get("activation_fn"):
        return {}
    return {"sentence_transformers": {"activation_fn": settings["activation_fn"]}}


def kind_of(module: SentenceModule) -> str:
    """The class of a module of the package itself; empty for somebody else's."""
    package, _, _ = module.kind.partition(".")
    return module.kind.rpartition(".")[2] if package == "sentence_transformers" else ""


def transformer_settings(files: SentenceFiles) -> dict[str, Any]:
    """The settings of the transformer; ``CheckpointError`` for those that the engine does not have."""
    path = next((p for name in CONFIGS if (p := files.transformer / name).is_file()), files.transformer / CONFIGS[0])
    settings, problems = read_object(path), []
    for key, value in settings.items():
        if key in ARGUMENTS and isinstance(value, Mapping):
            more = set(value) - NUMERIC
            if more:
                problems.append(Problem(f"{path.name}: {key}", ", ".join(sorted(more)), "be left out", FIX))
        elif value and key not in HARMLESS and value not in TRANSFORMER.get(key, ()):
            rule = f"be {TRANSFORMER[key][0]!r}" if key in TRANSFORMER else "be left out"
            problems.append(Problem(f"{path.name}: {key}", str(value)[:80], rule, FIX))
    if problems:
        raise CheckpointError(*problems)
    return settings


def length_of(settings: Mapping[str, Any]) -> int | None:
    """The longest input that the settings of the transformer state."""
    stated = settings.get("max_seq_length")
    for key in ("tokenizer_args", "processor_kwargs"):
        arguments = settings.get(key)
        if isinstance(arguments, Mapping) and arguments.get("model_max_length"):
            stated = arguments["model_max_length"]
    if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool) or stated < 1):
        raise CheckpointError(Problem("max_seq_length", stated, "be a whole number above 0"))
    return stated


def modes_of(pooling: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of a Pooling module, in the order in which their results are joined."""
    stated = pooling.get("pooling_mode")
    if stated is None:
        stated = [mode for key, mode in OLD_MODES.items() if pooling.get(key)] or ["mean"]
    modes = [stated] if isinstance(stated, str) else stated
    if not isinstance(modes, list) or not modes or any(mode not in MODES for mode in modes):
        raise CheckpointError(Problem("Pooling: pooling_mode", str(stated)[:80], f"be some of {', '.join(MODES)}", FIX))
    return tuple(modes)


def read_prompts(settings: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Prompts by name, and the name of the default one."""
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(
            Problem("config_sentence_transformers.json: prompts", str(prompts)[:80], "map names to texts")
        )
    if name is not None and name not in prompts:
        rule = f"be the name of a prompt: {', '.join(prompts) or 'there are none'}"
        raise CheckpointError(Problem("config_sentence_transformers.json: default_prompt_name", name, rule))
    return tuple((key, text or "") for key, text in prompts.items()), name


def features_of(settings: Mapping[str, Any]) -> int | None:
    """``truncate_dim``."""
    stated = settings.get("truncate_dim")
    if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool) or stated < 1):
        key = "config_sentence_transformers.json: truncate_dim"
        raise CheckpointError(Problem(key, stated, "be a whole number above 0"))
    return stated


def read_steps(files: SentenceFiles, begin: int) -> tuple[list[EmbeddingStep], dict[str, Array]]:
    """The modules after the pooling, and their tensors."""
    steps: list[EmbeddingStep] = []
    tensors: dict[str, Array] = {}
    for module in files.modules[begin:]:
        kind, place = kind_of(module), files.root / module.path
        if kind in ("Dropout", "Transformer"):
            continue
        # A module in the root has no settings of its own there: config.json is the transformer's.
        settings = read_object(place / "config.json") if module.path else {}
        for key in ("module_input_name", "module_output_name"):
            if settings.get(key) not in (None, "sentence_embedding"):
                where = f"modules.json: module {module.name}: {key}"
                raise CheckpointError(Problem(where, settings[key], "be sentence_embedding", FIX))
        if kind == "Normalize":
            steps.append(EmbeddingStep("normalize"))
            continue
        weights, name = read_weights(place), f"sentence.{len(steps)}"
        stored = next(((part, value.dtype) for part, value in weights.items() if not value.is_floating_point()), None)
        if stored is not None:
            rule = "be stored in a float type: integers have lost the scales that make them weights"
            raise CheckpointError(
                Problem(f"{place}: {stored[0]}", str(stored[1]), rule, "the module as it was trained")
            )
        parts = {"norm.weight": "weight", "norm.bias": "bias"}
        if kind == "Dense":
            parts = {"linear.weight": "weight", "linear.bias": "bias", "residual.weight": "residual"}
            steps.append(EmbeddingStep("dense", activation_of(settings), bool(settings.get("use_residual"))))
        else:
            steps.append(EmbeddingStep("norm"))
        renamed = {
            f"{name}.{to}": weights[part].float().numpy().copy() for part, to in parts.items() if part in weights
        }
        if kind == "Dense" and f"{name}.bias" not in renamed and f"{name}.weight" in renamed:
            renamed[f"{name}.bias"] = np.zeros(len(renamed[f"{name}.weight"]), np.float32)
        tensors |= renamed
    return steps, tensors


def activation_of(settings: Mapping[str, Any]) -> str:
    """The activation of a Dense module; Tanh where none is named, as there."""
    path = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = path.rpartition(".")[2]
    if not path.startswith("torch.nn.") or name not in DENSE_ACTIVATIONS:
        rule = f"be a class of torch.nn: {', '.join(DENSE_ACTIVATIONS)}"
        raise CheckpointError(Problem("Dense: activation_function", path, rule, FIX))
    return name
