"""The dense model that a sparse one starts from and learns from: fine-tuned once, kept for the next run.

It is kept below ``$PRUNUS_CACHE`` (default: ``prunus`` in the user's cache directory) under a name that is a digest of all
that decides it: the model's weights and configuration, the task with its data and tokens, the training, and the versions of
torch and transformers. A changed recipe therefore trains another one, and an unchanged one does not.
"""

import hashlib
import json
import shutil
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import transformers
from transformers import PreTrainedModel, set_seed

from prunus._version import __version__
from prunus.cache import cache_or_temporary
from prunus.checkpoint.weights import weight_files
from prunus.distributed.processes import barrier, is_main_process, process_count
from prunus.models.loading import load_model
from prunus.models.predict import LABEL_KEYS
from prunus.progress import Bars
from prunus.recipe import TrainSpec
from prunus.report.facts_file import FACTS_FILE, read_json, write_json
from prunus.tasks.collate import Collate
from prunus.tasks.masked_language import MaskedRows
from prunus.tasks.spec import TaskSpec
from prunus.training.fit import Interrupted, drop_checkpoints, fit
from prunus.training.run_facts import plain, size_on_disk
from prunus.training.run_plan import RunPlan

__all__ = ["Dense", "dense_model"]


@dataclass(frozen=True)
class Dense:
    """A fine-tuned dense model, the seconds its training took, whether it was kept, and the bytes of its weights."""

    model: PreTrainedModel
    seconds: float
    cached: bool
    bytes: int


def _digest(plan: RunPlan) -> str:
    """Names the dense model by everything that decides its weights."""
    sha = hashlib.sha256()
    source = Path(plan.dense_source)
    files = weight_files(source) if source.is_dir() else []  # none of a model of the Hub
    for path in files:
        sha.update(path.name.encode())
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    if isinstance(plan.train_features, MaskedRows):
        sha.update(plan.train_features.digest.encode())
    else:
        for row in plan.train_features:
            sha.update(array("q", row["input_ids"]).tobytes())
            sha.update(repr([row.get(key) for key in sorted(LABEL_KEYS)]).encode())
    config = plan.dense_config.to_diff_dict()
    said: dict[str, Any] = {
        "config": {
            name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")
        },
        "source": None if files else [plan.dense_source, _revision(plan)],
        "task": _said(replace(plan.recipe.task, train=None, validation=None, data=None), TaskSpec()),
        "rows": len(plan.train_features),
        "head": plan.task.head,
        "train": _said(plan.recipe.dense_training, TrainSpec()),
        "versions": [torch.__version__, transformers.__version__],
    }
    sha.update(json.dumps(said, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:16]


def _revision(plan: RunPlan) -> str | None:
    """Which commit of a model of the Hub is loaded: the name of a branch says another one tomorrow."""
    commit: str | None = getattr(plan.dense_config, "_commit_hash", None)
    return commit or plan.recipe.model.revision


def _said(spec: Any, default: Any) -> dict[str, Any]:
    """What differs from the defaults: a key that a later version adds does not make another model."""
    usual = plain(default)
    return {name: value for name, value in plain(spec).items() if value != usual[name]}


def dense_model(plan: RunPlan, collate: Collate, bars: Bars, say: Callable[[str], None]) -> Dense:
    """The dense model of a recipe, fine-tuned now or kept from an earlier run."""
    kept = cache_or_temporary("dense", _digest(plan))
    head = plan.task.head
    barrier()  # all look before one writes
    there = (kept / FACTS_FILE).is_file()
    barrier()
    if there:
        say(f"dense model: kept from an earlier run in {kept}")
        model = load_model(str(kept), plan.dense_config, head, key="the kept dense model")
        return Dense(model, float(read_json(kept)["seconds"]), True, size_on_disk(kept))
    train = plan.recipe.dense_training
    set_seed(train.seed)
    revision, rows = plan.recipe.model.revision, plan.train_features
    new = plan.recipe.model.head == "new"
    model = load_model(plan.dense_source, plan.dense_config, head, revision, rows, new_head=new)
    partial = kept.with_name(f"{kept.name}.{uuid4().hex[:8] if process_count() == 1 else 'several'}.partial")
    partial.mkdir(parents=True, exist_ok=process_count() > 1)
    try:
        result = fit(
            model,
            plan.train_features,
            collate,
            train,
            plan.dense_length,
            partial,
            bars=bars,
            head=head,
            what="dense training",
        )
        if is_main_process():
            drop_checkpoints(partial)
            model.save_pretrained(partial)
            plan.tokenizer.save_pretrained(partial)
            write_json(partial / FACTS_FILE, {"prunus": __version__, "seconds": result.seconds})
            if not kept.exists():
                partial.rename(kept)
        barrier()
    except Interrupted:
        # What there is of a dense model is not kept, so there is nothing to go on from.
        raise KeyboardInterrupt from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"dense model: kept for the next run in {kept}")
    return Dense(model, result.seconds, False, size_on_disk(kept))
