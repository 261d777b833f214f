"""Tasks: their data, their features for a model, their official metrics. See ``prunus.tasks.base`` for the contract.

spec = TaskSpec(name="sst2", data="data/glue")
check_task(spec)        # what is wrong, before anything is read
task = load_task(spec)  # both splits in memory
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from prunus.errors import DataError, Problem, RecipeError, nearest
from prunus.tasks import classification, masked_language, questions
from prunus.tasks.base import Feature, HeadKind, Metrics, Split, Task
from prunus.tasks.collate import Collate
from prunus.tasks.files import ColumnLayout, check_columns
from prunus.tasks.question_answering import MIN_LENGTH, QuestionAnsweringTask
from prunus.tasks.sources import Origin, Places, locate
from prunus.tasks.spec import TaskSpec

__all__ = [
    "TASKS",
    "Collate",
    "Feature",
    "HeadKind",
    "Metrics",
    "Split",
    "Task",
    "TaskSpec",
    "check_task",
    "load_task",
    "row_length",
    "shortened",
    "with_data",
]

Progress = Callable[[int, int], None]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation")


def _texts(spec: TaskSpec, origins: Mapping[Split, Origin], _: Progress | None) -> Task:
    return classification.load_classification(spec, origins)


def _questions(spec: TaskSpec, origins: Mapping[Split, Origin], _: Progress | None) -> Task:
    return questions.load_questions(spec, origins)


def _pydocs(spec: TaskSpec, _: Mapping[Split, Origin], progress: Progress | None) -> Task:
    from prunus.tasks.pydocs import load_pydocs

    return load_pydocs(spec, progress)


def _text(spec: TaskSpec, origins: Mapping[Split, Origin], _: Progress | None) -> Task:
    return masked_language.load_masked_language(spec, origins)


_LOADERS: Final[Mapping[str, Callable[[TaskSpec, Mapping[Split, Origin], Progress | None], Task]]] = {
    "squad": _questions,
    **dict.fromkeys(classification.GLUE, _texts),
    "classification": _texts,
    "qa": _questions,
    "mlm": _text,
    "pydocs-qa": _pydocs,
    "pydocs-topic": _pydocs,
}

TASKS: Final = tuple(_LOADERS)
"""Names that ``TaskSpec.name`` may have."""


def load_task(
    spec: TaskSpec,
    progress: Progress | None = None,
    splits: Sequence[Split] = SPLITS,
    labels: Sequence[str] = (),
) -> Task:
    """Read these splits of a task; the others are empty.

    ``labels`` are the class names of a model: own files without their training split do not say them otherwise.

    Raises RecipeError for settings that cannot be, DataError for data that is missing or malformed (each mistake with
    its line) and MissingExtra where ``hub`` needs the package ``datasets``. ``progress(done, total)`` is called while
    the embedded tasks are built; files are read in seconds.
    """
    problems = _settings(spec)
    if problems:
        raise RecipeError(*problems)
    origins, problems = _origins(spec, splits)
    if problems:
        raise DataError(*problems)
    if _LOADERS[spec.name] is _texts:
        return classification.load_classification(spec, origins, tuple(labels))
    return _LOADERS[spec.name](spec, origins, progress)


def with_data(spec: TaskSpec, given: Mapping[str, Any]) -> TaskSpec:
    """The task with its data elsewhere: ``given`` names a directory (``data``), or files (``train``, ``validation``).

    A directory takes the place of the files that ``spec`` names.
    """
    files = {"train": None, "validation": None} if "data" in given else {}
    return replace(spec, **{**files, **given})


def check_task(spec: TaskSpec, splits: Sequence[Split] = SPLITS) -> list[Problem]:
    """What is wrong with a task as far as it can be told without reading its data: settings, files, columns.

    Of a table or a JSONL file the first row is read, of a ``.json`` file nothing; the Hub is not asked.
    """
    problems = _settings(spec)
    if spec.name not in _LOADERS:
        return problems
    origins, missing = _origins(spec, splits)
    problems += missing
    for origin in dict.fromkeys(origins.values()):
        if isinstance(origin, Path) and origin.is_file() and not _is_text(spec):
            problems += check_columns(origin, _layout(spec))
    return problems


def row_length(spec: TaskSpec) -> int:
    """Tokens of a row at most, as far as the task says."""
    return spec.max_length or (384 if _answers_questions(spec) else 128)


def shortened(spec: TaskSpec, task: Task, length: int, note: str) -> tuple[TaskSpec, Task]:
    """A task with rows of at most ``length`` tokens, and ``note`` among its notes; its data are not read again."""
    spec = replace(spec, max_length=length, doc_stride=min(spec.doc_stride, length // 2))
    if isinstance(task, masked_language.MaskedLanguageTask):
        return spec, replace(task, spec=spec, corpora={}, more_notes=(*task.more_notes, note))
    if isinstance(task, QuestionAnsweringTask):
        changed = replace(task, max_length=length, doc_stride=spec.doc_stride, notes=(*task.notes, note))
        return spec, changed
    if isinstance(task, classification.ClassificationTask):
        return spec, replace(task, max_length=length, notes=(*task.notes, note))
    raise TypeError(f"a task of prunus, not {type(task).__name__}")


def _is_text(spec: TaskSpec) -> bool:
    return _LOADERS[spec.name] is _text


def _embedded(spec: TaskSpec) -> bool:
    return _LOADERS[spec.name] is _pydocs


def _answers_questions(spec: TaskSpec) -> bool:
    return _LOADERS[spec.name] is _questions or spec.name == "pydocs-qa"


def _layout(spec: TaskSpec) -> ColumnLayout:
    return questions.layout_of(spec) if _answers_questions(spec) else classification.layout_of(spec)


def _places(spec: TaskSpec) -> Places:
    return questions.places_of(spec) if _answers_questions(spec) else classification.places_of(spec)


def _origins(spec: TaskSpec, splits: Sequence[Split]) -> tuple[dict[Split, Origin], list[Problem]]:
    if _is_text(spec):
        # Without a validation file, part of the training text is evaluated on.
        needed = splits if spec.validation is not None else SPLITS
        return masked_language.locate_text(spec, needed)
    return ({}, []) if _embedded(spec) else locate(spec, _places(spec), splits)


def _settings(spec: TaskSpec) -> list[Problem]:
    """Settings that no data can make good."""
    if spec.name not in _LOADERS:
        return [Problem("task.name", spec.name, "be a task", nearest(spec.name, TASKS))]
    problems = _at_least("max_train_samples", spec.max_train_samples, 1)
    problems += _at_least("max_validation_samples", spec.max_validation_samples, 1)
    problems += _at_least("subset_seed", spec.subset_seed, 0)
    problems += masked_language.settings(spec)
    if _answers_questions(spec):
        problems += _at_least("max_length", spec.max_length, MIN_LENGTH)
        problems += _at_least("doc_stride", spec.doc_stride, 0)
        problems += _at_least("n_best", spec.n_best, 1)
        problems += _at_least("max_answer_length", spec.max_answer_length, 1)
        half = (384 if spec.max_length is None else spec.max_length) // 2
        if spec.max_length is None or spec.max_length >= MIN_LENGTH:
            problems += _stride(spec.doc_stride, half)
    else:
        problems += _at_least("max_length", spec.max_length, 8)
    return problems + _roles(spec)


def _at_least(key: str, value: int | None, least: int) -> list[Problem]:
    return [] if value is None or value >= least else [Problem(f"task.{key}", value, f"be at least {least}")]


def _stride(stride: int, half: int) -> list[Problem]:
    # With a question of up to a quarter of the row, each window then still advances by about a quarter of it.
    rule = f"be at most half of max_length, {half}"
    return [] if stride <= half else [Problem("task.doc_stride", stride, rule, f"doc_stride: {half // 2}")]


def _roles(spec: TaskSpec) -> list[Problem]:
    if not spec.columns:
        return []
    known = {"classification": classification.OWN_ROLES, "qa": questions.OWN_ROLES}.get(spec.name)
    if known is None:
        rule = "be left out, which is for own files"
        return [Problem("task.columns", dict(spec.columns), rule, "name: classification, or name: qa")]
    unknown = [role for role in spec.columns if role not in known]
    problems = [
        Problem("task.columns", role, "map roles of the task to column names", nearest(role, known)) for role in unknown
    ]
    if "label" in spec.columns and "score" in spec.columns:
        problems.append(
            Problem("task.columns", "label and score", "name one of the two", "score for numbers, label for classes")
        )
    return problems
