"""One sparse language model for every task, beside models that are pruned for each task: both at the same fine-tuning budget.

    prunus run pruneofa-laptop-teacher --train-file wiki.txt.gz SETTINGS      # once; then pruneofa-laptop-1x4-80 and -85
    python benchmarks/once.py --models runs --glue DIR --squad DIR --seeds 1 2

Rows of the table, each for five tasks. All learn from the same fine-tuned dense model, which starts from the same language
model.

    dense             fine-tuned alone, 3 epochs (the teacher of the others)
    direct-4x1-80     the language model, pruned while it is fine-tuned (as the shipped task recipes: SNIP momentum, global)
    direct-85         the same, weight by weight, 85 %
    once-4x1-80       the sparse language model, fine-tuned with its zeros locked
    once-85           the same, weight by weight, 85 %
    once-4x1-80-int8  once-4x1-80, in 8 bits at the same time
    dense-long        ``dense``, trained on as long as the sparse ones, with its teacher and no mask
    after-4x1-80      ``dense``, pruned while it is trained on: the fine-tuning of the dense model counts for it, too
    after-85          the same, weight by weight, 85 %

Results go to ``benchmarks/results/once.json`` after each row; those that are there are not run again.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from headers import header
from prunus.progress import quiet
from prunus.recipe import load_recipe
from prunus.report.facts import read_facts
from prunus.training.run import run

HERE = Path(__file__).parent
SHARED = ["train.precision=bf16", "train.freeze=[embeddings]", "train.checkpoint_every=null"]
DIRECT = [
    "prune.lock=false",
    "prune.criterion=snip_momentum",
    "prune.schedule={kind: exponential, start: 6%, cooldown: 50%, every: 1%}",
    "prune.allocation={scope: global, max_per_tensor: 0.98}",
]
TEACHER = "pruneofa-laptop-teacher"
BLOCKS, SINGLES = ["prune.sparsity=0.8"], ["prune.sparsity=0.85", "prune.pattern=unstructured"]
BEFORE, AFTER = ["model.start=pretrained"], ["model.start=dense"]
ROWS = {
    "direct-4x1-80": (TEACHER, [*DIRECT, *BLOCKS, *BEFORE]),
    "once-4x1-80": ("pruneofa-laptop-1x4-80", BLOCKS),
    "direct-85": (TEACHER, [*DIRECT, *SINGLES, *BEFORE]),
    "once-85": ("pruneofa-laptop-85", SINGLES),
    "dense-long": (TEACHER, ["prune=[]", *AFTER]),
    "after-4x1-80": (TEACHER, [*DIRECT, *BLOCKS, *AFTER]),
    "after-85": (TEACHER, [*DIRECT, *SINGLES, *AFTER]),
    "once-4x1-80-int8": ("pruneofa-laptop-1x4-80", [*BLOCKS, "quantize={}"]),
}
DENSE_FROM = "direct-4x1-80"  # the row whose run also scores the dense model
TASKS = {
    "sst2": ["task.max_train_samples=3000", "task.max_length=64"],
    "mrpc": ["task.max_train_samples=1500"],
    "cola": ["task.max_train_samples=3000", "task.max_length=64"],
    "stsb": ["task.max_train_samples=2000", "train.dropout=0.0"],
    "squad": [
        "task.max_train_samples=1000",
        "task.max_validation_samples=600",
        "task.max_length=192",
        "task.doc_stride=64",
        "train.batch_size=16",
        "train.epochs=2",
    ],
}


def settings_of(task: str, row: str, seed: int, threads: int = 2) -> list[str]:
    """What is set over ``pruneofa-laptop-task``."""
    own = [
        f"task.name={task}",
        f"train.seed={seed}",
        f"dense.seed={seed}",
        f"train.threads={threads}",
        "train.epochs=3",
    ]
    return [*own, *SHARED, *TASKS[task], *ROWS[row][1], f"evaluate_dense={str(row == DENSE_FROM).lower()}"]


def measured(task: str, row: str, seed: int, models: Path, data: str, threads: int) -> list[dict[str, Any]]:
    """The facts of one run; that of ``DENSE_FROM`` also has the dense model's."""
    settings = settings_of(task, row, seed, threads)
    flags: dict[str, Any] = {"task.data": data, "model.name": str(models / ROWS[row][0]), "model.dense": None}
    if row.startswith("once"):
        flags["model.dense"] = str(models / TEACHER)
    recipe = load_recipe("pruneofa-laptop-task", settings, flags)
    with TemporaryDirectory() as place:
        facts = run(recipe, Path(place) / "run", command="", console=Console(), overwrite=True)
    common = {"task": task, "seed": seed, "settings": settings, "notes": facts.task.notes}
    common |= {name: getattr(facts.task, name) for name in ("train_examples", "validation_examples")}
    columns = {row: facts.sparse if recipe.prune else facts.dense}
    if row == DENSE_FROM:
        columns["dense"] = facts.dense
    return [
        {"row": name, **{key: getattr(column, key) for key in ("metrics", "sparsity", "seconds")}, **common}
        for name, column in columns.items()
    ]


def language_models(models: Path) -> dict[str, Any]:
    """What the language models were trained on, how long, and what they know."""
    found = {}
    for name in ("teacher", "1x4-80", "85"):
        facts = read_facts(models / f"pruneofa-laptop-{name}")
        column = facts.dense if name == "teacher" else facts.sparse
        found[name] = {
            "metrics": column.metrics,
            "sparsity": column.sparsity,
            "seconds": column.seconds,
            "steps": facts.history.loss[-1]["step"],
            "train": facts.recipe["train"],
            "task": facts.recipe["task"] | {"train": "TEXT"},
        }
    return found


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--squad", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rows", nargs="+", default=[row for row in ROWS if not row.endswith("int8")], choices=ROWS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "once.json")
    options = parser.parse_args()
    quiet()
    held = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else {"rows": []}
    for seed in options.seeds:
        for task in options.tasks:
            for row in options.rows:
                if any((r["row"], r["task"], r["seed"]) == (row, task, seed) for r in held["rows"]):
                    continue
                data = options.squad if task == "squad" else options.glue
                held["rows"] += measured(task, row, seed, options.models, data, options.threads)
                held |= {
                    **header(
                        "python benchmarks/once.py --models runs --glue DIR --squad DIR --seeds "
                        + " ".join(str(each) for each in options.seeds),
                        threads=options.threads,
                    ),
                    "language_models": language_models(options.models),
                }
                options.results.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
                print(task, row, seed, [found["metrics"] for found in held["rows"][-2:]])


if __name__ == "__main__":
    main()
