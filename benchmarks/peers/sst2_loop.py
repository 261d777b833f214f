"""Intel Neural Compressor 2.6 and prunus, side by side: one plain training loop, two pruners.

    python benchmarks/peers/sst2_loop.py --engine prunus --dense DIR --data DIR --seed 1 --out a.json
    INC_PYTHON benchmarks/peers/sst2_loop.py --engine inc --dense DIR --data DIR --seed 1 --out b.json

``--dense`` is the fine-tuned dense model that both start from and learn from (the output of ``accuracy.py --row dense
--keep DIR``). Batches, order, learning rates, distillation, schedule and evaluation are this file's, the same for both;
only the masks differ. INC runs in an environment of its own (its pins exclude today's transformers):

    pip install torch==2.13.0 neural-compressor==2.6 "setuptools<81" six "transformers==4.57.6" accelerate
"""

import argparse
import csv
import json
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROWS, EPOCHS, BATCH, RATE, WARMUP, DECAY, LENGTH = 16_000, 3, 32, 1.5e-4, 0.06, 0.01, 64
TARGET, TEMPERATURE = 0.8, 2.0


def read(path: Path) -> list[tuple[str, int]]:
    """Sentence and label of each row of an SST-2 file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["sentence"], int(row["label"])) for row in rows]


def examples(data: Path, tokenizer: Any, count: int) -> tuple[list[dict], list[dict]]:
    """Token ids and labels: a seeded subset of the training sentences, and the whole dev set."""
    found = read(data / "train.tsv")
    chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(len(found))[:count])

    def encode(rows: list[tuple[str, int]]) -> list[dict]:
        ids = tokenizer([text for text, _ in rows], truncation=True, max_length=LENGTH)["input_ids"]
        return [{"input_ids": row, "label": label} for row, (_, label) in zip(ids, rows, strict=True)]

    return encode([found[i] for i in chosen]), encode(read(data / "dev.tsv"))


def collate(rows: list[dict], pad: int) -> dict[str, torch.Tensor]:
    """Pads to the longest row."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[index, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["label"] for row in rows])}


