"""Resolves the rows of a run: how long they are, and whether every model reads a batch of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prunus.distributed.processes import main_process_first
from prunus.errors import Problem, RecipeError
from prunus.models.loading import config_for
from prunus.recipe import OWN_TEACHERS
from prunus.tasks import check_task, row_length, shortened
from prunus.tasks.base import Feature, Task
from prunus.tasks.spec import TaskSpec
from prunus.training.planned_models import Models, Sources
from prunus.training.trial_batch import Trial, batch_problems, row_problems, trial_of

__all__ = ["PlannedRows", "resolve_rows"]


@dataclass(frozen=True)
class PlannedRows:
    """The task with rows as long as every model reads, and its training rows."""

    spec: TaskSpec
    task: Task
    features: Sequence[Feature]


def resolve_rows(
    spec: TaskSpec,
    task: Task,
    models: Models,
    sources: Sources,
    problems: list[Problem],
    progress: Callable[[int, int], None] | None,
) -> PlannedRows:
    """Tokenises the training split and sends one batch through a small copy of each model; ``problems`` grows by what fails.

    Raises ``RecipeError`` where no length of rows suits both the models and the task.
    """
    tokenizer = models.tokenizer
    trials = _trials(task, models, sources, _longest(spec, task, tokenizer))
    spec, task = _readable(spec, task, trials, tokenizer)
    with main_process_first():
        features = task.features("train", tokenizer, progress)
        problems += _unreadable(trials, task, features, tokenizer, _longest(spec, task, tokenizer))
    return PlannedRows(spec, task, features)


def _trials(task: Task, models: Models, sources: Sources, length: int) -> list[Trial]:
    """Every model that will read the data, once."""
    configs = {"model.name": models.config}
    if models.dense_config is not models.config:
        configs["model.dense"] = models.dense_config
    for key, teacher in sources.teachers.items():
        if teacher not in OWN_TEACHERS:
            configs[key] = config_for(teacher, task, key=key, tokenizer=models.tokenizer)
    return [trial_of(key, config, task.head, models.tokenizer, length) for key, config in configs.items()]


def _longest(spec: TaskSpec, task: Task, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest row that the tokenizer may make."""
    length = row_length(spec)
    return length if task.head == "masked-language" else min(length, int(tokenizer.model_max_length))


def _readable(
    spec: TaskSpec, task: Task, trials: Sequence[Trial], tokenizer: PreTrainedTokenizerBase
) -> tuple[TaskSpec, Task]:
    """Cuts rows to the length that every model reads, where the recipe does not say how long they are."""
    least = min(trials, key=lambda trial: trial.reads)
    if spec.max_length is not None or least.reads >= _longest(spec, task, tokenizer):
        return spec, task
    note = f"rows are cut to the {least.reads} tokens that the model of {least.key} reads"
    spec, task = shortened(spec, task, least.reads, note)
    problems = check_task(spec)
    if problems:
        raise RecipeError(*problems)
    return spec, task


def _unreadable(
    trials: Sequence[Trial],
    task: Task,
    features: Sequence[Feature],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
) -> list[Problem]:
    """What keeps a model from reading the data: the length of rows, tokens without an embedding, anything in a batch."""

    def splits() -> list[Sequence[Feature]]:
        return [features, task.features("validation", tokenizer)]

    problems = row_problems(trials, splits, tokenizer, length)
    for trial in trials if not problems else ():
        problems += batch_problems(trial, features, task.head, tokenizer)
    return problems
