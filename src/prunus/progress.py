"""Progress of long work: bars in a terminal, a line every half minute in a log; other libraries' own output is turned down."""

import os
import warnings
from time import monotonic
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars", "quiet"]

_SECONDS: Final = 30.0


class Bars:
    """A bar for each kind of work, fed by ``bars(what, done, total, note)``; silent without a console.

    Use as a context manager around the work.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> "Bars":
        if self._console is not None and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            note = TextColumn("[dim]{task.fields[note]}")
            self._progress = Progress(*columns, TimeRemainingColumn(), note, console=self._console)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Moves the bar of ``what`` to ``done`` of ``total``."""
        if self._progress is not None:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total, note=note)
            self._progress.update(self._tasks[what], completed=done, total=total, note=note)
        elif self._console is not None:
            now = monotonic()
            started = self._last.setdefault(what, now)
            if now - started > _SECONDS or (done == total and what not in self._tasks):
                self._last[what] = now
                self._console.print(f"{what}: {done} of {total}  {note}".rstrip(), highlight=False)
                if done == total:
                    self._tasks[what] = TaskID(0)


def quiet() -> None:
    """Silences the warnings and progress bars of other libraries; for programs, not for libraries that import prunus."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|transformers|accelerate")
