"""Pruning inside any ``transformers.Trainer``: one callback, no subclass.

    Trainer(..., callbacks=[PruneCallback(Pruning(sparsity=0.8, pattern="4x1"))])

The order within a step is the Trainer's own: gradients are accumulated, synchronised, unscaled and clipped before
``on_pre_optimizer_step`` (scores see those), and ``on_optimizer_step`` comes before anything is evaluated or saved (which
therefore sees exact zeros).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.checkpoint.state import write_tensors
from prunus.distributed.deepspeed import deepspeed_problems, stage_of
from prunus.errors import CheckpointError, Problem, RecipeError, TargetError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts, sparsity_of, whole
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.wrappers import parameter
from prunus.training.resume import read_state, resumed_from

__all__ = ["STATE_FILE", "PruneCallback"]

STATE_FILE: Final = "prunus_state.safetensors"


class PruneCallback(TrainerCallback):  # type: ignore[misc]
    """Prunes the model of a Trainer by one or several rules.

    After training, ``facts`` holds what was counted in the weights and ``masker`` the masks. Checkpoints carry the state of
    the masker, so that ``trainer.train(resume_from_checkpoint=...)`` goes on with the same masks and schedule, wherever the
    checkpoint lies. Raises ``RecipeError`` at the start of training for rules that do not fit the model or its length,
    ``TrainingError`` at its end where the zeros are not there. A training that is stopped before the last mask update
    (``EarlyStoppingCallback``) ends with a warning that names the sparsity it reached.

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
        self.interrupted: Callable[[], bool] = lambda: False
        """Whether the user has stopped the training, and knows that it is not at its end."""

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
        checkpoint = resumed_from(args, state)
        if checkpoint is not None:
            held = read_state(checkpoint, STATE_FILE, "the callback")
            _check_zeros(model, held, checkpoint / STATE_FILE)
        self.masker = Masker(
            model,
            self.prunings,
            state.max_steps,
            steps_per_epoch,
            seed=self._seed,
            state=held,
            saved=self.saved_masks,
        )
        found = _frozen(model, self.masker)
        if found:
            raise RecipeError(*found)

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
        """Counts the zeros; a miss is an error. A training that ends before its last mask update is told by a warning."""
        if self.masker is None:
            return
        if self._locked or self.masker.finished or state.global_step >= state.max_steps:
            self.facts = self.masker.finish(model)
            return
        self.facts = self.masker.measure(model)
        if not self.interrupted():
            last = max(rule.timetable.events[-1] for rule in self.masker.rules)
            text = (
                f"training ended at step {state.global_step} of {state.max_steps}, before the last mask update at step {last}: "
                f"the sparsity is {sparsity_of(self.facts):.4f}, and {self.masker.due(last):.4f} was asked for. A schedule "
                "that ends before anything stops the training (end: 50%, say) reaches its target."
            )
            warnings.warn(text, UserWarning, stacklevel=2)


def _overflowed(model: nn.Module) -> bool:
    found = [p.grad.detach().abs().max() for p in model.parameters() if p.grad is not None and p.grad.numel()]
    return bool(found) and not bool(torch.isfinite(torch.stack([whole(value) for value in found])).all())


def _check_zeros(model: nn.Module, held: Mapping[str, Tensor], path: Path) -> None:
    """A state of another run would have its masks where these weights are not zero."""
    for key, mask in held.items():
        kind, _, name = key.partition(".")
        if kind != "mask":
            continue
        try:
            weight = parameter(model, name)
        except TargetError:  # the masker names all that do not fit
            continue
        if weight.shape == mask.shape and whole(weight.detach())[~mask.to(weight.device)].any():
            rule = "belong to the weights that training resumes from"
            fix = "the checkpoint as it was written"
            raise CheckpointError(Problem(str(path), f"a mask over nonzero weights of {name}", rule, fix))


def _frozen(model: nn.Module, masker: Masker) -> list[Problem]:
    """Rules whose scores come from gradients of weights that get none: those below adapters, say."""
    found = []
    for index, rule in enumerate(masker.rules):
        taken = rule.selection.taken if rule.criterion.needs_gradient else {}
        names = [name for name in taken if not parameter(model, name).requires_grad]
        if names:
            what = f"{len(names)} of {len(taken)} tensors are frozen ({names[0]})"
            text = f"see gradients of all the weights that it scores: {what}"
            fix = "criterion: magnitude, or training these weights"
            found.append(Problem(f"prune[{index}].criterion", rule.criterion.name, text, fix))
    return found
