"""What a training reads, as digests: the rows of its data, and the weights of the models that it begins with or learns from."""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

from prunus.checkpoint.weights import weight_files
from prunus.models.predict import LABEL_KEYS
from prunus.recipe import OWN_TEACHERS
from prunus.tasks.base import Feature
from prunus.tasks.masked_language import MaskedRows
from prunus.training.run_plan import RunPlan

__all__ = ["input_digests"]


def _weights_digest(source: str) -> str:
    """Of the names and contents of a directory's weight files."""
    sha = hashlib.sha256()
    for path in weight_files(Path(source)):
        sha.update(path.name.encode())
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def _rows_digest(features: Sequence[Feature]) -> str:
    """Of tokens and labels, in their order."""
    sha = hashlib.sha256()
    if isinstance(features, MaskedRows):
        sha.update(features.digest.encode())
    else:
        for row in features:
            sha.update(array("q", row["input_ids"]).tobytes())
            sha.update(repr([row.get(key) for key in sorted(LABEL_KEYS)]).encode())
    return sha.hexdigest()


def input_digests(plan: RunPlan) -> dict[str, str]:
    """Key of the recipe -> digest of what it names, for everything that a run trains with."""
    sources = {"model.name": plan.source, "model.dense": plan.dense_source} | {
        key: name for key, name in plan.teachers.items() if name not in OWN_TEACHERS
    }
    if plan.dense_source == plan.source or not plan.recipe.needs_dense:
        del sources["model.dense"]
    rows = {"task.train": _rows_digest(plan.train_features)[:16]}
    return rows | {key: _weights_digest(source)[:16] for key, source in sources.items()}
