"""Accuracy of the shipped recipes: one row, one seed, one JSON file.

    python benchmarks/accuracy.py --task sst2 --row 4x1-80 --seed 1 --data DIR
    python benchmarks/accuracy.py --task squad --row dense --seed 1 --data DIR

``--scale cpu`` (the default) is what two CPU cores manage: a fixed, seeded subset of the training data, frozen embeddings,
bfloat16 autocast in training; evaluation is in float32 on the whole dev set. ``--scale whole`` is the same on all training
data, in fewer epochs than the recipe has. ``--scale full`` is the recipe as shipped.
Every file says which it was, in ``settings`` and in ``notes``. A dense row with the sparse rows' budget is ``dense-long``:
the dense model, trained on like the sparse ones, with the same teacher and no mask.
"""

import argparse
import json
import platform
import shlex
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from prunus._version import __version__
from prunus.environment import environment
from prunus.progress import Bars, quiet
from prunus.recipe import Recipe, load_recipe
from prunus.report.facts import ModelResults, RunFacts
from prunus.tasks.collate import Collate
from prunus.training.dense import dense_model
from prunus.training.inputs import input_digests
from prunus.training.prepare import prepare
from prunus.training.run import run, score_model
from prunus.training.run_facts import counted, recipe_facts, task_facts

CPU = {
    "sst2": [
        "task.max_train_samples=16000",
        "task.max_length=64",
        "train.freeze=[embeddings]",
        "train.precision=bf16",
        "train.threads=2",
    ],
    "squad": [
        "task.max_train_samples=3000",
        "task.max_length=256",
        "train.freeze=[embeddings]",
        "train.precision=bf16",
        "train.threads=2",
    ],
}
CPU_EPOCHS = {"sst2": {"dense": 2, "sparse": 3, "joint": 5}, "squad": {"dense": 3, "sparse": 3}}
WHOLE_EPOCHS = {"sst2": {"dense": 2, "sparse": 2, "joint": 3}, "squad": {"dense": 2, "sparse": 2}}
DENSE_SEED = 1  # one dense model teaches every sparse row
ROWS = {
    "dense": ("4x1-80", []),  # the teacher of the sparse rows, and what they start from
    "dense-long": ("4x1-80", ["prune=[]"]),
    "4x1-80": ("4x1-80", []),
    "2to4": ("4x1-80", ["prune.pattern=2:4", "prune.sparsity=0.5"]),
    "unstructured-80": ("4x1-80", ["prune.pattern=1x1"]),
    "int8-unstructured-80": ("int8-unstructured80", []),
    "joint-dense": ("int8-unstructured80", ["prune=[]", "quantize=null"]),
    "int8-dense": ("int8-unstructured80", ["prune=[]"]),
    "int8-4x1-80": ("int8-unstructured80", ["prune.pattern=4x1"]),
}
# The joint run keeps the proportions of its 17 epochs: 9 to full sparsity, 1 until masks freeze, cycles of 11 and 6.
JOINT = [
    "prune.schedule.end=53%",
    "prune.schedule.hold=6%",
    "prune.schedule.every=10",
    "train.best_after=53%",
    "train.evaluate_every=4%",
]


def settings_of(task: str, row: str, seed: int, scale: str) -> tuple[str, list[str]]:
    """The shipped recipe of a row, and what is set over it."""
    recipe, extra = ROWS[row]
    settings = [*extra, f"train.seed={seed}", "train.checkpoint_every=null", "evaluate_dense=false"]
    settings.append(f"dense.seed={seed if row == 'dense' else DENSE_SEED}")
    if scale != "full":
        epochs = CPU_EPOCHS[task] if scale == "cpu" else WHOLE_EPOCHS[task]
        joint = recipe == "int8-unstructured80"
        settings += [s for s in CPU[task] if scale == "cpu" or "max_train_samples" not in s]
        settings.append(f"train.epochs={epochs['joint' if joint else 'sparse']}")
        settings.append(f"dense.epochs={epochs['dense']}")
        if joint:
            settings += [s for s in JOINT if not row.endswith("-dense") or not s.startswith("prune")]
    return f"{task}-{recipe}", settings


def dense_facts(recipe: Recipe, console: Console) -> RunFacts:
    """Facts of the dense model alone: trained, or kept from an earlier row, and scored."""
    with Bars(console) as bars:
        prepared = prepare(recipe, bars)
        kept = dense_model(prepared, input_digests(prepared), Collate(prepared.tokenizer), bars, console.print)
        metrics = score_model(kept.model, prepared, bars, "evaluating")
    return RunFacts(
        __version__,
        recipe=recipe_facts(recipe),
        task=task_facts(prepared.task),
        environment=environment(recipe.train.threads),
        dense=counted(ModelResults(metrics, seconds=kept.seconds), kept.model, []),
    )


def main() -> None:
    """Runs one row and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=CPU, required=True)
    parser.add_argument("--row", choices=ROWS, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", required=True)
    parser.add_argument("--scale", choices=("cpu", "whole", "full"), default="cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--keep", type=Path, help="directory for the output of the run; a temporary one without it")
    options = parser.parse_args()
    quiet()
    name, settings = settings_of(options.task, options.row, options.seed, options.scale)
    recipe = load_recipe(name, settings, {"task.data": options.data})
    with TemporaryDirectory() as temporary:
        output = options.keep or Path(temporary) / "run"
        command = f"prunus run {name} --data DIR " + " ".join(f"--set {shlex.quote(s)}" for s in settings)
        if options.row == "dense":
            facts = dense_facts(recipe, Console())
        else:
            facts = run(recipe, output, command=command, console=Console(), overwrite=True)
    column = facts.dense if options.row == "dense" or not recipe.prune else facts.sparse
    result = {
        "task": options.task,
        "row": options.row,
        "seed": options.seed,
        "scale": options.scale,
        "metrics": column.metrics,
        "sparsity": column.sparsity,
        "sparsity_all": column.sparsity_all,
        "target_sparsity": facts.target_sparsity,
        "tensors": {
            "count": len(facts.tensors),
            "sparsity": [t["sparsity"] for t in facts.tensors],
        },
        "training_seconds": column.seconds,
        "dense_training_seconds": facts.dense.seconds if facts.dense is not None else None,
        "train_examples": facts.task.train_examples,
        "validation_examples": facts.task.validation_examples,
        "notes": facts.task.notes,
        "settings": settings,
        "command": command if options.row != "dense" else None,  # no command of its own: the teacher of the others
        "benchmark": f"python benchmarks/accuracy.py --task {options.task} --row {options.row} --seed {options.seed} "
        f"--scale {options.scale} --data DIR",
        "recipe": facts.recipe | {"task": facts.recipe["task"] | {"data": "DIR"}},
        "environment": facts.environment,
        "machine": platform.machine(),
        "date": date.today().isoformat(),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{options.task}-{options.row}-seed{options.seed}-{options.scale}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{path.name}: {result['metrics']}, sparsity {result['sparsity']:.4f}, {result['training_seconds']:.0f} s")


if __name__ == "__main__":
    main()