def batches(rows: list[dict], generator: torch.Generator) -> list[list[dict]]:
    """An epoch of batches of rows of similar length, in random order."""
    order = torch.randperm(len(rows), generator=generator).tolist()
    chunks = [order[i : i + 50 * BATCH] for i in range(0, len(order), 50 * BATCH)]
    order = [i for chunk in chunks for i in sorted(chunk, key=lambda j: -len(rows[j]["input_ids"]))]
    cut = [[rows[j] for j in order[i : i + BATCH]] for i in range(0, len(order), BATCH)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


class Inc:
    """INC's pruning object, driven as its callbacks ask."""

    def __init__(self, model: torch.nn.Module, start: int, end: int, every: int) -> None:
        from neural_compressor.compression.pruner import PRUNINGS, process_config
        from neural_compressor.training import WeightPruningConfig

        local = {"start_step": start, "end_step": end, "pruning_frequency": every, "pattern": "4x1"}
        local |= {"pruning_type": "snip_momentum", "target_sparsity": TARGET, "pruning_scope": "global"}
        local |= {"sparsity_decay_type": "exp", "max_sparsity_ratio_per_op": 0.98, "op_names": []}
        local |= {"excluded_op_names": ["pooler"], "pruning_op_types": ["Linear"]}
        config = WeightPruningConfig([local])
        self.pruning = PRUNINGS["basic_pruning"](process_config(config), model)
        self.pruning.on_train_begin()

    def before_forward(self) -> None:
        self.pruning.on_step_begin(0)

    def before_step(self) -> None:
        self.pruning.on_before_optimizer_step()

    def after_step(self) -> None:
        self.pruning.on_after_optimizer_step()


class Prunus:
    """The same three moments with prunus."""

    def __init__(self, model: torch.nn.Module, start: int, end: int, every: int, total: int) -> None:
        from prunus import Masker, Pruning, Schedule, Span

        schedule = Schedule("exponential", Span(start), Span(end), Span(every))
        self.model = model
        self.masker = Masker(model, Pruning(TARGET, "4x1", "snip_momentum", schedule), total)

    def before_forward(self) -> None:
        pass

    def before_step(self) -> None:
        self.masker.observe(self.model)

    def after_step(self) -> None:
        self.masker.step(self.model)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; embeddings are frozen, biases and norms do not decay."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
        (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE)


def taught_loss(
    model: torch.nn.Module, teacher: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's logits, and T^2 KL to the teacher's, both computed under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        student = model(**batch).logits.float()
        with torch.no_grad():
            taught = teacher(**batch).logits.float()
    loss = TEMPERATURE**2 * functional.kl_div(
        functional.log_softmax(student / TEMPERATURE, -1),
        functional.log_softmax(taught / TEMPERATURE, -1),
        reduction="batchmean",
        log_target=True,
    )
    return student, loss


@torch.inference_mode()
def right_answers(model: torch.nn.Module, rows: list[dict], pad: int) -> int:
    """How many rows the model labels right, in float32."""
    model.eval()
    right = 0
    for index in range(0, len(rows), 64):
        batch = collate(rows[index : index + 64], pad)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right


def options_of(doc: str | None, peer: str, rows: int, epochs: int) -> argparse.Namespace:
    """The command line of each of these loops; threads and seeds are set."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=(peer, "prunus"), required=True)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def linear(step: int, total: int) -> float:
    """Up over the warm-up, then down to 0."""
    warm = int(WARMUP * total)
    return step / warm if step < warm else (total - step) / (total - warm)


def main() -> None:
    """Trains with one engine and writes its result."""
    options = options_of(__doc__, "inc", ROWS, EPOCHS)
    tokenizer = AutoTokenizer.from_pretrained(options.dense)
    train, dev = examples(options.data, tokenizer, options.rows)
    model = AutoModelForSequenceClassification.from_pretrained(options.dense).train()
    teacher = AutoModelForSequenceClassification.from_pretrained(options.dense).eval().requires_grad_(False)
    optimizer = optimizer_of(model)
    per_epoch = -(-len(train) // BATCH)
    total = options.epochs * per_epoch
    start, end, every = int(0.06 * total), total - int(0.5 * total), max(1, int(0.005 * total))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear(step, total))
    engine = Inc(model, start, end, every) if options.engine == "inc" else Prunus(model, start, end, every, total)
    generator = torch.Generator().manual_seed(options.seed)
    began, step = time.perf_counter(), 0
    for _ in range(options.epochs):
        for rows in batches(train, generator):
            batch = collate(rows, tokenizer.pad_token_id)
            del batch["labels"]  # the teacher replaces them
            engine.before_forward()
            _, loss = taught_loss(model, teacher, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            engine.before_step()
            optimizer.step()
            engine.after_step()
            rates.step()
            optimizer.zero_grad()
            step += 1
            if step % 100 == 0:
                print(f"{options.engine}: step {step} of {total}, loss {loss.item():.4f}", flush=True)
    seconds = time.perf_counter() - began
    right = right_answers(model, dev, tokenizer.pad_token_id)
    weights = {n: p for n, p in model.named_parameters() if ".encoder." in n and p.dim() == 2}
    zeros = sum(int((p == 0).sum()) for p in weights.values())
    ratios = [float((p == 0).float().mean()) for p in weights.values()]
    packages = ("torch", "transformers", "neural-compressor" if options.engine == "inc" else "prunus")
    result = {
        "engine": options.engine,
        "versions": {name: version(name) for name in packages},
        "accuracy": right / len(dev),
        "sparsity": zeros / sum(p.numel() for p in weights.values()),
        "tensors": {"count": len(weights), "lowest": min(ratios), "highest": max(ratios)},
        "training_seconds": seconds,
        "seed": options.seed,
        "rows": [len(train), len(dev)],
        "settings": {
            "epochs": options.epochs,
            "batch": BATCH,
            "rate": RATE,
            "start": start,
            "end": end,
            "every": every,
        },
        "notes": f"{len(train):,} of 67,349 sentences (seed 0), embeddings frozen, bfloat16 autocast, length 64, whole dev set",
        "command": f"benchmarks/peers/sst2_loop.py --engine {options.engine} --seed {options.seed}",
        "threads": options.threads,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
