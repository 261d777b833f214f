"""A saved model packed for ``prunus.runtime``, with what it cost and what it kept.

    int8 needs the ranges of the activations: they come from texts of the user's (``texts``: one a line; a tab between the two
    texts of a pair), or from the training data of the run that made the model (``prunus.json`` names it).

The metric of the packed model is measured on the whole validation split, next to the same model in float32, where the data is
at hand.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from prunus._version import __version__
from prunus.checkpoint.sentence_files import model_directory
from prunus.checkpoint.staged import copy_files, staged
from prunus.checkpoint.weights import weight_files
from prunus.errors import CheckpointError, DataError, EngineError, Problem, PrunusError
from prunus.export.scoring import agreement, engine_outputs
from prunus.export.sentences import cross_encoder_settings, read_sentences
from prunus.export.source import carry_tokenizer, read_dense
from prunus.progress import Bars
from prunus.runtime.convert import Model, Ranges, calibrate, convert
from prunus.runtime.engine import Engine
from prunus.runtime.families import DenseEncoder
from prunus.runtime.learned import read_learned
from prunus.runtime.store import FILE, read_model, write_model
from prunus.tasks.base import Feature, Split, Task

__all__ = ["FACTS", "Calibration", "export_packed"]

FACTS = "packed.json"
COPIED = ("config.json", "prunus.json")
"""Copied as they are; a tokenizer writes its own files (``source.carry_tokenizer``)."""
COVERAGE = 0.99
"""Quantile of the sequences' extremes that a range covers."""


@dataclass(frozen=True)
class Calibration:
    """Where the ranges of int8 come from."""

    texts: Path | None = None
    """A file with one text a line; a tab between the two texts of a pair."""
    samples: int = 128
    seed: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the run's task that are replaced: ``data``, ``train``, ``validation``."""

    def problems(self) -> list[Problem]:
        """What is wrong with it."""
        problems = []
        if not 1 <= self.samples <= 100_000:
            problems.append(Problem("samples", self.samples, "be 1 to 100000"))
        if self.texts is not None and not self.texts.is_file():
            problems.append(Problem("texts", str(self.texts), "be a file with one text a line"))
        return problems


