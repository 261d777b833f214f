"""Everything a run can know before it trains: data, tokens, shapes, steps, memory, and every mistake at once.

``prepare`` is the first half of ``prunus run`` and the whole of ``prunus plan``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunus.checkpoint.state import MASKS_FILE, read_masks
from prunus.distributed.deepspeed import asked_stage, deepspeed_problems
from prunus.distributed.processes import main_process_first, process_count
from prunus.errors import Problem, PrunusError, RecipeError
from prunus.models.loading import (
    config_for,
    load_model,
    load_tokenizer,
    meta_model,
    model_source,
    trained_for,
    weight_problems,
)
from prunus.quantization.prepare import attach
from prunus.recipe import OWN_TEACHERS, ModelSpec, Recipe, TrainSpec
from prunus.sparsity.pruning import Rule, resolve
from prunus.sparsity.zeros import found_zeros
from prunus.tasks import check_task, load_task, row_length, shortened
from prunus.tasks.base import Feature, HeadKind, Task
from prunus.training.budgeted import within_budget
from prunus.training.shape import cut_shapes
from prunus.training.trial import Trial, batch_problems, row_problems, trial_of

__all__ = ["Length", "Prepared", "length_of", "prepare", "saved_masks"]

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


@dataclass(frozen=True)
class Length:
    """A training in optimizer steps."""

    steps_per_epoch: int
    total: int


@dataclass(frozen=True)
class Prepared:
    """A recipe that has met its data and its model's shapes, and can run."""

    recipe: Recipe
    task: Task
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    source: str
    dense_source: str
    """What the dense model is fine-tuned from; with ``dense_config``."""
    dense_config: PreTrainedConfig
    teachers: dict[str, str]
    """Key in the recipe -> ``dense``, ``start``, or what ``from_pretrained`` takes."""
    train_features: Sequence[Feature]
    length: Length
    dense_length: Length
    rules: tuple[Rule, ...]
    parameters: int
    skeleton: nn.Module
    quantized: tuple[str, ...]
    """Names of the layers that will train in 8 bits."""
    budget: dict[str, Any]
    """What a budget came to: the sparsity of heads and neurons, the share that is left by calculation, and times."""


def length_of(features: int, train: TrainSpec) -> Length:
    """Optimizer steps as the Trainer counts them; the last micro-batches of an epoch make a step of their own."""
    steps = max(1, ceil(ceil(features / train.batch_size) / train.gradient_accumulation_steps))
    return Length(steps, train.max_steps if train.max_steps is not None else ceil(train.epochs * steps))


