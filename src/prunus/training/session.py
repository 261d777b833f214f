"""Session: everything that a training keeps beside model, optimizer and Trainer, with one state and one file in a checkpoint.

    masker       masks, scores, the count of steps                 sparsity/masker.py
    projectors   of teachers with other widths                     training/teaching.py
    banks        which ones there are (their files lie beside)     training/contrast.py
    rows         the random state that drew this epoch's order
    clock        seconds so far
    best         the step of the best weights (which lie beside)     training/best.py

``prunus_state.safetensors`` holds them all, each under its name (``masker.mask.ENCODER...``). A resumed training reads it from
the checkpoint that was named; a part that this training needs and the file lacks is an error. Callbacks are thin: they tell the
session what the Trainer does (``callback.py``).
"""

import warnings
from collections.abc import Mapping, Sequence
from math import ceil, floor
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments

from prunus.checkpoint.tensor_io import write_tensors
from prunus.distributed.deepspeed import deepspeed_problems, stage_of
from prunus.errors import CheckpointError, Problem, RecipeError, TargetError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts, sparsity_of, whole
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.wrappers import parameter
from prunus.training.adapters import apply_masks, unsaved
from prunus.training.contrast import Contrasting
from prunus.training.resume import part_of, read_state, resumed_from
from prunus.training.teaching import Teaching

__all__ = ["STATE_FILE", "Clock", "RowOrder", "Session"]

STATE_FILE: Final = "prunus_state.safetensors"
COUNT: Final = "session.tensors"
"""How many tensors there are beside this one: a file that has lost some is not the training's state."""


class KeepsBest(Protocol):
    """Keeps the best weights in a file of its own (``training/best.py``)."""

    def state_dict(self) -> dict[str, Tensor]:
        """Which step they are of."""

    def begin(self, saved: Mapping[str, Tensor] | None, step: int) -> None:
        """A training begins, or goes on from ``step``."""