def export_packed(
    directory: Path,
    output: Path,
    precision: str = "int8",
    calibration: Calibration | None = None,
    *,
    evaluate: bool = True,
    overwrite: bool = False,
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Packs the model in ``directory`` into ``output``; returns the facts that ``packed.json`` holds.

    Args:
        directory: a Hugging Face directory (``config.json``, weights, tokenizer), such as a run's output; of a
            sentence-transformers directory the modules are packed too, so that ``Engine.encode`` gives its embeddings.
        output: a new directory.
        precision: ``int8`` or ``float32``.
        calibration: where the ranges of int8 come from; by default from the run's own training data.
        evaluate: measure the metric of the packed model, and of the model in float32, where the task's data is at hand.
        overwrite: replace what is in ``output``.
        threads: of the measuring engine.
        console: for progress and notes.

    Raises:
        PrunusError: all that is wrong with directory, output and calibration, before anything is computed.

    """
    calibration = calibration or Calibration()
    problems = calibration.problems()
    if precision not in {"int8", "float32"}:
        problems.append(Problem("precision", precision, "be int8 or float32"))
    if (output / FILE).exists() and not overwrite:
        problems.append(
            Problem("output", str(output), "not hold a packed model yet", "--overwrite or another directory")
        )
    if problems:
        raise CheckpointError(*problems)
    sentences, more = read_sentences(directory), cross_encoder_settings(directory)
    directory = model_directory(directory)
    dense = read_dense(directory, more, embeds=sentences is not None)
    with Bars(console) as bars:
        task, note = run_task(directory, calibration.data, bars, splits_for(precision, calibration, evaluate))
        if precision == "int8" and calibration.texts is None and task is None:
            rule = "name texts to calibrate int8 with, as this directory has no training data of its own at hand"
            raise DataError(
                Problem("texts", note or "nothing", rule, "--texts FILE, --data DIR, or --precision float32")
            )
        with staged(output, FACTS, new="" if overwrite else FILE) as partial:
            copy_files(directory, partial, COPIED)
            if carry_tokenizer(directory, partial, console) is None and console is not None:
                console.print("no tokenizer: the packed model takes token ids alone", highlight=False)
            started = time.perf_counter()
            ranges = seen(dense, directory, calibration, task, bars) if precision == "int8" else None
            learned = read_learned(directory, dense.shape) if precision == "int8" else None
            model = convert(dense, ranges, COVERAGE, learned=learned)
            model = model if sentences is None else sentences.add(model)
            write_model(model, partial)
            facts: dict[str, Any] = {
                "prunus": __version__,
                "precision": precision,
                "layers": layer_facts(dense, model),
                "bytes": {
                    "dense": sum(path.stat().st_size for path in weight_files(directory)),
                    "packed": (partial / FILE).stat().st_size,
                },
                "calibration": None
                if ranges is None
                else {"sequences": ranges.sequences, "coverage": COVERAGE, "seed": calibration.seed},
                "ranges": None if ranges is None else "learned in training" if learned is not None else "calibrated",
                "seconds": time.perf_counter() - started,
                "notes": [note] if note else [],
            }
            if evaluate and task is not None:
                facts["metrics"] = measured(dense, partial, task, directory, threads, bars)
            (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def run_task(
    directory: Path, data: Mapping[str, Any], bars: Bars, splits: Sequence[Split] = ("train", "validation")
) -> tuple[Task | None, str]:
    """The task of the run that made a model, with these splits of its data; or None and why (nothing where none are asked)."""
    from prunus.models.loading import saved_labels
    from prunus.recipe import read_recipe
    from prunus.report.facts import read_facts
    from prunus.tasks import check_task, load_task, with_data

    if not splits:
        return None, ""
    if not (directory / "prunus.json").is_file():
        return None, "no prunus.json beside the model"
    recipe = read_facts(directory).recipe
    if not recipe:  # compacted, say, from a directory that no run made
        return None, "no recipe in prunus.json"
    try:
        spec = with_data(read_recipe(recipe).task, data)
        labels = saved_labels(directory)
        if not labels and spec.name == "classification":  # the classes are those of the training file
            splits = ("train", "validation")
        problems = check_task(spec, splits)
        if problems:
            raise DataError(*problems)
        return load_task(spec, lambda done, total: bars("reading data", done, total), splits, labels), ""
    except PrunusError as error:
        if data:  # the user named it: then it has to be right
            raise
        return None, str(error.problems[0]).splitlines()[0]


def splits_for(precision: str, calibration: Calibration, evaluate: bool) -> tuple[Split, ...]:
    """The data that an export reads: training rows to calibrate int8 with, validation rows to measure the metric."""
    train: tuple[Split, ...] = ("train",) if precision == "int8" and calibration.texts is None else ()
    return (*train, "validation") if evaluate else train


def tokenizer_of(directory: Path) -> Any:
    from prunus.models.loading import load_tokenizer

    return load_tokenizer(str(directory), key="directory")


def texts_of(
    directory: Path, calibration: Calibration, task: Task | None, tokenizer: Any, longest: int, bars: Bars
) -> list[dict[str, Any]]:
    """Tokenised samples: of the texts that were named, else of the task's training data; none where there is neither."""
    chosen = np.random.default_rng(calibration.seed)
    if calibration.texts is not None:
        try:
            lines = calibration.texts.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(Problem(str(calibration.texts), str(error), "be UTF-8 text")) from None
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise DataError(Problem(str(calibration.texts), "no text", "have at least one line of text"))
        picked = [lines[i] for i in chosen.permutation(len(lines))[: calibration.samples]]
        limit = min(longest, 512)
        return [dict(tokenizer(*line.split("\t")[:2], truncation=True, max_length=limit)) for line in picked]
    if task is None or not task.size("train"):
        return []
    features = task.features("train", tokenizer, lambda done, total: bars("tokenising", done, total))
    return [dict(features[int(i)]) for i in chosen.permutation(len(features))[: calibration.samples]]


def seen(dense: DenseEncoder, directory: Path, calibration: Calibration, task: Task | None, bars: Bars) -> Ranges:
    """Ranges of the activations on real text."""
    longest = dense.shape.positions - dense.shape.first_position
    rows = texts_of(directory, calibration, task, tokenizer_of(directory), longest, bars)
    ids: list[NDArray[Any]] = [np.array(row["input_ids"])[:longest] for row in rows]
    types = [
        np.array(row.get("token_type_ids", [0] * len(one)))[: len(one)] for row, one in zip(rows, ids, strict=True)
    ]
    if dense.shape.types == 1:
        types = [np.zeros_like(one) for one in ids]
    if max(int(one.max()) for one in ids) >= dense.shape.vocab_size:
        raise EngineError(Problem("tokenizer", "ids beyond the vocabulary", "be the model's own"))
    bars("calibrating", 0, len(ids))
    ranges = calibrate(dense, ids, types)
    bars("calibrating", len(ids), len(ids))
    return ranges


def layer_facts(dense: DenseEncoder, model: Model) -> list[dict[str, Any]]:
    """Each linear layer: its zeros, how it is packed, its bytes."""
    facts = []
    for i, layer in enumerate(model.layers):
        for role, packed in layer.items():
            weight = dense.tensors[f"layers.{i}.{role}.weight"]
            zeros = 1 - np.count_nonzero(weight) / weight.size
            name = f"layers.{i}.{role}"
            facts.append(
                {
                    "name": name,
                    "shape": list(weight.shape),
                    "sparsity": zeros,
                    "weight_format": packed.weight_format,
                    "bytes": packed.bytes,
                }
            )
    return facts


def measured(
    dense: DenseEncoder, output: Path, task: Task, directory: Path, threads: int | None, bars: Bars
) -> dict[str, Any]:
    """The task's metrics of the packed model, and of the same model in float32, on the whole validation split."""
    tokenizer = tokenizer_of(directory)
    features: Sequence[Feature] = task.features("validation", tokenizer, lambda d, t: bars("tokenising", d, t))
    facts: dict[str, Any] = {"task": task.name, "metric": task.metric, "examples": task.size("validation")}
    outputs = {}
    for name, model in (("float32", convert(dense)), ("packed", read_model(output))):
        with Engine(model, output, threads) as engine:
            outputs[name] = engine_outputs(engine, features, lambda d, t, n=name: bars(f"evaluating {n}", d, t))  # type: ignore[misc]
        facts[name] = task.score(outputs[name], features)
    facts["agreement"] = agreement(outputs["float32"], outputs["packed"])
    return facts
