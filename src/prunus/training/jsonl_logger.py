"""JSONL logger: writes what a training logs, one JSON object a line, to ``OUT/log.jsonl`` while it goes on.

    {"time": seconds since 1970, "step": optimizer steps, "loss": ..., "hard_loss": ..., "sparsity": ..., "eval_accuracy": ...}

The lines are what Trainer's other reporters (``train.report_to``) get. A run that goes on continues the file from its
checkpoint's step. A full disk ends the file, and not the training.
"""

import json
import math
import time
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["LOG_FILE", "JsonlLogger", "read_log"]

LOG_FILE: Final = "log.jsonl"
_BYTES: Final = 1 << 28
"""As much of a file is read."""


class JsonlLogger(TrainerCallback):  # type: ignore[misc]
    """Writes the file at ``path``; stops at the first error, which it keeps as ``warning``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.warning: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves what came before the step that training goes on from."""
        kept = [line for line in read_log(self._path) if line["step"] <= state.global_step] if state.global_step else []
        if state.is_world_process_zero:
            self._write("".join(json.dumps(line) + "\n" for line in kept), "w")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One line."""
        if state.is_world_process_zero and logs and not all(name.startswith("train_") for name in logs):
            numbers = {name: _plain(value) for name, value in logs.items()}
            line = {"time": round(time.time(), 3), "step": state.global_step, **numbers}
            self._write(json.dumps(line) + "\n", "a")

    def _write(self, text: str, mode: str) -> None:
        if self.warning is not None:
            return
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self.warning = f"{self._path.name} ends early: {error}"


def _plain(value: Any) -> Any:
    """A number that JSON knows, or text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(number)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, oldest first; what is no line of it (one that was cut off, say) is left out."""
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            lines.append(entry)
    return lines
