"""The dense model that a sparse one starts from and learns from: fine-tuned once, kept for the next run.

It is kept below ``$PRUNUS_CACHE`` (default: ``prunus`` in the user's cache directory) under a name that is a digest of all
that decides it: the model's weights and configuration, the task with its data and tokens, the training, and the versions of
torch and transformers. A changed recipe therefore trains another one, and an unchanged one does not. While it is trained it
lies in ``DIGEST.partial`` beside its place, with its checkpoints.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep, time
from typing import Any, Final
from uuid import uuid4

import torch
import transformers
from transformers import PreTrainedModel, set_seed

from prunus._version import __version__
from prunus.cache import cache_or_temporary
from prunus.checkpoint.locked import Busy, locked
from prunus.distributed.processes import barrier, from_main_process, is_main_process, process_count
from prunus.errors import CheckpointError
from prunus.models.loading import load_model
from prunus.progress import Bars
from prunus.recipe_blocks import TrainSpec
from prunus.report.facts_file import FACTS_FILE, read_json, write_json
from prunus.signals import Stopped
from prunus.sparsity.continuing import plain
from prunus.tasks.collate import Collate
from prunus.tasks.spec import TaskSpec
from prunus.training.fit import Interrupted, drop_checkpoints, fit
from prunus.training.run_facts import size_on_disk
from prunus.training.run_plan import RunPlan

__all__ = ["DenseModel", "dense_model"]

_WAIT: Final = 1.0
"""Seconds between two looks at whether another process has done."""
_ABANDONED: Final = 7 * 24 * 3600.0


@dataclass(frozen=True)
class DenseModel:
    """A fine-tuned dense model, the seconds its training took, whether it was kept, and the bytes of its weights."""

    model: PreTrainedModel
    seconds: float
    cached: bool
    bytes: int


def _digest(plan: RunPlan, inputs: Mapping[str, str]) -> str:
    """Names the dense model by everything that decides its weights; ``inputs`` are digests of rows and weights."""
    config = plan.dense_config.to_diff_dict()
    said: dict[str, Any] = {
        "config": {
            name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")
        },
        "weights": inputs.get("model.dense", inputs["model.name"]),
        "rows_digest": inputs["task.train"],
        "task": _said(replace(plan.recipe.task, train=None, validation=None, data=None), TaskSpec()),
        "rows": len(plan.train_features),
        "head": plan.task.head,
        "train": _said(plan.recipe.dense_training, TrainSpec()),
        "versions": [torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _said(spec: Any, default: Any) -> dict[str, Any]:
    """What differs from the defaults: a key that a later version adds does not make another model."""
    usual = plain(default)
    return {name: value for name, value in plain(spec).items() if value != usual[name]}


def dense_model(
    plan: RunPlan, inputs: Mapping[str, str], collate: Collate, bars: Bars, say: Callable[[str], None]
) -> DenseModel:
    """The dense model of a recipe, fine-tuned now or kept from an earlier run; ``inputs`` are those of ``input_digests``.

    A training that was stopped or killed goes on from its last whole checkpoint. Only one process trains a dense model: others
    wait for it.
    """
    kept = cache_or_temporary("dense", _digest(plan, inputs))
    with _alone(kept, say) as alone:
        there = from_main_process((kept / FACTS_FILE).is_file)
        if there:
            say(f"dense model: kept from an earlier run in {kept}")
            model = load_model(str(kept), plan.dense_config, plan.task.head, key="the kept dense model")
            return DenseModel(model, float(read_json(kept)["seconds"]), True, size_on_disk(kept))
        if is_main_process():
            _drop_abandoned(kept.parent)
        seconds, model = _train(plan, collate, bars, kept, alone)
    say(f"dense model: kept for the next run in {kept}")
    return DenseModel(model, seconds, False, size_on_disk(kept))


def _train(plan: RunPlan, collate: Collate, bars: Bars, kept: Path, alone: bool) -> tuple[float, PreTrainedModel]:
    """Seconds of the training, and the model; it is saved in ``kept``."""
    train = plan.recipe.dense_training
    set_seed(train.seed)
    new = plan.recipe.model.head == "new"
    model = load_model(plan.dense_source, plan.dense_config, plan.task.head, plan.train_features, new_head=new)
    # Where there are no locks, another process may train the same model: each in a place of its own.
    count, suffix = process_count(), "" if alone else f".{uuid4().hex[:8]}"
    name = f"{kept.name}.{count}{suffix}.partial" if count > 1 or suffix else f"{kept.name}.partial"
    partial = kept.with_name(from_main_process(lambda: name))
    partial.mkdir(parents=True, exist_ok=True)
    try:
        result = fit(
            model,
            plan.train_features,
            collate,
            train,
            plan.dense_length,
            partial,
            bars=bars,
            head=plan.task.head,
            what="dense training",
            resume=alone,
        )
        if is_main_process():
            drop_checkpoints(partial)
            model.save_pretrained(partial)
            plan.tokenizer.save_pretrained(partial)
            write_json(partial / FACTS_FILE, {"prunus": __version__, "seconds": result.seconds})
            if alone:
                shutil.rmtree(kept, ignore_errors=True)  # without its facts, it is what is left of one
            if not kept.exists():
                partial.rename(kept)
        barrier()
    except BaseException as error:
        # Of one that is alone the checkpoints stay, unless they are what is wrong.
        if not alone or isinstance(error, CheckpointError):
            shutil.rmtree(partial, ignore_errors=True)
        if not alone and isinstance(error, Interrupted):
            raise Stopped(number=error.number) from None
        raise
    if not alone:
        shutil.rmtree(partial, ignore_errors=True)
    return result.seconds, model


@contextmanager
def _alone(kept: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Until no other process trains the dense model ``kept``; False where the file system has no locks. The same for all of
    several processes that train together.
    """
    with ExitStack() as stack:

        def take() -> bool:
            said = False
            while not (kept / FACTS_FILE).is_file():
                try:
                    return stack.enter_context(locked(kept))
                except Busy as busy:
                    if not said:
                        say(
                            f"dense model: waits for the process that trains it ({busy.problems[0].rule.split(': ')[-1]})"
                        )
                    said = True
                    sleep(_WAIT)
            return True

        yield from_main_process(take)


def _drop_abandoned(directory: Path) -> None:
    """Removes what killed trainings left, a week after they last wrote, where no process is at work on it."""
    for partial in directory.glob("*.partial"):
        try:
            wrote = max(path.stat().st_mtime for path in (partial, *partial.glob("*"), *partial.glob("*/*")))
            if time() - wrote < _ABANDONED:
                continue
            with locked(partial.with_name(partial.name.partition(".")[0])):
                shutil.rmtree(partial, ignore_errors=True)
        except (OSError, Busy):
            continue
