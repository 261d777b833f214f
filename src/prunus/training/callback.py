"""Pruning inside any ``transformers.Trainer``: one callback, no subclass.

    Trainer(..., callbacks=[PruneCallback(Pruning(sparsity=0.8, pattern="4x1"))])

The order within a step is the Trainer's own: gradients are accumulated, synchronised, unscaled and clipped before
``on_pre_optimizer_step`` (scores see those), and ``on_optimizer_step`` comes before anything is evaluated or saved (which
therefore sees exact zeros).
"""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.checkpoint.state import read_tensors, write_tensors
from prunus.errors import CheckpointError, Problem, RecipeError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts, whole
from prunus.sparsity.pruning import Pruning
from prunus.training.deepspeed import deepspeed_problems, stage_of

__all__ = ["STATE_FILE", "PruneCallback"]

STATE_FILE: Final = "prunus_state.safetensors"


class PruneCallback(TrainerCallback):  # type: ignore[misc]
    """Prunes the model of a Trainer by one or several rules.

    After training, ``facts`` holds what was counted in the weights and ``masker`` the masks. Checkpoints carry the state of
    the masker, so that ``trainer.train(resume_from_checkpoint=True)`` goes on with the same masks and schedule. Raises
    ``RecipeError`` at the start of training for rules that do not fit the model or its length, ``TrainingError`` at its
    end where the zeros are not there.

    With ``load_best_model_at_end``, only checkpoints after the last mask update count as best.
    """

    def __init__(
        self, prunings: Pruning | Sequence[Pruning] = (), *, masker: Masker | None = None, seed: int = 0
    ) -> None:
        self.prunings = (prunings,) if isinstance(prunings, Pruning) else tuple(prunings)
        self.masker = masker
        self.facts: list[TensorFacts] = []
        self.saved_masks: Mapping[str, Tensor] | None = None
        """Masks that were saved with the model (bool, True = kept): a rule that locks zeros keeps those."""
        self._seed = seed
        self._locked = masker is not None
        self._saved: Path | None = None

    def save_state(self, directory: Path, writes: bool = True) -> None:
        """Writes what a resumed run needs into a checkpoint's directory.

        Where parameters are sharded, all processes call it, and the one that ``writes`` does.
        """
        if self.masker is not None and not self._locked and (writes or self.masker.sharded):
            state = self.masker.state_dict()
            if writes:
                write_tensors(directory / STATE_FILE, state)
            self._saved = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Resolves the rules; on a resumed run goes on from the checkpoint's masks."""
        if self._locked:
            return
        found = deepspeed_problems(self.prunings, stage_of(args))
        if found:
            raise RecipeError(*found)
        try:
            steps_per_epoch = ceil(len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps)
        except TypeError:  # a stream has no length, and its training has max_steps and no epochs
            steps_per_epoch = None
        self._saved = held = None
        if state.global_step:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
            if not path.is_file():
                rule = "be in the checkpoint that training resumes from"
                raise CheckpointError(Problem(STATE_FILE, str(path), rule, "a checkpoint written with the callback"))
            held = read_tensors(path)
            _check_zeros(model, held, path)
        self.masker = Masker(
            model,
            self.prunings,
            state.max_steps,
            steps_per_epoch,
            seed=self._seed,
            state=held,
            saved=self.saved_masks,
        )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Scores see the final gradient, and the share of its peak that the learning rate has.

        In fp16 they do not see one that the loss scale made overflow: the optimizer does not take that step either.
        """
        if self.masker is not None and not (args.fp16 and _overflowed(model)):
            group = kwargs["optimizer"].param_groups[0] if kwargs.get("optimizer") is not None else {}
            peak = group.get("initial_lr", 0.0)
            self.masker.observe(model, group["lr"] / peak if peak else 1.0)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Updates masks when due, makes the zeros exact."""
        if self.masker is None:
            return
        finished = self.masker.finished
        self.masker.step(model)
        if self.masker.finished and not finished:
            # What was best so far was denser than asked for, and must not be loaded at the end.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The masker's state joins the checkpoint (``PrunusTrainer`` has put it there already)."""
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._saved != directory and (directory.is_dir() or not state.is_world_process_zero):
            self.save_state(directory, state.is_world_process_zero)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Counts the zeros; a miss is an error. A training that was stopped on purpose is not counted."""
        if self.masker is not None and (self._locked or state.global_step >= state.max_steps):
            self.facts = self.masker.finish(model)


def _overflowed(model: nn.Module) -> bool:
    found = [p.grad.detach().abs().max() for p in model.parameters() if p.grad is not None and p.grad.numel()]
    return bool(found) and not bool(torch.isfinite(torch.stack([whole(value) for value in found])).all())


def _check_zeros(model: nn.Module, held: Mapping[str, Tensor], path: Path) -> None:
    """The state is found by its step alone: one of another run would have its masks where these weights are not zero."""
    weights = dict(model.named_parameters())
    for key, value in held.items():
        kind, _, name = key.partition(".")
        weight = weights.get(name) if kind == "mask" else None
        if (
            weight is not None
            and weight.shape == value.shape
            and whole(weight.detach())[~value.to(weight.device)].any()
        ):
            rule = "belong to the weights that training resumes from"
            fix = "a checkpoint below the output_dir of this training"
            raise CheckpointError(Problem(str(path), f"a mask over nonzero weights of {name}", rule, fix))
