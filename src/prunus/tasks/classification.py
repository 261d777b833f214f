"""Classification and regression of a text or a pair of texts: GLUE, own files, the embedded task.

    classification   logits [rows, classes] -> argmax, compared with class ids
    regression       one number a row, compared with scores (STS-B, or own files with the role ``score``)

``GLUE`` is the table of the benchmark (Wang et al. 2018): class names in GLUE's order, official metrics with the main
one first, the columns of the official files and of the Hub's data set. MRPC reports F1 and accuracy, and F1 is the main
one; QQP reports both, and accuracy is the main one; STS-B reports both correlations, and Pearson's is the main one.

Own files (``classification``) have the roles ``text``, ``text_pair`` (optional) and ``label``; a class is a string or a
whole number, and the classes are those of the training file, numbers in numerical and names in alphabetical order. A
file whose target is a number to be predicted names its column as the role ``score`` instead: ``columns: {score:
rating}``.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prunus.errors import Problem, TrainingError, nearest
from prunus.tasks.base import HeadKind, Metrics, Split
from prunus.tasks.collate import TOKEN_KEYS, TokenizedRows
from prunus.tasks.examples import TextExample
from prunus.tasks.files import ColumnLayout, FileProblems, Row, lone_surrogate, text_of
from prunus.tasks.metrics import accuracy, f1, macro_f1, matthews, pearson, spearman
from prunus.tasks.sources import Origin, Places, open_rows, subset, subset_notes
from prunus.tasks.spec import TaskSpec

__all__ = [
    "GLUE",
    "METRICS",
    "ClassificationTask",
    "Glue",
    "class_name",
    "layout_of",
    "load_classification",
    "places_of",
]

METRICS: Final[Mapping[str, Callable[[NDArray[Any], NDArray[Any]], float]]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}

_CHUNK: Final = 1024
_WHOLE: Final = re.compile(r"(-?[0-9]+)\.0*")
"""A whole number that was written as a float."""


@final
@dataclass(frozen=True)
class ClassificationTask:
    """Texts with their labels, in memory; implements ``prunus.tasks.base.Task``.

    ``labels`` are class names by id, and empty for regression. ``metrics`` are names of ``METRICS``, the main one
    first. ``more_baselines`` are metrics of trivial answers, by name, that the builder of the examples knows.
    """

    name: str
    train: Sequence[TextExample]
    validation: Sequence[TextExample]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    max_length: int = 128
    notes: tuple[str, ...] = ()
    more_baselines: Mapping[str, Metrics] = field(default_factory=dict)

    @property
    def head(self) -> HeadKind:
        """The head that a model needs."""
        return "classification" if self.labels else "regression"

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    def size(self, split: Split) -> int:
        """Number of texts or pairs."""
        return len(self._examples(split))

    def _examples(self, split: Split) -> Sequence[TextExample]:
        return self.train if split == "train" else self.validation

    def features(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int, int], None] | None = None
    ) -> TokenizedRows:
        """One row an example, cut to ``max_length`` tokens (the longer text of a pair first), with its ``labels``."""
        length = min(self.max_length, int(tokenizer.model_max_length))
        examples, rows = self._examples(split), TokenizedRows()
        for first in range(0, len(examples), _CHUNK):
            chunk = examples[first : first + _CHUNK]
            texts = [example.text for example in chunk]
            pairs = [example.text_pair or "" for example in chunk]
            paired = any(example.text_pair is not None for example in chunk)
            encoding = tokenizer(texts, pairs if paired else None, truncation=True, max_length=length)
            keys = [key for key in TOKEN_KEYS if key in encoding]
            for row, example in enumerate(chunk):
                rows.append({**{key: encoding[key][row] for key in keys}, "labels": example.label})
            if progress is not None:
                progress(first + len(chunk), len(examples))
        return rows

    def score(self, outputs: Sequence[NDArray[Any]], features: Sequence[Mapping[str, Any]]) -> Metrics:
        """The task's metrics of logits ``[rows, classes]`` (regression: ``[rows]`` or ``[rows, 1]``).

        Raises TrainingError for logits of another shape and for NaN.
        """
        width = max(len(self.labels), 1)
        logits = np.asarray(outputs[0], dtype=np.float64)
        if not self.labels and logits.ndim == 1:
            logits = logits[:, None]
        if logits.shape != (len(features), width):
            raise TrainingError(
                Problem("logits", f"shape {logits.shape}", f"have the shape ({len(features)}, {width})")
            )
        if np.isnan(logits).any():
            raise TrainingError(Problem("logits", "NaN", "be numbers", "a lower learning rate, or fp32"))
        return self._measure(logits.argmax(1) if self.labels else logits[:, 0], [row["labels"] for row in features])

    def _measure(self, predictions: NDArray[Any], labels: Sequence[int | float]) -> Metrics:
        return {name: METRICS[name](predictions, np.asarray(labels)) for name in self.metrics}

    def baselines(self) -> Mapping[str, Metrics]:
        """Metrics of the most frequent class (the mean score) of the training split for every validation example."""
        labels = [example.label for example in self.validation]
        known = np.asarray([example.label for example in self.train])
        if self.labels:
            constant, name = float(np.bincount(known.astype(np.int64)).argmax()), "majority class"
        else:
            constant, name = float(known.mean()), "mean score"
        return {name: self._measure(np.full(len(labels), constant), labels), **self.more_baselines}


@dataclass(frozen=True)
class Glue:
    """A GLUE task. ``labels`` is empty for regression, ``text_pair`` for one sentence; columns as in ``ColumnLayout``."""

    folder: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    text: tuple[str, ...]
    text_pair: tuple[str, ...]
    target: tuple[str, ...] = ("label",)
    headerless: tuple[str, ...] = ()
    skip_short: bool = False
    dev: tuple[str, ...] = ("dev", "validation")
    hub: str = ""
    hub_validation: str = "validation"


_ENTAILMENT: Final = ("entailment", "not_entailment")
_MNLI: Final = ("entailment", "neutral", "contradiction")
_PREMISE: Final = ("premise", "sentence1")
_HYPOTHESIS: Final = ("hypothesis", "sentence2")
_GOLD: Final = ("label", "gold_label")
_BOTH: Final = ("validation_matched", "validation_mismatched")
_ACCURACY: Final = ("accuracy",)
_COLA: Final = ("source", "label", "mark", "sentence")

# fmt: off
GLUE: Final[Mapping[str, Glue]] = {
    "cola": Glue("CoLA", ("unacceptable", "acceptable"), ("matthews",), ("sentence",), (), headerless=_COLA,
                 hub="cola"),
    "sst2": Glue("SST-2", ("negative", "positive"), _ACCURACY, ("sentence",), (), hub="sst2"),
    "mrpc": Glue("MRPC", ("not_equivalent", "equivalent"), ("f1", "accuracy"), ("sentence1", "#1 String"),
                 ("sentence2", "#2 String"), ("label", "Quality"), hub="mrpc"),
    "stsb": Glue("STS-B", (), ("pearson", "spearman"), ("sentence1",), ("sentence2",), ("score", "label"), hub="stsb"),
    # The official QQP train.tsv has rows that a line break cut in two; every reader leaves them out.
    "qqp": Glue("QQP", ("not_duplicate", "duplicate"), ("accuracy", "f1"), ("question1",), ("question2",),
                ("label", "is_duplicate"), skip_short=True, hub="qqp"),
    "mnli": Glue("MNLI", _MNLI, _ACCURACY, _PREMISE, _HYPOTHESIS, _GOLD, dev=("dev_matched", _BOTH[0]),
                 hub="mnli", hub_validation=_BOTH[0]),
    "mnli-mm": Glue("MNLI", _MNLI, _ACCURACY, _PREMISE, _HYPOTHESIS, _GOLD, dev=("dev_mismatched", _BOTH[1]),
                    hub="mnli", hub_validation=_BOTH[1]),
    "qnli": Glue("QNLI", _ENTAILMENT, _ACCURACY, ("question",), ("sentence",), hub="qnli"),
    "rte": Glue("RTE", _ENTAILMENT, _ACCURACY, ("sentence1",), ("sentence2",), hub="rte"),
    "wnli": Glue("WNLI", ("not_entailment", "entailment"), _ACCURACY, ("sentence1",), ("sentence2",), hub="wnli"),
}
# fmt: on

OWN_ROLES: Final = ("text", "text_pair", "label", "score")


def places_of(spec: TaskSpec) -> Places:
    """The usual folders, files and Hub id of the task's data."""
    glue = GLUE.get(spec.name)
    if glue is None:
        stems: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "dev")}
        return Places((".",), stems, {"train": "train", "validation": "validation"})
    below = (glue.folder, glue.folder.lower(), glue.hub)
    folders = (".", *dict.fromkeys([*below, *(f"glue/{name}" for name in below)]))
    hub_splits: Mapping[Split, str] = {"train": "train", "validation": glue.hub_validation}
    return Places(folders, {"train": ("train",), "validation": glue.dev}, hub_splits, f"nyu-mll/glue:{glue.hub}")


