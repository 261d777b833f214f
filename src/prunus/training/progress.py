"""Progress of everything that takes longer than a moment: bars in a terminal, a line now and then in a log."""

from time import monotonic
from types import TracebackType
from typing import Any, Final

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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Bars", "TrainingBar"]

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


class TrainingBar(TrainerCallback):  # type: ignore[misc]
    """Feeds a training's steps, loss and sparsity to ``Bars``."""

    def __init__(self, bars: Bars, what: str) -> None:
        self._bars = bars
        self._what = what
        self._note = ""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the latest loss and sparsity for the bar."""
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"
            if "sparsity" in logs:
                self._note += f", sparsity {logs['sparsity']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar."""
        self._bars(self._what, state.global_step, state.max_steps, self._note)
