"""The Trainer that calls: transformers tells its callbacks a step, and neither the directory nor the other callbacks.

It is found among the callers; ``resume`` finds there the checkpoint that a training goes on from.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments

__all__ = ["checkpoint_of", "output_of", "running_trainer", "running_trainers"]


def running_trainers() -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The Trainers among the callers, the innermost first, each with the local variables of the method that calls."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            yield owner, frame.f_locals
        frame = frame.f_back


def running_trainer() -> Any:
    """The innermost ``Trainer`` among the callers, None where there is none."""
    return next((trainer for trainer, _ in running_trainers()), None)


def output_of(args: TrainingArguments) -> Path:
    """Where the running training writes: ``args.output_dir``, or the directory of a trial of a search below it."""
    trainer = running_trainer()
    if trainer is None:
        return Path(args.output_dir)
    return Path(trainer._get_output_dir(getattr(trainer, "_trial", None)))


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """The directory of the checkpoint that is written at this step."""
    return output_of(args) / f"checkpoint-{state.global_step}"
