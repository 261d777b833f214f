"""One training: a model, its features and a ``TrainSpec`` in, the trained model and its history out.

Ctrl-C (or SIGTERM, SIGHUP) finishes the current step, writes a checkpoint and ends the training; a second one ends at once.
Checkpoints stand in ``OUT/checkpoints``; one that was cut off while it was written is recognised (``checkpoint.whole``) and
passed over.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.checkpoint.whole import is_whole
from prunus.distillation.logits import Distillation
from prunus.distributed.gathered import GatheredParameters
from prunus.distributed.processes import process_count, training_threads
from prunus.errors import CheckpointError, Problem, PrunusError, first_line
from prunus.progress import Bars
from prunus.recipe_blocks import TrainSpec
from prunus.signals import Stopped, handling, stop
from prunus.sparsity.pruning import Pruning
from prunus.tasks.base import Feature, HeadKind, Metrics
from prunus.tasks.collate import Collate
from prunus.training.arguments import training_arguments
from prunus.training.autocast import release
from prunus.training.best import KeepBest
from prunus.training.collapse_monitor import CollapseMonitor
from prunus.training.dropout import dropout
from prunus.training.jsonl_logger import LOG_FILE, JsonlLogger
from prunus.training.lr_schedules import cosine_cycles, linear_rewinding
from prunus.training.progress import TrainingBar
from prunus.training.run_plan import Length
from prunus.training.session import STATE_FILE, Session
from prunus.training.trainer import PrunusTrainer

__all__ = ["Fit", "Interrupted", "drop_checkpoints", "fit", "last_checkpoint"]


class Interrupted(Stopped):
    """A signal stopped a training; its last checkpoint is whole."""


@dataclass(frozen=True)
class Fit:
    """What a training left: the seconds it took (of this process; a resumed one counts its own) and the Trainer's logs."""

    seconds: float
    history: list[dict[str, Any]]
    session: Session
    best_step: int | None = None
    """The optimizer step whose weights were kept, where the best are."""
    banks: dict[str, Any] | None = None
    """Of contrastive terms: encoding passes, their seconds, bytes."""
    warnings: list[str] = field(default_factory=list)


class _StopOnSignal(TrainerCallback):  # type: ignore[misc]
    def __init__(self, session: Session) -> None:
        self.session = session
        self.number = 0
        self.began = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.session.interrupted and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def handle(self, number: int) -> None:
        """The first signal ends the training after its step, the second at once."""
        if self.session.interrupted:
            stop(number)
        self.session.interrupted, self.number = True, number


def last_checkpoint(directory: Path) -> Path | None:
    """The latest whole checkpoint below ``directory``, with its session's state, or None."""
    complete = []
    for path in directory.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdecimal() and is_whole(path, STATE_FILE):
            complete.append((int(step), path))
    return max(complete)[1] if complete else None