def prepare(recipe: Recipe, progress: Progress | None = None, spent: Mapping[str, Any] | None = None) -> Prepared:
    """Reads the data, tokenises the training split and checks the recipe against both and against the model.

    ``spent`` is the ``budget`` of the run that goes on. Raises one ``PrunusError`` with every problem that can be known before
    training.
    """
    found: list[Problem] = list(recipe.problems()) + check_task(recipe.task)
    found += _reporters(recipe.train) + _divides(recipe) + _not_here(recipe)
    source = _source(recipe.model.name, "model.name", found)
    other = recipe.model.dense
    dense_source = source if other is None else _source(other, "model.dense", found)
    teachers = recipe.distill.teachers if recipe.distill is not None else {}
    for key, teacher in teachers.items():
        if teacher not in OWN_TEACHERS:
            teachers[key] = _source(teacher, key, found) or teacher
    if found or source is None or dense_source is None:
        raise RecipeError(*found)

    def step(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    task = load_task(recipe.task, step("reading data"))
    config, dense_config, tokenizer, skeleton = _models(recipe, task, source, dense_source, teachers, found)
    if config is None or dense_config is None or tokenizer is None or skeleton is None or found:
        raise RecipeError(*found)
    tried = _trials(recipe, task, config, dense_config, teachers, tokenizer)
    recipe, task = _readable(recipe, task, tried, tokenizer)
    with main_process_first():
        features = task.features("train", tokenizer, step("tokenising"))
        found += _unreadable(recipe, task, tried, tokenizer, features)
    if found:
        raise RecipeError(*found)
    length = length_of(len(features), recipe.train)
    recipe, budget = within_budget(recipe, skeleton, config, task.head, spent, step("timing smaller models"))
    try:
        rules = tuple(resolve(skeleton, recipe.prune, length.total, length.steps_per_epoch))
    except PrunusError as error:
        found += error.problems
        rules = ()
    found += deepspeed_problems(recipe.prune, asked_stage())
    found += _other_epochs(recipe.train, length, len(features))
    found += _frozen_targets(recipe.train, rules, skeleton)
    found += _other_zeros(recipe, rules, source, config, task.head)
    spec = recipe.quantize
    quantized = None if spec is None else _gather(found, lambda: attach(deepcopy(skeleton), spec, ()))
    if found:
        raise RecipeError(*found)
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    dense_length = length_of(len(features), recipe.dense_training)
    return Prepared(
        recipe,
        task,
        tokenizer,
        config,
        source,
        dense_source,
        dense_config,
        teachers,
        features,
        length,
        dense_length,
        rules,
        parameters,
        skeleton,
        tuple(quantized or ()),
        budget,
    )


def _models(
    recipe: Recipe, task: Task, source: str, dense_source: str, teachers: Mapping[str, str], found: list[Problem]
) -> tuple[PreTrainedConfig | None, PreTrainedConfig | None, PreTrainedTokenizerBase | None, PreTrainedModel | None]:
    """The configurations of the model and of what the dense one comes from, the tokenizer, the model without weights.

    What is wrong with them, with the teachers, and with terms that need labels goes into ``found``.
    """
    new = recipe.model.head == "new"
    if new and task.head == "masked-language":
        rule = "be kept for masked language modelling, whose head is part of the embeddings"
        found.append(Problem("model.head", "new", rule, "leaving it out"))
    tokenizer = _gather(found, lambda: load_tokenizer(source, recipe.model.revision))
    config = _gather(found, lambda: config_for(source, task, recipe.model.revision, tokenizer=tokenizer, new_head=new))
    if config is not None:
        found += _gather(found, lambda: weight_problems(source, config, task.head, "model.name", new)) or ()
    dense_config = config
    if recipe.model.dense is not None:
        dense_config = _gather(
            found, lambda: config_for(dense_source, task, key="model.dense", tokenizer=tokenizer, new_head=new)
        )
        found += _knows(dense_config, tokenizer, "model.dense")
    for key, teacher in teachers.items():
        if teacher == "start" and config is not None and not trained_for(config, task.head):
            rule = f"be a model that is fine-tuned for {task.head}, to teach itself as it starts"
            found.append(Problem(key, "start", rule, "dense, which fine-tunes one first, or a directory"))
        elif teacher not in OWN_TEACHERS:
            found += _teacher(teacher, task, tokenizer, key)
    contrast = recipe.distill.contrast.terms if recipe.distill is not None else {}
    for name, term in contrast.items():
        if term.supervised and task.head != "classification":
            rule = f"be 0 for {task.head}, which has no labels of classes"
            found.append(Problem(f"distill.contrast.{name}.supervised", term.supervised, rule, "weight"))
    skeleton = None if config is None else _gather(found, lambda: shaped(config, task.head, recipe.model))
    return config, dense_config, tokenizer, skeleton


def _divides(recipe: Recipe) -> list[Problem]:
    """A batch is shared by the processes."""
    found = []
    for key, train in (("train", recipe.train), ("dense", recipe.dense)):
        if train is not None and train.batch_size % process_count():
            rule = f"be a multiple of the {process_count()} processes, which share it"
            nearest_ = max(1, round(train.batch_size / process_count())) * process_count()
            found.append(Problem(f"{key}.batch_size", train.batch_size, rule, str(nearest_)))
    return found


def _not_here(recipe: Recipe) -> list[Problem]:
    """What this device, or this recipe's other choices, cannot do."""
    found = []
    scaled = {key: train for key, train in (("train", recipe.train), ("dense", recipe.dense)) if train is not None}
    key = next((key for key, train in scaled.items() if train.precision == "fp16"), None)  # dense follows train
    if key is not None and not torch.accelerator.is_available():
        rule = "be used on an accelerator: the loss is not scaled on a CPU"
        found.append(Problem(f"{key}.precision", "fp16", rule, "bf16"))
    if recipe.train.compile and recipe.distill is not None and recipe.distill.contrast.terms:
        rule = "be false with distill.contrast, which looks into the model at each step"
        found.append(Problem("train.compile", True, rule, "false"))
    return found


def _reporters(train: TrainSpec) -> list[Problem]:
    """Those that are asked for and not installed."""
    rule = "be installed"
    return [
        Problem("train.report_to", name, rule, f"pip install {name}")
        for name in train.report_to
        if find_spec(name) is None
    ]


def shaped(config: PreTrainedConfig, head: HeadKind, spec: ModelSpec) -> PreTrainedModel:
    """The model without weights, of the shapes that its training begins with."""
    skeleton = meta_model(config, head)
    cut_shapes(skeleton, spec)
    return skeleton


def _source(name: str, key: str, found: list[Problem]) -> str | None:
    return _gather(found, lambda: model_source(name, key))


def _teacher(source: str, task: Task, tokenizer: PreTrainedTokenizerBase | None, key: str) -> list[Problem]:
    """Why the model in ``source`` cannot teach: it is not trained for the task, or knows other tokens."""
    found: list[Problem] = []
    config = _gather(found, lambda: config_for(source, task, key=key, tokenizer=tokenizer))
    if config is not None and not trained_for(config, task.head):
        rule = f"be a model that is fine-tuned for {task.head}"
        found.append(Problem(key, source, rule, "dense, which fine-tunes one first"))
    return found + _knows(config, tokenizer, key)


def _knows(config: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase | None, key: str) -> list[Problem]:
    """Whether a model has fewer tokens than the tokenizer makes."""
    if config is None or tokenizer is None or config.get_text_config().vocab_size >= len(tokenizer):
        return []
    rule = f"know the {len(tokenizer)} tokens of the model's tokenizer"
    return [Problem(key, f"{config.get_text_config().vocab_size} tokens", rule, "a model with that tokenizer")]


def _other_zeros(
    recipe: Recipe, rules: Sequence[Rule], source: str, config: PreTrainedConfig, head: HeadKind
) -> list[Problem]:
    """Why the zeros that a rule locks are not what was declared; the weights are read for it."""
    found: list[Problem] = []
    if not any(rule.pruning.lock for rule in rules):
        return found
    model = _gather(found, lambda: load_model(source, config, head, recipe.model.revision))
    masks = _gather(found, lambda: saved_masks(recipe, source))
    for index, rule in enumerate(rules):
        if model is not None and rule.pruning.lock:
            names, key = list(rule.selection.taken), f"prune[{index}]"
            _gather(found, lambda: found_zeros(model, names, rule.pattern, rule.pruning.sparsity, masks, key))  # noqa: B023
    return found


def _trials(
    recipe: Recipe,
    task: Task,
    config: PreTrainedConfig,
    dense_config: PreTrainedConfig,
    teachers: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Trial]:
    """Every model that will read the data, once."""
    configs = {"model.name": config}
    if dense_config is not config:
        configs["model.dense"] = dense_config
    for key, teacher in teachers.items():
        if teacher not in OWN_TEACHERS:
            configs[key] = config_for(teacher, task, key=key, tokenizer=tokenizer)
    length = _length(recipe, task, tokenizer)
    return [trial_of(key, each, task.head, tokenizer, length) for key, each in configs.items()]


def _length(recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest row that the tokenizer may make."""
    length = row_length(recipe.task)
    return length if task.head == "masked-language" else min(length, int(tokenizer.model_max_length))


def _readable(
    recipe: Recipe, task: Task, trials: Sequence[Trial], tokenizer: PreTrainedTokenizerBase
) -> tuple[Recipe, Task]:
    """Rows as long as every model reads, where the recipe does not say how long they are."""
    least = min(trials, key=lambda trial: trial.reads)
    if recipe.task.max_length is not None or least.reads >= _length(recipe, task, tokenizer):
        return recipe, task
    note = f"rows are cut to the {least.reads} tokens that the model of {least.key} reads"
    spec, task = shortened(recipe.task, task, least.reads, note)
    problems = check_task(spec)
    if problems:
        raise RecipeError(*problems)
    return replace(recipe, task=spec), task


def _unreadable(
    recipe: Recipe,
    task: Task,
    trials: Sequence[Trial],
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[Feature],
) -> list[Problem]:
    """What keeps a model from reading the data: the length of rows, tokens without an embedding, anything in a batch."""

    def splits() -> list[Sequence[Feature]]:
        return [features, task.features("validation", tokenizer)]

    length = _length(recipe, task, tokenizer)
    found = row_problems(trials, splits, tokenizer, length)
    for trial in trials if not found else ():
        found += batch_problems(trial, features, task.head, tokenizer)
    return found


def saved_masks(recipe: Recipe, source: str) -> dict[str, Tensor] | None:
    """The masks beside the model whose zeros a rule locks (bool ``[out, in]``, True = kept); None where there are none.

    They are those of the whole model: one that loses layers or features is checked by its weights alone. Raises
    ``CheckpointError`` for a damaged file.
    """
    path, cut = Path(source) / MASKS_FILE, recipe.model.cuts
    return read_masks(path) if recipe.locks and not cut and path.is_file() else None


R = TypeVar("R")


def _gather(found: list[Problem], action: Callable[[], R]) -> R | None:
    try:
        return action()
    except PrunusError as error:
        found += error.problems
        return None


def _other_epochs(train: TrainSpec, length: Length, rows: int) -> list[Problem]:
    """Whether the recipe says another number of steps than the data make."""
    if train.steps_per_epoch in (None, length.steps_per_epoch):
        return []
    batch = train.batch_size * train.gradient_accumulation_steps
    rule = f"be the {length.steps_per_epoch} optimizer steps that {rows:,} rows in batches of {batch} make"
    fix = f"{length.steps_per_epoch}, leaving it out, or the data and the batch size that the recipe was written for"
    return [Problem("train.steps_per_epoch", train.steps_per_epoch, rule, fix)]


def _frozen_targets(train: TrainSpec, rules: Sequence[Rule], model: nn.Module) -> list[Problem]:
    found = []
    for index, pattern in enumerate(train.freeze):
        try:
            regex = re.compile(pattern)
        except re.error as error:
            found.append(Problem(f"train.freeze[{index}]", pattern, f"be a regular expression ({error})"))
            continue
        if not any(regex.search(name) for name, _ in model.named_parameters()):
            rule = "match at least one parameter"
            found.append(Problem(f"train.freeze[{index}]", pattern, rule, "embeddings"))
        for rule_ in rules:
            hit = next((name for name in rule_.selection.taken if regex.search(name)), None)
            if hit is not None and rule_.criterion.needs_gradient:
                text = f"leave {hit} trainable, whose gradient criterion {rule_.criterion.name} needs"
                found.append(Problem(f"train.freeze[{index}]", pattern, text, "criterion: magnitude"))
    return found
