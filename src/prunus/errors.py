"""Every error prunus raises on purpose, and the one place that words them.

    PrunusError
    ├── RecipeError       a recipe, a flag, or a combination of them that cannot run
    ├── DataError         a data file: missing, empty, malformed (with its line)
    ├── TargetError       what to prune: nothing matches, a shape that does not divide
    ├── TrainingError     while training: NaN, a missed sparsity target
    ├── CheckpointError   a directory to read or write: missing, damaged, already there
    ├── EngineError       a packed model that is damaged, an input or a processor the runtime cannot take
    └── MissingExtra      an optional package that is not installed

A ``PrunusError`` carries a list of ``Problem``: which key, what it was, what rule it breaks, and what to try.
Problems are gathered and raised together, so a recipe with five mistakes is corrected in one go.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

__all__ = [
    "CheckpointError",
    "DataError",
    "EngineError",
    "MissingExtra",
    "Problem",
    "PrunusError",
    "RecipeError",
    "TargetError",
    "TrainingError",
    "collecting",
    "first_line",
    "nearest",
]

EXIT_CODE: Final = 2
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of the ``OSError`` of a device that is full, or may not be written to."""


@dataclass(frozen=True)
class Problem:
    """One mistake: ``key`` must ``rule``, got ``value``; try ``fix``.

    ``rule`` completes the sentence "X must ..."; ``fix`` completes "try ..." and may be empty.
    """

    key: str
    value: object
    rule: str
    fix: str = ""

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) and " " in self.value else repr(self.value)
        text = f"{self.key} must {self.rule}, got {shown}"
        return f"{text}\n    try {self.fix}" if self.fix else text


class PrunusError(Exception):
    """Base of all errors of this library. ``problems`` holds what is wrong, in the order it was found."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__(*problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems"]
        lines += ["  " + str(problem).replace("\n", "\n  ") for problem in self.problems]
        return "\n".join(lines)


class RecipeError(PrunusError):
    """A recipe, a flag, or a combination of them that cannot run."""


class DataError(PrunusError):
    """A data file that is missing, empty or malformed."""


class TargetError(PrunusError):
    """Tensors that cannot be pruned as asked."""


class TrainingError(PrunusError):
    """Something went wrong while training; the last checkpoint is whole."""


class CheckpointError(PrunusError):
    """A directory that cannot be read or must not be written."""


class EngineError(PrunusError):
    """A packed model that is damaged, or an input or a processor that the runtime cannot take."""


class MissingExtra(PrunusError):
    """An optional package that is not installed."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line of at most 160 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextmanager
def collecting(problems: list[Problem]) -> Iterator[None]:
    """Adds the problems of a ``PrunusError`` to ``problems`` in place of raising it, and leaves out the rest of the block."""
    try:
        yield
    except PrunusError as error:
        problems += error.problems


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word closest to ``word``, or all of them if none is close; for the "try ..." part of a problem."""
    candidates = sorted(known)
    close = get_close_matches(word, candidates, n=1, cutoff=0.6)
    return close[0] if close else "one of " + ", ".join(candidates)