def fit(
    model: nn.Module,
    features: Sequence[Feature],
    collate: Collate,
    train: TrainSpec,
    length: Length,
    directory: Path,
    *,
    bars: Bars,
    head: HeadKind,
    what: str = "training",
    pruning: Sequence[Pruning] = (),
    masks: Mapping[str, Tensor] | None = None,
    teachers: Sequence[nn.Module] = (),
    distillation: Distillation | None = None,
    pretrained: nn.Module | None = None,
    score: Callable[[nn.Module], Metrics] | None = None,
    metric: str = "",
    resume: bool = False,
    logged: bool = False,
) -> Fit:
    """Trains ``model`` in place, with checkpoints in ``directory / "checkpoints"``; ``logged``: and a file of its logs.
    ``masks`` were saved with the model; rules that lock zeros keep theirs.

    ``resume`` goes on from the last whole checkpoint; where there is none yet, from the beginning. Raises ``Interrupted`` after
    a signal, ``TrainingError`` for a loss that is not finite or zeros that are missing, ``CheckpointError`` for a checkpoint of
    another training or of another number of processes.
    """
    torch.set_num_threads(training_threads(train.threads))
    checkpoints = directory / "checkpoints"
    start = last_checkpoint(checkpoints) if resume else None
    if start is not None:
        _check_processes(start)
    frozen = [re.compile(pattern) for pattern in train.freeze]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(regex.search(name) for regex in frozen))
    session = Session(pruning, seed=train.seed, saved_masks=masks)
    on_signal = _StopOnSignal(session)
    logger = JsonlLogger(directory / LOG_FILE) if logged else None
    best = None
    if train.keep == "best" and score is not None:
        best = KeepBest(checkpoints, metric, train.best_after.steps(length.total, length.steps_per_epoch), session)
    trainer = PrunusTrainer(
        model=model,
        args=training_arguments(train, length, checkpoints, score is not None),
        train_dataset=features,
        eval_dataset=features[:1],
        data_collator=collate,
        session=session,
        teacher=teachers or None,
        distillation=distillation,
        pretrained=pretrained,
        score=score,
        rate=_rate(train, length, pruning),
        head=head,
        callbacks=[TrainingBar(bars, what), on_signal, *(each for each in (best, logger) if each is not None)],
    )
    monitor = CollapseMonitor(metric, train.collapse, train.on_collapse, session)
    trainer.add_callback(monitor)
    trainer.remove_callback(PrinterCallback)
    gathered = GatheredParameters(model)
    with handling(on_signal.handle), dropout(model, train.dropout):
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except (PrunusError, OSError):
            raise
        except Exception as error:  # what transformers and torch say of files that are not what they wrote
            if start is None or on_signal.began:
                raise
            rule = f"hold what was saved there, unchanged ({type(error).__name__}: {first_line(error)})"
            fix = "removing it: --resume then goes on from the checkpoint before"
            raise CheckpointError(Problem(str(start), "other contents", rule, fix)) from error
    seconds = trainer.seconds
    if session.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted("the last checkpoint is whole; go on with --resume", on_signal.number)
    gathered.restore(model)
    masker = session.masker
    if masker is not None:
        masker.collect()
    release(model)
    if best is not None and score is not None:
        if best.looked != trainer.state.global_step:
            best.see(model, trainer.state.global_step, score(model)[metric])
        if best.restore(model) and masker is not None:
            session.tensor_facts = masker.finish(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    kept = best.step if best is not None and best.value is not None else None
    banks = session.contrasting.facts if session.contrasting is not None else None
    warnings = list(monitor.warnings)
    if logger is not None and logger.warning is not None:
        warnings.append(logger.warning)
    return Fit(seconds, list(trainer.state.log_history), session, kept, banks, warnings)


def _check_processes(checkpoint: Path) -> None:
    """Each process has random numbers of its own."""
    wrote = len(list(checkpoint.glob("rng_state*.pth")))
    if wrote != process_count():
        rule = f"be the {wrote} that wrote {checkpoint}, whose random numbers it holds"
        raise CheckpointError(Problem("processes", process_count(), rule, f"{wrote} processes, or --overwrite"))


def drop_checkpoints(directory: Path) -> None:
    """Removes the checkpoints of a training whose result is saved."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _rate(train: TrainSpec, length: Length, pruning: Sequence[Pruning]) -> Callable[[int, int, int], float] | None:
    """A learning rate that transformers does not have; ``linear_rewinding`` goes by the first rule whose masks grow."""
    if train.lr_scheduler == "cosine_cycles":
        return partial(cosine_cycles, cycles=train.cycles)
    if train.lr_scheduler != "linear_rewinding":
        return None
    rule = next((rule for rule in pruning if not rule.lock), None)
    if rule is None:  # a dense model, which shares what it does not say itself
        return partial(linear_rewinding, begin=0, end=0, every=1)
    table = rule.schedule.timetable(length.total, length.steps_per_epoch)
    grown = table.update_steps[: len(table.update_steps) - table.hold_updates]
    every = grown[1] - grown[0] if len(grown) > 1 else 1
    return partial(linear_rewinding, begin=grown[0], end=grown[-1], every=every)
