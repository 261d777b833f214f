"""A training's bar: its steps, the latest loss and the sparsity."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.progress import Bars

__all__ = ["TrainingBar"]


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
