"""What only a GPU can show: the CUDA path works, and whole SQuAD in minutes.

    python benchmarks/gpu.py --data SQUAD-DIR                          # all of it, for a session of ten minutes
    python benchmarks/gpu.py --data SQUAD-DIR --device cpu --rows 64   # the same, small, without a GPU

    smoke    masks, locks, teachers, contrastive banks and learned ranges on the device; masks equal those of the CPU
    dense    MiniLM on all of SQuAD v1.1, bfloat16: the teacher, kept for the next part
    4x1      80 % of the encoder's weights zero in blocks of 4 x 1, taught by it

Each part's result is written as soon as it is there: a machine that goes away takes nothing with it but the part it was in.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import prunus
from headers import header
from prunus import Distillation, Masker, Pruning, PrunusTrainer, Schedule, Span
from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots
from prunus.distillation.hidden import Inside
from prunus.progress import quiet
from prunus.quantization import Quantization, quantize, to_float
from prunus.recipe import load_recipe
from prunus.training.run import run

RESULTS = Path(__file__).with_name("results")
GRADUAL = Schedule("linear", Span(1), end=Span(5), every=Span(1))
CRITERIA = ("magnitude", "snip_momentum", "movement", "wanda", "platon", "random")
SQUAD = ["train.batch_size=64", "train.eval_batch_size=256", "train.checkpoint_every=null"]


def model(seed: int = 0, width: int = 64) -> BertForSequenceClassification:
    """A small random classifier without dropout."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, **sizes, **none))


