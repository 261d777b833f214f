"""Pruning inside any ``transformers.Trainer``: one callback, no subclass.

    Trainer(..., callbacks=[PruneCallback(Pruning(sparsity=0.8, pattern="4x1"))])

The order within a step is the Trainer's own: gradients are accumulated, synchronised, unscaled and clipped before
``on_pre_optimizer_step`` (scores see those), and ``on_optimizer_step`` comes before anything is evaluated or saved (which
therefore sees exact zeros).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.errors import Problem, RecipeError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts
from prunus.sparsity.pruning import Pruning
from prunus.training.adapters import BASE_DIRECTORY, tell_base, unsaved, write_base
from prunus.training.running import checkpoint_of, output_of, running_trainer
from prunus.training.session import STATE_FILE, Session

__all__ = ["STATE_FILE", "PruneCallback", "SessionCallback"]


class SessionCallback(TrainerCallback):  # type: ignore[misc]
    """Tells a ``Session`` what the Trainer does."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._saved: Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Starts the session; a resumed training goes on from the checkpoint's state."""
        self._saved = None
        _check_alone(self)
        self.session.begin(model, args, state, kwargs.get("train_dataloader"))
        tell_base(model, self.session.masker if self.session.keeps_state else None, output_of(args))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the order of rows, just before it is drawn."""
        if self.session.rows is not None:
            self.session.rows.begin_epoch(state.epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Each step draws its own negatives."""
        if self.session.contrasting is not None:
            self.session.contrasting.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Scores see the final gradients."""
        self.session.before_optimizer_step(model, args, kwargs.get("optimizer"))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Updates masks when due, makes the zeros exact."""
        if self.session.after_optimizer_step(model):
            # What was best so far was denser than asked for, and must not be loaded at the end.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Fills a bank where one is due."""
        if self.session.contrasting is not None:
            self.session.contrasting.end_step(model, self.session.masker, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The state joins the checkpoint (``PrunusTrainer`` has put it there already)."""
        directory = checkpoint_of(args, state)
        if self._saved != directory and (directory.is_dir() or not state.is_world_process_zero):
            self.save_state(directory, state.is_world_process_zero)

    def save_state(self, directory: Path, writes: bool = True) -> None:
        """Writes what a resumed run needs into a checkpoint's directory.

        Where parameters are sharded, all processes call it, and the one that ``writes`` does.
        """
        self.session.save(directory, writes)
        self._saved = directory

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Counts the zeros; a miss is an error. A pruned base below adapters is written beside the checkpoints."""
        self.session.end(model, state)
        if self.session.keeps_state and unsaved(model, self.session.masker):
            write_base(model, output_of(args) / BASE_DIRECTORY, state.is_world_process_zero)


def _check_alone(callback: SessionCallback) -> None:
    """Raises ``RecipeError`` where a Trainer has several callbacks that keep a state: a checkpoint has one file for it."""
    trainer = running_trainer()
    callbacks = [] if trainer is None or not callback.session.keeps_state else trainer.callback_handler.callbacks
    several = [each for each in callbacks if isinstance(each, SessionCallback) and each.session.keeps_state]
    if len(several) > 1:
        of_trainer = any(type(each) is SessionCallback for each in several)  # that of a PrunusTrainer without rules
        fix = "PrunusTrainer(pruning=[...])" if of_trainer else "one PruneCallback([rule, rule]) with all rules"
        rule = "hold one that prunes: a checkpoint has one file for its state"
        names = ", ".join(type(each).__name__ for each in several)
        raise RecipeError(Problem("callbacks", names, rule, fix))


class PruneCallback(SessionCallback):
    """Prunes the model of a Trainer by one or several rules.

    After training, ``facts`` holds what was counted in the weights and ``masker`` the masks. Checkpoints carry the state of
    the masker, so that ``trainer.train(resume_from_checkpoint=...)`` goes on with the same masks and schedule, wherever the
    checkpoint lies. Where the training has another length then (``max_steps``, ``num_train_epochs``), the rest of the schedule
    leads from the sparsity of the checkpoint to the target. Raises ``RecipeError`` at the start of training for rules that do
    not fit the model or its length, ``CheckpointError`` for other rules than those of the checkpoint, ``TrainingError`` at its
    end where the zeros are not there. A training that is stopped before the last mask update (``EarlyStoppingCallback``) ends
    with a warning that names the sparsity it reached.

    Trainer saves adapters (PEFT) without the model below them. Where that is pruned, it is written to ``pruned_base`` in the
    output directory at the end of training, which a warning says at its beginning.

    With ``load_best_model_at_end``, only checkpoints after the last mask update count as best.
    """

    def __init__(
        self,
        prunings: Pruning | Sequence[Pruning] = (),
        *,
        masker: Masker | None = None,
        seed: int = 0,
        session: Session | None = None,
    ) -> None:
        rules = (prunings,) if isinstance(prunings, Pruning) else tuple(prunings)
        super().__init__(session or Session(rules, masker=masker, seed=seed))

    @property
    def prunings(self) -> tuple[Pruning, ...]:
        """The rules."""
        return self.session.prunings

    @property
    def masker(self) -> Masker | None:
        """The masks; None before the training begins."""
        return self.session.masker

    @property
    def facts(self) -> list[TensorFacts]:
        """What was counted in the weights at the end of training."""
        return self.session.tensor_facts
