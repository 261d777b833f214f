"""Run facts: what a run did and measured, as one frozen, versioned dataclass; its file is ``prunus.json``.

``RunFacts`` is what ``prunus run`` returns and what the report, the card, the command line and the benchmarks read. A file is
data from outside: a value of another type reads as missing, and what is missing reads "not measured". Tables (tensors, the
history) and free sections (recipe, environment, engines' times) stay rows of JSON values, read with ``number`` and ``text``.

    format 1    this one
    format 0    files without ``format``: a marker line among ``not_measured`` said that no speed was measured
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from prunus.errors import CheckpointError, Problem
from prunus.report.facts_file import FACTS_FILE, number, numbers, read_json, rows, section, text, texts, write_json

__all__ = [
    "FACTS_FILE",
    "FORMAT",
    "History",
    "ModelFacts",
    "ModelResults",
    "Row",
    "RunFacts",
    "Status",
    "TaskFacts",
    "read_facts",
    "write_facts",
]

FORMAT: Final = 1
Row = dict[str, Any]
Status = Literal["", "running", "interrupted", "failed", "finished"]

_NO_SPEED: Final = "speed: this run measured none; zeros alone make no file smaller and no stock runtime faster"
_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelFacts:
    """The model that a run trained."""

    name: str = ""
    base_model: str = ""
    """The Hub id of its origin; empty for a directory."""
    architecture: str = ""
    parameters: int | None = None


@dataclass(frozen=True)
class TaskFacts:
    """The task and its data."""

    name: str = ""
    head: str = ""
    metric: str = ""
    """The main one."""
    train_examples: int | None = None
    validation_examples: int | None = None
    notes: tuple[str, ...] = ()
    baselines: Row = field(default_factory=dict)
    """Who answers -> metric -> value."""


@dataclass(frozen=True)
class ModelResults:
    """One column of the result: the dense model, or the sparse one."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Empty: not measured."""
    sparsity: float | None = None
    """Zeros / weights of the pruned tensors."""
    sparsity_all: float | None = None
    """Zeros / all parameters."""
    bytes: int | None = None
    """Of the files of weights."""
    seconds: float | None = None
    """Of the training."""
    cached: bool = False
    """Whether an earlier run had trained it."""


@dataclass(frozen=True)
class History:
    """What was logged over a training; every row has a ``step``."""

    loss: tuple[Row, ...] = ()
    sparsity: tuple[Row, ...] = ()
    metrics: tuple[Row, ...] = ()


@dataclass(frozen=True)
class RunFacts:
    """What a run did and measured. Only ``prunus`` is always there."""

    prunus: str
    """The version that wrote it."""
    status: Status = ""
    command: str = ""
    recipe: Row = field(default_factory=dict)
    inputs: Row = field(default_factory=dict)
    """Key of the recipe -> digest of the rows or weights that it named."""
    model: ModelFacts = field(default_factory=ModelFacts)
    task: TaskFacts = field(default_factory=TaskFacts)
    environment: Row = field(default_factory=dict)
    seed: int | None = None
    budget: Row = field(default_factory=dict)
    shape: Row = field(default_factory=dict)
    dense: ModelResults | None = None
    sparse: ModelResults | None = None
    target_sparsity: float | None = None
    tensors: tuple[Row, ...] = ()
    skipped: tuple[Row, ...] = ()
    quantization: Row = field(default_factory=dict)
    banks: Row = field(default_factory=dict)
    best_step: int | None = None
    history: History | None = None
    speed: Row = field(default_factory=dict)
    """What ``prunus bench`` measured."""
    compacted: Row = field(default_factory=dict)
    """What ``prunus compact`` took out."""
    warnings: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    format: int = FORMAT
    """Of the file that it was read from; what is written has today's."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Everything that was not measured: what the run noted, and speed where there are no times."""
        timed = bool(self.speed) or bool(section(self.budget, "result"))
        return self.not_measured if timed else (_NO_SPEED, *self.not_measured)

    @property
    def notices(self) -> tuple[str, ...]:
        """The run's warnings, and that its file is of an older format."""
        if self.format == FORMAT:
            return self.warnings
        older = (
            f"{FACTS_FILE} has format {self.format} of an older prunus; what that did not record reads as not measured"
        )
        return (*self.warnings, older)

    @classmethod
    def of_json(cls, raw: Mapping[str, Any]) -> Self:
        """The facts in a JSON object; values of another type are left out. Nothing is raised."""
        facts = _read(cls, raw)
        given = raw.get("format", 0)
        older = tuple(line for line in facts.not_measured if not line.startswith("speed:"))
        format_ = given if isinstance(given, int) and not isinstance(given, bool) else 0
        changes = {"format": format_, "not_measured": facts.not_measured if format_ else older}
        return cls(**{**{entry.name: getattr(facts, entry.name) for entry in fields(facts)}, **changes})

    def to_json(self) -> Row:
        """JSON values, in today's format; facts that are not there are left out."""
        values = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}
        return {"format": FORMAT} | {k: v for k, v in values.items() if k != "format" and v not in (None, "", [], {})}


def _read(cls: type[_T], raw: Mapping[str, Any]) -> _T:
    """A dataclass whose fields are read by their type hints."""
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        arguments = get_args(hint)
        block = next((each for each in (hint, *arguments) if isinstance(each, type) and is_dataclass(each)), None)
        value: Any = None
        if block is not None:
            given = section(raw, name)
            value = _read(block, given) if given else None
        elif hint is bool:
            value = raw.get(name) is True
        elif hint is str or get_origin(hint) is Literal:
            value = text(raw, name)
            value = value if hint is str or value in arguments else None
        elif int in (hint, *arguments):
            value = number(raw, name)
            value = None if value is None else int(value)
        elif float in arguments and get_origin(hint) is not dict:
            value = number(raw, name)
        elif get_origin(hint) is tuple:
            value = tuple(texts(raw, name) if arguments[0] is str else rows(raw, name))
        else:
            value = numbers(raw, name) if arguments == (str, float) else section(raw, name)
        if value is not None:
            values[name] = value
    return cls(**values)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def read_facts(directory: Path) -> RunFacts:
    """The facts of the run in ``directory``.

    Raises:
        CheckpointError: ``prunus.json`` cannot be read (``facts_file.read_json``), or a later prunus wrote it.

    """
    raw = read_json(directory)
    facts = RunFacts.of_json(raw)
    if facts.format > FORMAT:
        rule = f"be at most {FORMAT}, which this prunus reads"
        raise CheckpointError(
            Problem(f"format in {directory / FACTS_FILE}", facts.format, rule, "the prunus that wrote it")
        )
    return facts


def write_facts(path: Path, facts: RunFacts) -> None:
    """Writes ``facts`` as JSON; a reader sees the old file or the new one. Raises as ``facts_file.write_json`` does."""
    write_json(path, facts.to_json())