def rows(count: int = 64) -> list[dict[str, Any]]:
    """Random rows of one length."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (count, 16), generator=draw).tolist()
    labels = torch.randint(3, (count,), generator=draw).tolist()
    return [{"input_ids": i, "attention_mask": [1] * 16, "labels": y} for i, y in zip(ids, labels, strict=True)]


def arguments(place: str, device: str, **more: Any) -> TrainingArguments:
    """Eight quiet steps."""
    quiet_ = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    return TrainingArguments(
        output_dir=place, max_steps=8, per_device_train_batch_size=8, use_cpu=device == "cpu", **quiet_, **more
    )


def masks_on(device: str, criterion: str) -> dict[str, torch.Tensor]:
    """Masks of five updates, by a model that moves to the device after the masker was made."""
    one = model()
    masker = Masker(one, Pruning(0.5, "4x1", criterion, GRADUAL), 6)
    one.to(device)
    data = {key: torch.tensor([row[key] for row in rows(8)], device=device) for key in rows(1)[0]}
    optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
    for _ in range(6):
        one(**data).loss.backward()
        masker.observe(one)
        optimizer.step()
        masker.step(one)
        optimizer.zero_grad()
    masker.finish(one)
    return {name: mask.cpu() for name, mask in masker.masks.items()}


def agreement(device: str, criterion: str) -> float:
    """The share of mask bits that are those of the CPU; arithmetic of another device may turn a few that nearly tie."""
    here, there = masks_on("cpu", criterion), masks_on(device, criterion)
    same = sum(int((mask == there[name]).sum()) for name, mask in here.items())
    return same / sum(mask.numel() for mask in here.values())


def locked(place: str, device: str, precision: dict[str, bool]) -> float:
    """Lock first, then the Trainer moves the model: the share of zeros that stayed."""
    one = model()
    Masker(one, Pruning(0.5, "4x1", "magnitude", Schedule("one_shot", Span(0))), 1)
    zeros = {
        name: value.detach().cpu() == 0
        for name, value in one.named_parameters()
        if "encoder" in name and value.dim() == 2
    }
    lock = prunus.lock(one, pattern="4x1")
    Trainer(one, arguments(place, device, **precision), train_dataset=rows()).train()
    facts = lock.remove_pruning()
    same = all(bool((one.get_parameter(name).detach().cpu() == 0)[zero].all()) for name, zero in zeros.items())
    return sum(fact.zeros for fact in facts) / sum(fact.weights for fact in facts) if same else 0.0


def taught(place: str, device: str, choice: Distillation, teacher: Any, ranges: bool, **precision: bool) -> float:
    """A training with a teacher, in 8 bits where ``ranges``: the sparsity that was counted."""
    one = model()
    if ranges:
        batch = {key: torch.tensor([row[key] for row in rows(8)]) for key in ("input_ids", "attention_mask")}
        quantize(one, Quantization(), [batch])
    rule = Pruning(0.5, "4x1", "snip_momentum", GRADUAL)
    args = arguments(place, device, **precision)
    trainer = PrunusTrainer(one, args, train_dataset=rows(), pruning=rule, teacher=teacher, distillation=choice)
    trainer.train()
    to_float(one)
    assert trainer.prune_callback is not None
    facts = trainer.prune_callback.facts
    return sum(fact.zeros for fact in facts) / sum(fact.weights for fact in facts)


def smoke(device: str) -> dict[str, Any]:
    """Every check by name, with its figure or its error."""
    contrast = Contrastive(prc=Contrast(0.1), snc=Snapshots(0.1), fic=Contrast(0.1, 0.1), negatives=16, bank="device")
    inside = Distillation(hidden=Inside(1.0, "uniform"), attention=Inside(1.0))
    with TemporaryDirectory() as place:
        checks: dict[str, Callable[[], float]] = {
            **{f"masks as on the CPU, {name}": lambda name=name: agreement(device, name) for name in CRITERIA},
            "lock, then Trainer moves": lambda: locked(place, device, {}),
            "lock, bf16": lambda: locked(place, device, {"bf16": True}),
            "teacher, projectors": lambda: taught(place, device, inside, model(1, 128), False),
            "teacher, 8 bits": lambda: taught(place, device, inside, model(1, 128), True),
            "contrastive banks": lambda: taught(place, device, Distillation(contrast=contrast), model(1), False),
            "bf16": lambda: taught(place, device, Distillation(), model(1), False, bf16=True),
        }
        if device == "cuda":
            checks["fp16"] = lambda: taught(place, device, Distillation(), model(1), False, fp16=True)
        found: dict[str, Any] = {}
        for name, check in checks.items():
            try:
                found[name] = check()
            except Exception as error:  # the next check says more than a traceback
                found[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {found[name]}", flush=True)
    return found


def squad(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row on SQuAD: metrics, seconds, sparsity."""
    settings = [*SQUAD, f"train.epochs={options.epochs}", f"dense.epochs={options.epochs}"]
    settings += ["train.precision=bf16"] if options.device == "cuda" else []
    settings += ["prune=[]", "distill=null"] if row == "dense" else []
    if options.rows is not None:
        settings += [f"task.max_train_samples={options.rows}", f"task.max_validation_samples={options.rows}"]
    recipe = load_recipe("squad-4x1-80", settings, {"task.data": options.data})
    with TemporaryDirectory() as place:
        facts = run(recipe, Path(place) / "run", console=Console(), overwrite=True)
    column = facts.sparse or facts.dense
    assert column is not None
    return {
        "metrics": column.metrics,
        "sparsity": column.sparsity,
        "seconds": column.seconds,
        "train_examples": facts.task.train_examples,
        "settings": settings,
    }


def main() -> None:
    """Runs the parts and writes each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--part", nargs="+", choices=("smoke", "dense", "4x1"), default=["smoke", "dense", "4x1"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, help="questions of each split; all of them without it")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    for part in options.part:
        began = perf_counter()
        result = smoke(options.device) if part == "smoke" else squad(part, options)
        command = f"python benchmarks/gpu.py --data DIR --device {options.device} --part {part}"
        command += f" --epochs {options.epochs}" + ("" if options.rows is None else f" --rows {options.rows}")
        more = {"device": name, "seconds": round(perf_counter() - began, 1), "result": result}
        path = options.results / f"gpu-{part}-{options.device}.json"
        path.write_text(json.dumps(header(command, **more), indent=1) + "\n", encoding="utf-8")
        print(f"{path.name}: {more['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
