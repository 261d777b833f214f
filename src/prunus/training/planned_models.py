"""Resolves the models of a run: where they come from, their configurations, tokenizer and shapes.

Weights are read once to see that they are whole, and let go: what a checkpoint lacks is told before anything is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunus.errors import Problem, PrunusError, collecting
from prunus.models.loading import config_for, load_model, load_tokenizer, meta_model, model_source, trained_for
from prunus.recipe import OWN_TEACHERS
from prunus.recipe_blocks import ModelSpec
from prunus.tasks.base import HeadKind, Task
from prunus.training.shape import cut_shapes

__all__ = ["Models", "Sources", "resolve_models", "resolve_sources", "shaped"]


@dataclass(frozen=True)
class Sources:
    """What ``from_pretrained`` takes for each model."""

    model: str
    dense: str
    teachers: dict[str, str]
    """Key in the recipe -> ``dense``, ``start``, or a source."""


@dataclass(frozen=True)
class Models:
    """Configurations, tokenizer and shapes."""

    config: PreTrainedConfig
    dense_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    skeleton: PreTrainedModel


def resolve_sources(spec: ModelSpec, teachers: Mapping[str, str], problems: list[Problem]) -> Sources | None:
    """Looks for the models; None, and a problem for each that is not there."""
    model = _source(spec.name, "model.name", problems, spec.revision)
    dense = model if spec.dense is None else _source(spec.dense, "model.dense", problems)
    teacher_sources = {
        key: name if name in OWN_TEACHERS else _source(name, key, problems) for key, name in teachers.items()
    }
    if model is None or dense is None:
        return None
    return Sources(model, dense, {key: name for key, name in teacher_sources.items() if name is not None})


def resolve_models(spec: ModelSpec, sources: Sources, task: Task, problems: list[Problem]) -> Models | None:
    """Reads configurations and tokenizer and makes the model without weights; None, and problems, where that fails."""
    new, head = spec.head == "new", task.head
    if new and head == "masked-language":
        rule = "be kept for masked language modelling, whose head is part of the embeddings"
        problems.append(Problem("model.head", "new", rule, "leaving it out"))
    tokenizer: PreTrainedTokenizerBase | None = None
    config: PreTrainedConfig | None = None
    skeleton: PreTrainedModel | None = None
    with collecting(problems):
        tokenizer = load_tokenizer(sources.model)
    with collecting(problems):
        config = config_for(sources.model, task, tokenizer=tokenizer, new_head=new)
        skeleton = shaped(config, head, spec)
        load_model(sources.model, config, head, new_head=new)
    dense_config = config
    if spec.dense is not None:
        key = "model.dense"
        with collecting(problems):
            dense_config = config_for(sources.dense, task, key=key, tokenizer=tokenizer, new_head=new)
            problems += _knows(dense_config, tokenizer, key)
            load_model(sources.dense, dense_config, head, new_head=new, key=key)
    for key, teacher in sources.teachers.items():
        if teacher == "start" and config is not None and not trained_for(config, head):
            rule = f"be a model that is fine-tuned for {head}, to teach itself as it starts"
            problems.append(Problem(key, "start", rule, "dense, which fine-tunes one first, or a directory"))
        elif teacher not in OWN_TEACHERS:
            problems += _teacher(teacher, task, tokenizer, key) + _reads(teacher, tokenizer, key)
    if config is None or dense_config is None or tokenizer is None or skeleton is None:
        return None
    return Models(config, dense_config, tokenizer, skeleton)


def shaped(config: PreTrainedConfig, head: HeadKind, spec: ModelSpec) -> PreTrainedModel:
    """The model without weights, of the shapes that its training begins with."""
    skeleton = meta_model(config, head)
    cut_shapes(skeleton, spec)
    return skeleton


def _source(name: str, key: str, problems: list[Problem], revision: str | None = None) -> str | None:
    with collecting(problems):
        return model_source(name, key, revision)
    return None


def _teacher(source: str, task: Task, tokenizer: PreTrainedTokenizerBase | None, key: str) -> list[Problem]:
    """Why the model in ``source`` cannot teach: it is not trained for the task, or knows other tokens."""
    problems: list[Problem] = []
    with collecting(problems):
        config = config_for(source, task, key=key, tokenizer=tokenizer)
        problems += _knows(config, tokenizer, key)
        if trained_for(config, task.head):
            load_model(source, config, task.head, key=key)
        else:
            rule = f"be a model that is fine-tuned for {task.head}"
            problems.append(Problem(key, source, rule, "dense, which fine-tunes one first"))
    return problems


def _reads(source: str, tokenizer: PreTrainedTokenizerBase | None, key: str) -> list[Problem]:
    """Whether a teacher in a directory has a tokenizer beside it that gives tokens other numbers than the model's."""
    try:
        theirs = load_tokenizer(source, key=key) if tokenizer is not None and Path(source).is_dir() else None
    except PrunusError:  # none is there, and none is needed
        return []
    if theirs is None or tokenizer is None:
        return []
    known = theirs.get_vocab()
    other = next((token for token, number in tokenizer.get_vocab().items() if known.get(token, number) != number), None)
    if other is None:
        return []
    rule = f"be made for the model's tokenizer, which numbers {other!r} {tokenizer.get_vocab()[other]}"
    return [Problem(key, f"{other!r} as {known[other]}", rule, "dense, or a teacher with that tokenizer")]


def _knows(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, key: str) -> list[Problem]:
    """Whether a model has fewer tokens than the tokenizer makes."""
    if tokenizer is None or config.get_text_config().vocab_size >= len(tokenizer):
        return []
    rule = f"know the {len(tokenizer)} tokens of the model's tokenizer"
    return [Problem(key, f"{config.get_text_config().vocab_size} tokens", rule, "a model with that tokenizer")]
