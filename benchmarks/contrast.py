"""What contrastive terms add at equal budget, and what they cost.

    python benchmarks/contrast.py --part ablation --glue DIR --squad DIR --seeds 1 2 3
    python benchmarks/contrast.py --part cost --glue DIR [--rounds 7]

Ablation: one sparse training of MiniLM (4x1, SNIP momentum, from the fine-tuned dense model of the same seed, equal epochs),
seven losses, two sparsities; part of the data.

    CE           the labels alone                        KD           0.1 of that and 0.9 of the teacher's logits
    PrC FiC SnC  KD and 0.1 of the unsupervised term     all          KD and the three of them
                                                         both         all and 0.1 of each supervised term; needs labels: GLUE

Rows go to ``benchmarks/results/contrast.json`` as they are done; those that are there are not run again.

Cost: a training step on 32 sentences of SST-2 with KD, and with all three terms beside it, taking turns; SnC with eight
snapshots. And the memory of the banks, and the time of a pass that encodes the examples. Goes to ``contrast_cost.json``.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from headers import header
from prunus import Distillation, Pruning, PrunusTrainer, Schedule, Span
from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots
from prunus.models.loading import MINILM, model_source
from prunus.progress import quiet
from prunus.recipe import load_recipe
from prunus.tasks import TaskSpec, load_task
from prunus.tasks.collate import Collate
from prunus.training.run import run

HERE = Path(__file__).parent
ROWS, THREADS, SNAPSHOTS = 32, 2, 8
KD = "teacher: dense, weight: 0.9, hard_weight: 0.1, temperature: 2"
TERMS = {"prc": "prc: {weight: 0.1}", "fic": "fic: {weight: 0.1}", "snc": "snc: {weight: 0.1, every: 0.1}"}
BY_LABEL = {name: term.replace("weight: 0.1", "weight: 0.1, supervised: 0.1") for name, term in TERMS.items()}


def beside_teacher(*terms: str) -> list[str]:
    """The setting that adds these terms to KD."""
    return [f"distill={{{KD}, contrast: {{{', '.join(terms)}}}}}"]


LOSSES = {
    "CE": ["distill=null", "model.start=dense"],
    "KD": [f"distill={{{KD}}}"],
    **{name: beside_teacher(term) for name, term in TERMS.items()},
    "all": beside_teacher(*TERMS.values()),
    "both": beside_teacher(*BY_LABEL.values()),
}
TASKS = {
    "sst2": ["task.max_train_samples=2000", "task.max_length=64", "train.epochs=3"],
    "mrpc": ["task.max_train_samples=1000", "train.epochs=3", "dense.epochs=8", "prune.schedule.every=2%"],
    "squad": [
        "task.max_train_samples=600",
        "task.max_validation_samples=500",
        "task.max_length=192",
        "task.doc_stride=64",
        "train.batch_size=16",
        "train.epochs=2",
        "dense.epochs=6",
    ],
}
SHARED = [
    "dense.epochs=3",
    "train.precision=bf16",
    "train.freeze=[embeddings]",
    "train.checkpoint_every=null",
    "prune.schedule={kind: exponential, start: 6%, cooldown: 50%, every: 1%}",
]


def settings_of(task: str, loss: str, sparsity: float, seed: int, threads: int) -> list[str]:
    """What is set over ``cap-4x1-80``."""
    own = [f"task.name={task}", f"prune.sparsity={sparsity}", f"train.seed={seed}", f"dense.seed={seed}"]
    own.append(f"train.threads={threads}")
    return [*own, *SHARED, *TASKS[task], *LOSSES[loss], f"evaluate_dense={str(loss == 'CE').lower()}"]


def ablation(options: argparse.Namespace) -> None:
    """Runs what is missing, a row a loss."""
    path = options.results
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    done = {(row["task"], row["loss"], row["sparsity_asked"], row["seed"]) for row in held["rows"]}
    cases = [(s, t, p, x) for s in options.seeds for t in options.tasks for p in options.sparsities for x in LOSSES]
    for seed, task, sparsity, loss in cases:
        if (task, loss, sparsity, seed) in done or (task, loss) == ("squad", "both"):
            continue
        settings = settings_of(task, loss, sparsity, seed, options.threads)
        data = options.squad if task == "squad" else options.glue
        recipe = load_recipe("cap-4x1-80", settings, {"task.data": data})
        with TemporaryDirectory() as place:
            facts = run(recipe, Path(place) / "run", command="", console=Console(), overwrite=True)
        held["rows"].append(
            {
                "task": task,
                "loss": loss,
                "sparsity_asked": sparsity,
                "seed": seed,
                "metrics": facts.sparse.metrics,
                "dense": facts.dense.metrics,
                "sparsity": facts.sparse.sparsity,
                "seconds": facts.sparse.seconds,
                "banks": facts.banks,
                "settings": settings,
                "train_examples": facts.task.train_examples,
                "validation_examples": facts.task.validation_examples,
            }
        )
        seeds = " ".join(str(each) for each in options.seeds)
        held |= {
            **header(
                f"python benchmarks/contrast.py --part ablation --glue DIR --squad DIR --seeds {seeds}",
                threads=options.threads,
            ),
        }
        path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        print(seed, task, sparsity, loss, held["rows"][-1]["metrics"], flush=True)


class Arm:
    """One trainer, its banks filled, and one step of its training."""

    def __init__(self, contrast: Contrastive, rows: Any, collate: Collate, place: Path) -> None:
        torch.manual_seed(0)
        student, teacher = (AutoModelForSequenceClassification.from_pretrained(model_source(MINILM)) for _ in range(2))
        for name, parameter in student.named_parameters():
            parameter.requires_grad_("embeddings" not in name)
        schedule = Schedule("constant", Span(0), Span(9_000), Span(10))
        args = TrainingArguments(
            output_dir=str(place),
            max_steps=10_000,
            use_cpu=True,
            bf16=True,
            report_to="none",
            disable_tqdm=True,
            per_device_eval_batch_size=64,
        )
        self.trainer = PrunusTrainer(
            student,
            args,
            train_dataset=rows,
            data_collator=collate,
            teacher=teacher,
            distillation=Distillation(0.9, 0.1, contrast=contrast),
            pruning=Pruning(0.8, "4x1", "magnitude", schedule),
        )
        self.optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4)
        self.model = self.trainer.accelerator.prepare_model(student).train()
        self.passes: list[float] = []
        contrasting = self.trainer.contrasting
        if contrasting is not None:
            state, control = self.trainer.state, self.trainer.control
            began = time.perf_counter()
            contrasting.on_train_begin(args, state, control, model=student)
            self.passes = [(time.perf_counter() - began) / 2]
            for i in range(SNAPSHOTS):
                contrasting.fill("snc", f"snc-{i}", student)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward, backward, optimizer."""
        loss: Any = self.trainer.compute_loss(self.model, dict(batch))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def cost(options: argparse.Namespace) -> None:
    """Times the two steps in turns."""
    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(model_source(MINILM))
    collate = Collate(tokenizer)
    task = load_task(TaskSpec(name="sst2", data=options.glue, max_train_samples=8000, max_length=64))
    rows = task.features("train", tokenizer)
    batches = [collate([{**rows[32 * i + j], "row_id": 32 * i + j} for j in range(ROWS)]) for i in range(10)]
    weights = Contrastive(Contrast(0.1, 0.1), Snapshots(0.1, 0.1), Contrast(0.1, 0.1))
    with TemporaryDirectory() as place:
        arms = {
            name: Arm(choice, rows, collate, Path(place) / name)
            for name, choice in (("KD", Contrastive()), ("KD and all terms", weights))
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(options.rounds + 1):
            for name, arm in arms.items():
                began = time.perf_counter()
                for batch in batches:
                    arm.step(batch)
                times[name].append((time.perf_counter() - began) / len(batches))
        contrasting = arms["KD and all terms"].trainer.contrasting
        facts = {} if contrasting is None else contrasting.facts
        passes = arms["KD and all terms"].passes[0]
    seconds = {name: median(each[1:]) for name, each in times.items()}  # the first round warms up
    parameters = sum(p.numel() for p in arms["KD"].model.parameters())
    result = {
        **header(f"python benchmarks/contrast.py --part cost --glue DIR --rounds {options.rounds}", threads=THREADS),
        "batch": ROWS,
        "examples": len(rows),
        "snapshots": SNAPSHOTS,
        "step_seconds": seconds,
        "ratio": seconds["KD and all terms"] / seconds["KD"],
        "bank_bytes": facts["bytes"],
        "bytes of the training without them": parameters * 4 * 5,  # weights, gradients, two moments, the teacher
        "encoding_pass_seconds": passes,
        "examples_per_second": len(rows) / passes,
    }
    (HERE / "results" / "contrast_cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("ablation", "cost"), required=True)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--squad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "contrast.json")
    options = parser.parse_args()
    quiet()
    if options.part == "cost":
        cost(options)
    else:
        ablation(options)


if __name__ == "__main__":
    main()