def layout_of(spec: TaskSpec) -> ColumnLayout:
    """The columns of the task's files."""
    glue = GLUE.get(spec.name)
    if glue is not None:
        required = {"text": glue.text, "target": glue.target} | (
            {"text_pair": glue.text_pair} if glue.text_pair else {}
        )
        return ColumnLayout(required, headerless=glue.headerless, skip_short=glue.skip_short)
    columns = spec.columns
    target = columns["score"] if "score" in columns else columns.get("label", "label")
    required = {"text": (columns.get("text", "text"),), "target": (target,)}
    keys = {"target": "score" if "score" in columns else "label"}
    if "text_pair" in columns:
        return ColumnLayout(required | {"text_pair": (columns["text_pair"],)}, keys=keys)
    return ColumnLayout(required, {"text_pair": ("text_pair",)}, keys=keys)


@dataclass(frozen=True)
class _Parsed:
    """A row whose texts are good and whose label is still as the file has it."""

    row: Row
    text: str
    text_pair: str | None


def load_classification(
    spec: TaskSpec, origins: Mapping[Split, Origin], labels: tuple[str, ...] = ()
) -> ClassificationTask:
    """The task with the splits of ``origins`` read. Raises DataError with the line of each mistake in either file.

    ``labels`` are the classes of own files whose training split is not read.
    """
    glue = GLUE.get(spec.name)
    file_problems, layout = FileProblems(), layout_of(spec)
    train = _parse(origins["train"], layout, file_problems) if "train" in origins else []
    skipped = file_problems.skipped
    validation = _parse(origins["validation"], layout, file_problems) if "validation" in origins else []
    if train and validation and (train[0].text_pair is None) != (validation[0].text_pair is None):
        where = (train if train[0].text_pair is None else validation)[0].row.where
        file_problems.add(where, "no column text_pair", "have a text_pair, as the other split has")
    if glue is not None:
        labels, metrics = glue.labels, glue.metrics
    elif "score" in spec.columns:
        labels, metrics = (), ("pearson", "spearman")
    else:
        labels = labels if labels and "train" not in origins else _classes(train, file_problems)
        metrics = ("accuracy", "macro_f1")

    def examples(parsed: Sequence[_Parsed]) -> list[TextExample]:
        rows = []
        for item in parsed:
            label: int | float | None
            if labels:
                label = _class_id(item.row, labels, file_problems, by_id=glue is not None)
            else:
                label = _number(item.row, file_problems, highest=math.inf if glue is None else 5.0)
            if label is not None:
                rows.append(TextExample(item.text, item.text_pair, label))
        return rows

    trained, validated = examples(train), examples(validation)
    file_problems.close()
    notes = subset_notes(spec, len(trained), len(validated))
    for split, count in (("training", skipped), ("validation", file_problems.skipped - skipped)):
        if count:
            notes += (f"{count:,} incomplete rows of the {split} file were left out",)
    return ClassificationTask(
        spec.name,
        subset(trained, spec.max_train_samples, spec.subset_seed),
        subset(validated, spec.max_validation_samples, spec.subset_seed),
        labels,
        metrics,
        spec.max_length or 128,
        notes,
    )


