"""Collapse monitor: reports a metric that falls to a fraction of its best value, which says that something broke.

    best      the highest value so far, and its step
    collapse  value < share * best, at an evaluation after at least one other

The message names both values, the latest mask update between them, and the sparsity. ``on_collapse: warn`` notes it in the
facts and in the report; ``stop`` ends the training with an error, and the checkpoints stay as they are: the one from before is
named.
"""

from pathlib import Path
from typing import Any, Final, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.errors import Problem, TrainingError
from prunus.training.session import Session

__all__ = ["CollapseMonitor", "OnCollapse"]

OnCollapse = Literal["warn", "stop", "off"]
_PREFIX: Final = "checkpoint-"


class CollapseMonitor(TrainerCallback):  # type: ignore[misc]
    """Collects ``warnings`` about collapses of ``metric``; with ``stop`` it raises ``TrainingError`` at the first one."""

    def __init__(self, metric: str, share: float, action: OnCollapse, session: Session | None) -> None:
        self._metric, self._share, self._action, self._session = metric, share, action, session
        self._best: tuple[float, int] | None = None
        self._fallen = False
        self.warnings: list[str] = []

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compares with the best so far."""
        value = (metrics or {}).get(f"eval_{self._metric}")
        if value is None or self._action == "off":
            return
        if self._best is None or value >= self._best[0]:
            self._best, self._fallen = (value, state.global_step), False
            return
        best, step = self._best
        if value >= self._share * best or self._fallen:
            return
        self._fallen = True
        current = (
            f"{self._metric} fell from {best:.4f} at step {step} to {value:.4f} at step {state.global_step}"
            f"{self._between(step, state.global_step)}"
        )
        self.warnings.append(current)
        if self._action == "stop":
            good = [p for p in Path(args.output_dir).glob(f"{_PREFIX}*") if _step(p) is not None and _step(p) <= step]  # type: ignore[operator]
            kept = f"; {max(good, key=lambda p: _step(p) or 0).name} is from before" if good else ""
            rule = f"keep at least {self._share:.0%} of its best value"
            fix = "a slower schedule, a lower sparsity or learning rate, or train.on_collapse: warn"
            raise TrainingError(Problem(f"{current}{kept}: {self._metric}", value, rule, fix))

    def _between(self, first: int, last: int) -> str:
        """The latest mask update after ``first``."""
        masker = self._session.masker if self._session is not None else None
        if masker is None:
            return ""
        updates = [
            e
            for rule in masker.rules
            for e in rule.timetable.update_steps
            if first < e <= last and not rule.pruning.lock
        ]
        return f", after the mask update at step {max(updates)}, at sparsity {masker.due():.4f}" if updates else ""


def _step(path: Path) -> int | None:
    number = path.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else None
