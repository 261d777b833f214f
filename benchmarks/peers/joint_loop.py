"""NNCF 3.4 and prunus, side by side: pruning, quantization-aware training and distillation in one plain loop.

    python benchmarks/peers/joint_loop.py --engine prunus --dense DIR --data DIR --seed 1 --out a.json
    python benchmarks/peers/joint_loop.py --engine nncf   --dense DIR --data DIR --seed 1 --out b.json

``--dense`` is the fine-tuned dense model that both start from and learn from. Batches, order, learning rates, teacher, the ramp
of the sparsity and evaluation are this file's, the same for both. NNCF 3 has no polynomial schedule and no freeze: this loop
calls its ``update_pruning_ratio`` with prunus' ramp, and stops calling it when masks freeze. Its smoothing of activations is
off, because after pruning it distorts the norms that the threshold compares. Needs nncf>=3.4 beside prunus.
"""

import json
import sys
import time
from datetime import date
from importlib.metadata import version
from math import cos, pi
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
from sst2_loop import batches, collate, examples, options_of, right_answers, taught_loss

from prunus.environment import processor

ROWS, BATCH, RATE, SAMPLES = 16_000, 32, 1.5e-4, 300
TARGET, WEIGHT = 0.8, 0.95
END, FREEZE, FIRST_CYCLE, EVERY = 0.53, 0.59, 11 / 17, 10


class Nncf:
    """NNCF's masks and quantizers; the ramp is driven from here."""

    def __init__(self, model: torch.nn.Module, samples: list[dict], total: int) -> None:
        import nncf

        nncf.set_log_level(40)
        self.mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
        dense = nncf.IgnoredScope(patterns=[".*embeddings.*", ".*pooler.*", ".*classifier.*"])
        example = {key: value[:2] for key, value in samples[0].items()}
        model = nncf.prune(model, mode=self.mode, ratio=1e-6, ignored_scope=dense, examples_inputs=example)
        advanced = nncf.AdvancedQuantizationParameters(
            disable_bias_correction=True, smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1)
        )
        self.model = nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            advanced_parameters=advanced,
            fast_bias_correction=True,
        )

    def before_step(self) -> None:
        pass

    def after_step(self, step: int, sparsity: float | None) -> None:
        from nncf.torch.function_hook.pruning.magnitude.algo import update_pruning_ratio

        if sparsity is not None and sparsity > 0:
            update_pruning_ratio(self.model, self.mode, sparsity)

    def sparsity(self) -> float:
        from nncf.torch.function_hook.pruning.magnitude.algo import get_pruned_modules

        masks = [module.binary_mask for module in get_pruned_modules(self.model).values()]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


class Prunus:
    """The same with prunus."""

    def __init__(self, model: torch.nn.Module, samples: list[dict], total: int) -> None:
        from prunus import Allocation, Masker, Pruning, Schedule, Span
        from prunus.quantization import Quantization, quantize

        quantize(model, Quantization(), samples)
        end = int(END * total)
        schedule = Schedule("polynomial", Span(0), Span(end), Span(EVERY), hold=Span(int(FREEZE * total) - end))
        allocation = Allocation("global", "normed", 1.0)
        self.model = model
        pruning = Pruning(TARGET, "unstructured", "magnitude", schedule, allocation, revive=True)
        self.masker = Masker(model, pruning, total)

    def before_step(self) -> None:
        self.masker.observe(self.model)

    def after_step(self, step: int, sparsity: float | None) -> None:
        self.masker.step(self.model)

    def sparsity(self) -> float:
        facts = self.masker.measure(self.model)
        return sum(one.zeros for one in facts) / sum(one.weights for one in facts)


def ramp(step: int, total: int) -> float | None:
    """The sparsity due after ``step`` steps, where masks are updated then."""
    end, freeze = int(END * total), int(FREEZE * total)
    if step % EVERY or step > freeze:
        return None
    return TARGET * (1 - (1 - min(1.0, step / (end // EVERY * EVERY))) ** 3)


def rate(step: int, total: int) -> float:
    """Cosine over 11 parts of 17, then again over 6."""
    edge = int(FIRST_CYCLE * total)
    begin, end = (0, edge) if step < edge else (edge, total)
    return 0.5 * (1 + cos(pi * min(1.0, (step - begin) / max(1, end - begin))))


def main() -> None:
    """Trains with one engine and writes its result."""
    options = options_of(__doc__, "nncf", ROWS, 5)
    tokenizer = AutoTokenizer.from_pretrained(options.dense)
    train, dev = examples(options.data, tokenizer, options.rows)
    model = AutoModelForSequenceClassification.from_pretrained(options.dense, attn_implementation="eager").eval()
    teacher = AutoModelForSequenceClassification.from_pretrained(options.dense).eval().requires_grad_(False)
    picked = [train[i * len(train) // SAMPLES] for i in range(SAMPLES)]
    samples = [collate(picked[i : i + BATCH], tokenizer.pad_token_id) for i in range(0, SAMPLES, BATCH)]
    samples = [{key: value for key, value in batch.items() if key != "labels"} for batch in samples]
    per_epoch = -(-len(train) // BATCH)
    total = options.epochs * per_epoch
    engine = (Nncf if options.engine == "nncf" else Prunus)(model, samples, total)
    model = engine.model.train()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_("embeddings" not in name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(options.seed)
    began, step = time.perf_counter(), 0
    for _ in range(options.epochs):
        for rows in batches(train, generator):
            batch = collate(rows, tokenizer.pad_token_id)
            labels = batch.pop("labels")
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate(step, total)
            student, soft = taught_loss(model, teacher, batch)
            loss = WEIGHT * soft + (1 - WEIGHT) * functional.cross_entropy(student, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            engine.before_step()
            optimizer.step()
            step += 1
            engine.after_step(step, ramp(step, total))
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"{options.engine}: step {step} of {total}, loss {loss.item():.4f}", flush=True)
    seconds = time.perf_counter() - began
    right = right_answers(model, dev, tokenizer.pad_token_id)
    result = {
        "engine": options.engine,
        "versions": {name: version(name) for name in ("torch", "transformers", options.engine)},
        "accuracy": right / len(dev),
        "sparsity": engine.sparsity(),
        "training_seconds": seconds,
        "seed": options.seed,
        "rows": [len(train), len(dev)],
        "settings": {
            "epochs": options.epochs,
            "batch": BATCH,
            "rate": RATE,
            "end": END,
            "freeze": FREEZE,
            "every": EVERY,
        },
        "notes": "embeddings frozen, bfloat16 autocast, length 64, whole dev set, last weights, int8 as simulated in torch",
        "command": f"benchmarks/peers/joint_loop.py --engine {options.engine} --seed {options.seed}",
        "threads": options.threads,
        "processor": processor(),
        "date": date.today().isoformat(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