def _parse(origin: Origin, layout: ColumnLayout, file_problems: FileProblems) -> list[_Parsed]:
    parsed = []
    for row in open_rows(origin, layout, file_problems):
        text = text_of(row, "text", file_problems)
        text_pair = text_of(row, "text_pair", file_problems) if "text_pair" in row.values else None
        if text is not None:
            parsed.append(_Parsed(row, text, text_pair))
    return parsed


def class_name(value: object) -> str | None:
    """A label as a class name; None for what cannot be one (null, a list, a number that is not whole).

    The same class has the same name however a file writes it: 1, 1.0 and "1.0" are "1"; true, "True" and "TRUE" are "true".
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    if not isinstance(value, int | str):
        return None
    name = str(value).strip()
    if name.lower() in ("true", "false"):
        return name.lower()
    number = _WHOLE.fullmatch(name)
    return (number[1] if number else name) or None


def _is_fraction(name: str) -> bool:
    try:
        number = float(name)
    except ValueError:
        return False
    return math.isfinite(number) and not number.is_integer()


def _classes(train: Iterable[_Parsed], file_problems: FileProblems) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for item in train:
        value = item.row.values["target"]
        name = class_name(value)
        half = lone_surrogate(name) if name is not None else None
        if half is not None:
            file_problems.add(item.row.where, half, "hold whole characters as label")
        elif name is None or _is_fraction(name):
            fix = "columns: {score: NAME} for a target that is a number" if name or isinstance(value, float) else ""
            file_problems.add(item.row.where, value, "hold a class as label, a string or a whole number", fix)
        else:
            names[name] = None
    if len(names) == 1:
        file_problems.fatal("the training labels", next(iter(names)), "be at least two classes")
    file_problems.close()
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _class_id(row: Row, labels: tuple[str, ...], file_problems: FileProblems, *, by_id: bool) -> int | None:
    """The id of a class that is given by its name or, with ``by_id``, as a number."""
    value = row.values["target"]
    name = class_name(value)
    if name in labels:
        return labels.index(name)
    if by_id and name is not None and name.isascii() and name.isdecimal() and int(name) < len(labels):
        return int(name)
    fix = nearest(name or "", labels) if len(labels) <= 20 else ""
    known = f"have one of the {len(labels)} labels of " + ("the task, or its number" if by_id else "the training split")
    file_problems.add(row.where, value, known, fix)
    return None


def _number(row: Row, file_problems: FileProblems, *, highest: float) -> float | None:
    """A finite score; from 0 to ``highest`` where that is finite."""
    value = row.values["target"]
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    bounded = math.isfinite(highest)
    if math.isfinite(number) and (not bounded or 0 <= number <= highest):
        return number
    rule = f"have a score from 0 to {highest:g}" if bounded else "have a finite number as score"
    file_problems.add(row.where, value, rule)
    return None