class Session:
    """The state of one training; ``PruneCallback`` in a plain Trainer has one with a masker alone.

    Args:
        prunings: the rules.
        masker: one that exists already and is not updated by this training (``Masker.lock``); its state is not saved.
        seed: of the masker.
        saved_masks: masks that were saved with the model (bool, True = kept): a rule that locks zeros keeps those.

    """

    def __init__(
        self,
        prunings: Sequence[Pruning] = (),
        *,
        masker: Masker | None = None,
        seed: int = 0,
        saved_masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.prunings = tuple(prunings)
        self.masker = masker
        self.teaching: Teaching | None = None
        self.contrasting: Contrasting | None = None
        self.rows: RowOrder | None = None
        self.clock: Clock | None = None
        self.best: KeepsBest | None = None
        self.tensor_facts: list[TensorFacts] = []
        """What was counted in the weights at the end of training."""
        self.interrupted = False
        """Whether the user has stopped the training, and knows that it is not at its end."""
        self._seed, self._saved_masks, self._locked = seed, saved_masks, masker is not None

    # State

    @property
    def keeps_state(self) -> bool:
        """Whether checkpoints of this training hold a state of it."""
        return self.clock is not None or (bool(self.prunings) and not self._locked)

    def state_dict(self) -> dict[str, Tensor]:
        """All parts, under their names. Where parameters are sharded, all processes call it."""
        parts: dict[str, Mapping[str, Tensor]] = {}
        if self.masker is not None and not self._locked:
            parts["masker"] = self.masker.state_dict()
        if self.teaching is not None:
            parts["projectors"] = self.teaching.projectors.state_dict()
        if self.contrasting is not None:
            parts["banks"] = self.contrasting.state_dict()
        if self.rows is not None:
            parts["rows"] = self.rows.state_dict()
        if self.clock is not None:
            parts["clock"] = self.clock.state_dict()
        if self.best is not None:
            parts["best"] = self.best.state_dict()
        named = {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
        return named | {COUNT: torch.tensor(len(named))} if named else {}

    def save(self, directory: Path, writes: bool = True) -> None:
        """Writes the state into a checkpoint's directory, in the process that ``writes``; others help to gather it."""
        sharded = self.masker is not None and self.masker.sharded
        state = self.state_dict() if writes or sharded else {}
        if writes and state:
            write_tensors(directory / STATE_FILE, state)

    def begin(self, model: nn.Module, args: TrainingArguments, state: TrainerState, batches: Any) -> None:
        """Resolves the rules against the model and starts all parts, from the checkpoint where the training is resumed.

        ``batches`` is the loader of the training data. Raises ``RecipeError`` for rules that do not fit the model or the length
        of the training, ``CheckpointError`` for a state that is missing, of other rules or of another model.
        """
        checkpoint = resumed_from(args, state)
        path = Path() if checkpoint is None else checkpoint / STATE_FILE
        saved = read_state(path) if checkpoint is not None and self.keeps_state else None

        def part(name: str) -> dict[str, Tensor] | None:
            return None if saved is None else part_of(saved, name, path)

        if self.prunings and not self._locked:
            self._begin_masks(model, args, state, batches, part("masker"), path)
        if self.teaching is not None and len(self.teaching.projectors):
            self.teaching.begin(
                model, args, part("projectors") if list(self.teaching.projectors.parameters()) else None
            )
        if self.contrasting is not None:
            self.contrasting.begin(model, args, part("banks"), checkpoint)
        if self.rows is not None:  # at the end of an epoch there is no order to restore
            self.rows.begin(part("rows") if state.epoch and not float(state.epoch).is_integer() else None)
        if self.clock is not None:
            self.clock.begin(part("clock"))
        if self.best is not None:  # earlier versions wrote nothing of it
            self.best.begin(None if saved is None or "best.step" not in saved else part("best"), state.global_step)
        if saved is not None and COUNT in saved and int(saved[COUNT]) != len(saved) - 1:
            rule = f"hold the {int(saved[COUNT])} tensors that were written into it"
            raise CheckpointError(Problem(str(path), len(saved) - 1, rule, "an earlier checkpoint"))

    def _begin_masks(
        self,
        model: nn.Module,
        args: TrainingArguments,
        state: TrainerState,
        batches: Any,
        saved: Mapping[str, Tensor] | None,
        path: Path,
    ) -> None:
        problems = deepspeed_problems(self.prunings, stage_of(args))
        if problems:
            raise RecipeError(*problems)
        try:
            steps_per_epoch = ceil(len(batches) / args.gradient_accumulation_steps)
        except TypeError:  # a stream has no length, and its training has max_steps and no epochs
            steps_per_epoch = None
        self.masker = Masker(
            model,
            self.prunings,
            state.max_steps,
            steps_per_epoch,
            seed=self._seed,
            state=saved,
            saved=self._saved_masks,
        )
        if saved is not None and self.masker.steps != state.global_step:
            rule = f"be after the {state.global_step} steps of the checkpoint that holds it"
            fix = "the checkpoint as it was written"
            raise CheckpointError(Problem(str(path), f"a state after {self.masker.steps} steps", rule, fix))
        problems = _frozen(model, self.masker)
        if problems:
            raise RecipeError(*problems)
        if saved is not None:
            below = unsaved(model, self.masker)
            _check_zeros(model, {k: mask for k, mask in saved.items() if k.removeprefix("mask.") not in below}, path)
            if below:
                apply_masks(model, self.masker, path)

    # Steps

    def before_optimizer_step(self, model: nn.Module, args: TrainingArguments, optimizer: Any) -> None:
        """Shows the final gradients to the scores, with the share of its peak that the learning rate has.

        In fp16 they do not see one that the loss scale made overflow: the optimizer does not take that step either.
        """
        if self.masker is not None and not (args.fp16 and _overflowed(model)):
            group = optimizer.param_groups[0] if optimizer is not None else {}
            peak = group.get("initial_lr", 0.0)
            self.masker.observe(model, group["lr"] / peak if peak else 1.0)
        if self.teaching is not None:
            self.teaching.average_gradients(args.world_size)

    def after_optimizer_step(self, model: nn.Module) -> bool:
        """Updates masks when due and makes the zeros exact. Returns whether this was the last mask update."""
        last = False
        if self.masker is not None:
            finished = self.masker.finished
            self.masker.step(model)
            last = self.masker.finished and not finished
        if self.teaching is not None and len(self.teaching.projectors):
            self.teaching.projectors.zero_grad()  # the Trainer clears the gradients of its model alone
            self.teaching.fold(model)
        return last

    def end(self, model: nn.Module, state: TrainerState) -> None:
        """Counts the zeros; a miss is a ``TrainingError``. A training that ends before its last mask update gets a warning."""
        if self.masker is None:
            return
        if self._locked or self.masker.finished or state.global_step >= state.max_steps:
            self.tensor_facts = self.masker.finish(model)
            return
        self.tensor_facts = self.masker.measure(model)
        if not self.interrupted:
            last = max(rule.timetable.update_steps[-1] for rule in self.masker.rules)
            text = (
                f"training ended at step {state.global_step} of {state.max_steps}, before the last mask update at step {last}: "
                f"the sparsity is {sparsity_of(self.tensor_facts):.4f}, and {self.masker.due(last):.4f} was asked for. A "
                "schedule that ends before anything stops the training (end: 50%, say) reaches its target."
            )
            warnings.warn(text, UserWarning, stacklevel=2)


@final
class RowOrder:
    """Lets a resumed training see the rows of its epoch in the order in which the stopped one saw them.

    The sampler that groups rows by length draws an epoch's order from torch's generator as it stands when the epoch begins, and
    a Trainer that resumes within an epoch begins it with another state: some rows would come twice.
    """

    def __init__(self) -> None:
        self.sampler: Any = None
        """Is told the epoch here: accelerate's loaders do not reach it where several processes skip rows of an epoch."""
        self._began: Tensor | None = None
        self._restored: Tensor | None = None

    def begin(self, saved: Mapping[str, Tensor] | None) -> None:
        """``saved`` is given where training goes on within an epoch."""
        self._restored = None if saved is None else saved.get("began")

    def begin_epoch(self, epoch: float | None) -> None:
        """To be called just before the order is drawn."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(floor((epoch or 0.0) + 1e-6))
        if self._restored is not None:
            torch.set_rng_state(self._restored)
            self._restored = None
        self._began = torch.get_rng_state()

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state at the beginning of this epoch."""
        return {} if self._began is None else {"began": self._began}


@final
class Clock:
    """Seconds of a training, those before the checkpoint that it goes on from included."""

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, saved: Mapping[str, Tensor] | None) -> None:
        """Starts, from the seconds of a checkpoint where they are given."""
        self._began, self._before = perf_counter(), 0.0 if saved is None else float(saved["seconds"])

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + perf_counter() - self._began

    def state_dict(self) -> dict[str, Tensor]:
        """Float64, in seconds."""
        return {"seconds": torch.tensor(self.seconds, dtype=torch.float64)}


def _overflowed(model: nn.Module) -> bool:
    largest = [p.grad.detach().abs().max() for p in model.parameters() if p.grad is not None and p.grad.numel()]
    return bool(largest) and not bool(torch.isfinite(torch.stack([whole(value) for value in largest])).all())


def _check_zeros(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """A state of another run would have its masks where these weights are not zero."""
    for key, mask in state.items():
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
    problems = []
    for index, rule in enumerate(masker.rules):
        taken = rule.selection.taken if rule.criterion.needs_gradient else {}
        names = [name for name in taken if not parameter(model, name).requires_grad]
        if names:
            what = f"{len(names)} of {len(taken)} tensors are frozen ({names[0]})"
            text = f"see gradients of all the weights that it scores: {what}"
            fix = "criterion: magnitude, or training these weights"
            problems.append(Problem(f"prune[{index}].criterion", rule.criterion.name, text, fix))
    return problems
