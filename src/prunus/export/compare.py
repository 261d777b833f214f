"""One model on several engines: the same data, the same metric code, one table.

Every output is taken at the same rows of the whole validation split; ``same answers`` is the share of rows whose highest output
(of answers: start and end) is that of the first backend.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from prunus.errors import DataError, Problem, PrunusError, RecipeError, nearest
from prunus.export.packed import run_task, tokenizer_of
from prunus.export.running import BACKENDS, TARGETS, Running, output_names, whereabouts
from prunus.export.scoring import agreement, engine_outputs
from prunus.models.loading import load_saved
from prunus.models.predict import predict
from prunus.progress import Bars
from prunus.runtime.engine import Engine
from prunus.runtime.store import read_model
from prunus.tasks.base import Feature, Task
from prunus.tasks.collate import Collate

__all__ = ["compare"]


def compare(
    directory: Path, backends: Sequence[str], data: Mapping[str, Any], console: Console | None = None
) -> dict[str, Any]:
    """Metrics of a saved model on each of ``backends`` (``BACKENDS``).

    Args:
        directory: the output of a run, or of ``prunus export``; other backends' files are looked for beside it.
        backends: names; the answers of the first are what the others' are compared with.
        data: fields of the run's task that are replaced: ``data``, ``validation``.
        console: for progress.

    Returns:
        ``task``, ``examples``, ``notes``, and by backend ``file``, ``bytes``, ``metrics``, ``same_answers``.

    Raises:
        PrunusError: every backend that is not known, not installed, or has no file here; data that is not at hand.

    """
    problems: list[Problem] = []
    files: dict[str, Path] = {}
    for name in dict.fromkeys(backends):
        if name not in BACKENDS:
            problems.append(Problem("--backend", name, f"be one of {', '.join(BACKENDS)}", nearest(name, BACKENDS)))
            continue
        try:
            files[name] = whereabouts(directory, name)
        except PrunusError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)
    with Bars(console) as bars:
        task, note = run_task(directory, data, bars, ("validation",))
        if task is None:
            raise DataError(Problem("the task", note, "have its data at hand", "--data DIR, or --validation-file FILE"))
        features = task.features("validation", tokenizer_of(directory), partial(bars, "tokenising"))
        outputs = {
            name: outputs_of(name, path, directory, task, features, partial(bars, f"evaluating {name}"))
            for name, path in files.items()
        }
        first = next(iter(outputs.values()))
        results = {
            name: {
                "file": str(path),
                "bytes": sum(one.stat().st_size for one in (path, path.with_suffix(".bin")) if one.is_file()),
                "metrics": task.score(outputs[name], features),
                "same_answers": agreement(first, outputs[name]),
            }
            for name, path in files.items()
        }
    return {
        "directory": str(directory),
        "task": task.name,
        "metric": task.metric,
        "examples": task.size("validation"),
        "notes": list(task.notes),
        "backends": results,
    }


def outputs_of(
    name: str, path: Path, directory: Path, task: Task, features: Sequence[Feature], progress: Any
) -> list[NDArray[np.float32]]:
    """Raw outputs of one backend on all rows."""
    if name == "prunus":
        with Engine(read_model(path.parent), path.parent) as engine:
            return engine_outputs(engine, features, progress)
    if name == "torch":
        model: Any = load_saved(path.parent, task)
    else:
        model = Running(path, TARGETS[name], output_names(task.head == "question-answering"))
    return predict(model, features, Collate(tokenizer_of(directory)), task.head, 64, progress)
