"""Where a training goes on from: the directory that ``Trainer.train(resume_from_checkpoint=...)`` was given.

Trainer tells its callbacks the step that it goes on from, and not the directory, which may have been copied, renamed or
downloaded. The directory is an argument of the training loop that is running when ``on_train_begin`` is called.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import TrainerState, TrainingArguments

from prunus.checkpoint.tensor_io import read_tensors
from prunus.errors import CheckpointError, Problem
from prunus.training.running import running_trainers

__all__ = ["part_of", "read_state", "resumed_from"]


def resumed_from(args: TrainingArguments, state: TrainerState) -> Path | None:
    """The checkpoint that the training goes on from, None for one that begins; called in ``on_train_begin``.

    Outside of a ``Trainer`` it is the one of that step below ``args.output_dir``.
    """
    if not state.global_step:
        return None
    for _, variables in running_trainers():
        given = variables.get("resume_from_checkpoint")
        if isinstance(given, str | Path):
            return Path(given)
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in a checkpoint; ``CheckpointError`` where it is missing or damaged."""
    if not path.is_file():
        rule = "be in the checkpoint that training resumes from"
        fix = "a checkpoint written with PrunusTrainer or PruneCallback, copied whole"
        raise CheckpointError(Problem(path.name, str(path), rule, fix))
    return read_tensors(path)


def part_of(state: Mapping[str, Tensor], part: str, path: Path) -> dict[str, Tensor]:
    """The tensors of one part, without its name; ``CheckpointError`` where there are none. ``path`` is for the message."""
    tensors = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
    if not tensors:
        rule = "be in the checkpoint that training resumes from"
        fix = "a checkpoint written with the same rules, teachers and terms"
        raise CheckpointError(Problem(f"{part} of {path.name}", str(path), rule, fix))
    return tensors
