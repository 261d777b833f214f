"""``prunus bench DIR``: a saved model on every engine that is installed, side by side on this machine.

cases      batches of real length: (sequences, tokens), all sequences as long
mixed      sequences of the lengths of real texts, drawn from ``texts``: the others get them sorted by length and padded to
           the longest of each sub-batch of 8, or padded as one batch, whichever is faster for them
"""

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from transformers import AutoModel, AutoTokenizer

from prunus._version import __version__
from prunus.bench.engines import ENGINES, Batch, Call, Subject, make_engines, missing_packages
from prunus.bench.rounds import Timing, compare, timed
from prunus.checkpoint.sentence_files import model_directory
from prunus.environment import package_versions, processor
from prunus.errors import EngineError, Problem
from prunus.models.checkpoints import load_checkpoint, read_config
from prunus.models.hub import name_of
from prunus.runtime.families import shape_of
from prunus.runtime.isa import choose

__all__ = ["CASES", "bench", "call_all", "measure", "mixed_batch", "padded_batch", "versions"]

CASES = ((1, 128), (8, 128), (1, 16), (1, 384))
AGAINST = "prunus int8"
SUB_BATCH = 8
PACKAGES = ("prunus", "torch", "transformers", "numpy", "llvmlite", "onnxruntime", "openvino", "nncf")


def versions() -> dict[str, str]:
    """Of what takes part and is installed."""
    return {"python": platform.python_version()} | package_versions(PACKAGES) | {"prunus": __version__}


def padded_batch(rows: Sequence[NDArray[Any]]) -> Batch:
    """Rows of token ids, padded on the right to the longest."""
    longest = max(len(row) for row in rows)
    ids, mask = (np.zeros((len(rows), longest), np.int64) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def mixed_batch(call: Call, rows: Sequence[NDArray[Any]]) -> list[Batch]:
    """The form of a batch of mixed lengths that suits an engine best: one padded batch, or sub-batches of like lengths."""
    ordered = sorted(rows, key=len)
    parts = [padded_batch(ordered[i : i + SUB_BATCH]) for i in range(0, len(ordered), SUB_BATCH)]
    singles = [padded_batch([row]) for row in rows]
    forms = [[padded_batch(rows)], parts, singles]
    times = [min(timed(partial(call_all, call, form))(2)) for form in forms]
    return forms[int(np.argmin(times))]


def call_all(call: Call, batches: Sequence[Batch]) -> None:
    """One after the other."""
    for batch in batches:
        call(batch)


def measure(
    calls: dict[str, Call], batches: Mapping[str, Sequence[Batch]], rounds: int, progress: Any = None
) -> dict[str, Timing]:
    """Interleaved rounds of engines, each on its own form of the same input."""
    turns = {name: timed(partial(call_all, call, batches[name])) for name, call in calls.items()}
    against = AGAINST if AGAINST in turns else next(iter(turns))
    return compare(turns, against, rounds, progress=progress)


def bench(
    directory: Path,
    engines: Sequence[str] = (),
    cases: Sequence[tuple[int, int]] = CASES,
    threads: int = 2,
    rounds: int = 15,
    texts: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Times the encoder of a saved model on all engines.

    Args:
        directory: a Hugging Face directory.
        engines: names of ``ENGINES``; all that are installed without it.
        cases: (sequences, tokens).
        threads: of every engine.
        rounds: see ``compare``.
        texts: one a line: calibrate int8, and a batch of mixed lengths.
        console: for progress.

    Raises:
        EngineError: unknown engines, packages that are not installed, a model without a fused engine.

    """
    from prunus.progress import Bars

    unknown = [Problem("engine", name, f"be one of {', '.join(ENGINES)}") for name in engines if name not in ENGINES]
    absent = {name: missing_packages(name) for name in engines or ENGINES if name in ENGINES}
    if engines:
        unknown += [
            Problem("engine", name, "be installed", f"pip install {' '.join(missing)}")
            for name, missing in absent.items()
            if missing
        ]
    if unknown:
        raise EngineError(*unknown)
    names = [name for name, missing in absent.items() if not missing]
    torch.set_num_threads(threads)
    directory, name = model_directory(directory), name_of(directory)
    model = model_of(directory)
    shape = shape_of(model.config.to_dict())
    words, longest = shape.vocab_size, shape.positions - shape.first_position
    long = [
        Problem("case", f"{b}x{t}", f"have at most {longest} tokens", f"{b}x{longest}") for b, t in cases if t > longest
    ]
    if long:
        raise EngineError(*long)
    generator = np.random.default_rng(0)
    rows = real_rows(directory, texts, longest) if texts is not None else []
    calibration = [padded_batch([row]) for row in rows[:64]]
    calibration = calibration or [padded_batch([generator.integers(0, words, min(128, longest))]) for _ in range(8)]
    facts: dict[str, Any] = {
        "model": name,
        "threads": threads,
        "processor": processor(),
        "isa": choose().name,
        "rounds": rounds,
        "versions": versions(),
        "left out": {name: missing for name, missing in absent.items() if missing},
        "cases": {},
    }
    with Bars(console) as bars:
        calls: dict[str, Call] = {}
        for i, name in enumerate(names):
            bars("preparing engines", i, len(names))
            calls |= make_engines(Subject(model, calibration, threads), [name])
        bars("preparing engines", len(names), len(names))
        for sequences, tokens in cases:
            batch = padded_batch([generator.integers(0, words, tokens) for _ in range(sequences)])
            label = f"{sequences} x {tokens}"
            found = measure(calls, {name: [batch] for name in calls}, rounds, partial(bars, label))
            facts["cases"][label] = {name: timing.facts() for name, timing in found.items()}
        if len(rows) >= SUB_BATCH:
            drawn = [rows[i] for i in generator.permutation(len(rows))[:32]]
            forms = {name: mixed_batch(call, drawn) for name, call in calls.items()}
            label = f"{len(drawn)} texts, {min(map(len, drawn))} to {max(map(len, drawn))} tokens"
            found = measure(calls, forms, rounds, partial(bars, "mixed lengths"))
            facts["cases"][label] = {name: timing.facts() for name, timing in found.items()}
    return facts


def model_of(directory: Path) -> Any:
    """The body of a saved model in torch. Raises ``PrunusError`` where it cannot be read, or has no fused engine."""
    config = read_config(directory)
    shape_of(config.to_dict())  # told before the weights are read
    return load_checkpoint(AutoModel, directory, config)


def real_rows(directory: Path, texts: Path, longest: int) -> list[NDArray[Any]]:
    """Token ids of the lines of a file."""
    try:
        lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(Problem("texts", str(texts), f"be a file of UTF-8 text ({error})")) from None
    tokenizer = AutoTokenizer.from_pretrained(directory)
    limit = min(int(tokenizer.model_max_length), longest)
    return [np.array(tokenizer(line, truncation=True, max_length=limit)["input_ids"]) for line in lines[:2000]]
