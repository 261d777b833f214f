"""Where a training goes on from: the directory that ``Trainer.train(resume_from_checkpoint=...)`` was given.

Trainer tells its callbacks the step that it goes on from, and not the directory, which may have been copied, renamed or
downloaded. The directory is an argument of the training loop that is running when ``on_train_begin`` is called.
"""

import sys
from pathlib import Path

from torch import Tensor
from transformers import Trainer, TrainerState, TrainingArguments

from prunus.checkpoint.state import read_tensors
from prunus.errors import CheckpointError, Problem

__all__ = ["read_state", "resumed_from"]


def resumed_from(args: TrainingArguments, state: TrainerState) -> Path | None:
    """The checkpoint that the training goes on from, None for one that begins; called in ``on_train_begin``.

    Outside of a ``Trainer`` it is the one of that step below ``args.output_dir``.
    """
    if not state.global_step:
        return None
    frame = sys._getframe(1)
    while frame is not None:
        given = frame.f_locals.get("resume_from_checkpoint")
        if isinstance(given, str | Path) and isinstance(frame.f_locals.get("self"), Trainer):
            return Path(given)
        frame = frame.f_back  # type: ignore[assignment]
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def read_state(checkpoint: Path, file: str, writer: str) -> dict[str, Tensor]:
    """The tensors of ``file`` in a checkpoint; ``CheckpointError`` where it is missing. ``writer`` says what writes it."""
    path = checkpoint / file
    if not path.is_file():
        rule = "be in the checkpoint that training resumes from"
        raise CheckpointError(Problem(file, str(path), rule, f"a checkpoint written with {writer}, copied whole"))
    return read_tensors(path)
