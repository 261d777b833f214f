"""Half of the parameters, and half of the time: MiniLM with fewer heads and neurons, its metric, size and latency.

    python benchmarks/smaller.py --part train --keep DIR --glue DIR --squad DIR --seeds 1 2 [--threads 2]
    python benchmarks/smaller.py --part time --keep DIR [--rounds 15]           # when nothing else runs

``train``: the recipes ``sst2-small-50`` and ``squad-small-50`` on part of the data, once with ``--params 0.5`` and once with
``--latency 0.5`` (which times models on this machine), then ``prunus compact`` and the metric of what it wrote, loaded again.
``dense`` is the fine-tuned model that both start and learn from; ``dense-long`` is it, trained on as long, with the same
teacher and nothing removed.

``time``: the compacted models that were kept beside the dense one, float32, on every runtime, all in the same rounds; ratios
are to the dense model on the same runtime.

Results go to ``benchmarks/results/smaller.json`` after each row; those that are there are not run again.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModel

from headers import header
from prunus.bench.command import padded_batch
from prunus.bench.engines import Subject, make_engines
from prunus.bench.rounds import compare, timed
from prunus.export.smaller import compact_directory
from prunus.progress import quiet
from prunus.recipe import load_recipe
from prunus.training.rescore import rescore
from prunus.training.run import run

HERE = Path(__file__).parent
THREADS = 2
ENGINES = ("torch float32", "onnxruntime float32", "openvino float32", "prunus float32")
CASES = ((1, 128), (8, 128), (1, 32))
SHARED = [
    "train.precision=bf16",
    "train.freeze=[embeddings]",
    "train.checkpoint_every=null",
]
TASKS = {
    "sst2": ["task.max_train_samples=6000", "task.max_length=64", "train.epochs=4"],
    "squad": [
        "task.max_train_samples=2000",
        "task.max_validation_samples=1000",
        "task.max_length=192",
        "task.doc_stride=64",
        "train.batch_size=16",
        "train.epochs=3",
    ],
}
ROWS = {
    "params 0.5": ["budget={params: 0.5}"],
    "latency 0.5": ["budget={latency: 0.5}"],
    "dense-long": ["budget=null", "prune=[]", "model.start=dense"],
}
DENSE_FROM = "params 0.5"  # the row whose run also scores the dense model


def trained(options: argparse.Namespace, task: str, row: str, seed: int) -> list[dict[str, Any]]:
    """The rows of one run."""
    data = options.squad if task == "squad" else options.glue
    own = [f"train.seed={seed}", f"dense.seed={seed}", f"evaluate_dense={str(row == DENSE_FROM).lower()}"]
    own.append(f"train.threads={options.threads}")
    settings = [*own, *SHARED, *TASKS[task], *ROWS[row]]
    recipe = load_recipe(f"{task}-small-50", settings, {"task.data": data})
    common = {"task": task, "seed": seed, "settings": settings}
    with TemporaryDirectory() as place:
        out, small = Path(place) / "run", Path(place) / "small"
        facts = run(recipe, out, command="", console=Console(), overwrite=True)
        common |= {name: getattr(facts.task, name) for name in ("train_examples", "validation_examples")}
        if row == "dense-long":
            return [{"row": row, "metrics": facts.dense.metrics, "seconds": facts.dense.seconds, **common}]
        counted = {key: value for key, value in compact_directory(out, small).items() if key != "layout"}
        again = rescore(small, {"data": data})
        found = [
            {
                "row": row,
                "metrics": facts.sparse.metrics,
                "metrics_compacted": again["metrics"],
                "sparsity": facts.sparse.sparsity,
                "seconds": facts.sparse.seconds,
                "compacted": counted,
                "budget": facts.budget or None,
                **common,
            }
        ]
        if row == DENSE_FROM:
            found.append({"row": "dense", "metrics": facts.dense.metrics, **common})
        shutil.copytree(small, options.keep / f"{task} {row}, seed {seed}", dirs_exist_ok=True)
        return found


def timings(options: argparse.Namespace) -> dict[str, Any]:
    """The dense model and the compacted ones on every runtime."""
    from prunus.models.loading import MINILM, model_source

    torch.set_num_threads(options.threads)
    places = {"dense": model_source(MINILM)}
    places |= {each.name: each for each in sorted(options.keep.iterdir()) if (each / "config.json").is_file()}
    generator = np.random.default_rng(0)
    calls = {}
    for name, place in places.items():
        model = AutoModel.from_pretrained(place).eval()
        example = padded_batch([generator.integers(1000, 30_000, 64)])
        engines = make_engines(Subject(model, [example], options.threads), ENGINES)
        calls |= {(name, engine): call for engine, call in engines.items()}
    found: dict[str, Any] = {}
    for batch, tokens in CASES:
        inputs = padded_batch([generator.integers(1000, 30_000, tokens) for _ in range(batch)])
        held: dict[str, Any] = {}
        for engine in ENGINES:
            turns = {name: timed(partial(calls[name, engine], inputs)) for name in places}
            compared = compare(turns, "dense", options.rounds, 0.1)
            held[engine] = {name: timing.facts() for name, timing in compared.items()}
        found[f"{batch}x{tokens}"] = held
        print(f"{batch}x{tokens}", {e: {n: t["ratio"] for n, t in one.items()} for e, one in held.items()}, flush=True)
    return found


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("train", "time"), required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--glue")
    parser.add_argument("--squad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument(
        "--threads", type=int, default=THREADS, help="of training, and of the layers that are timed for it"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "smaller.json")
    options = parser.parse_args()
    quiet()
    options.keep.mkdir(parents=True, exist_ok=True)
    held = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else {"rows": []}
    seeds = " ".join(str(each) for each in options.seeds)
    program = f"python benchmarks/smaller.py --keep DIR --threads {options.threads}"
    command = f"{program} --part train --glue DIR --squad DIR --seeds {seeds}"
    cases = [(seed, task, row) for seed in options.seeds for task in options.tasks for row in options.rows]
    if options.part == "time":
        held["timings"] = timings(options) | {
            "command": f"{program} --part time --rounds {options.rounds}",
            "threads": options.threads,
        }
        cases = []
    for seed, task, row in cases:
        if any((r["row"], r["task"], r["seed"]) == (row, task, seed) for r in held["rows"]):
            continue
        held["rows"] += trained(options, task, row, seed)
        held |= header(command, threads=options.threads)
        options.results.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        print(seed, task, row, [each["metrics"] for each in held["rows"][-2:]], flush=True)
    options.results.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
