"""Torch-Pruning 1.6.1 and prunus, side by side: heads and neurons taken out of MiniLM in one plain training loop.

    python benchmarks/peers/smaller_loop.py --engine prunus        --dense DIR --data DIR --seed 1 --out a.json
    python benchmarks/peers/smaller_loop.py --engine torch-pruning --dense DIR --data DIR --seed 1 --out b.json

``--dense`` is the fine-tuned dense model that both start from and learn from. Batches, order, learning rates, the teacher and
the steps at which structures go are this file's, the same for both; both end at half of the layers' parameters. Torch-Pruning
gets its group Taylor importance (its own first-order criterion, global) on the gradients of the step before each update; layers
that write the residual stream are ignored, so that only heads and neurons go. It cuts the model at each update, and this loop
makes the optimizer anew; prunus masks, and cuts at the end. Needs ``pip install torch-pruning==1.6.1``.
"""

import json
import sys
import time
from copy import deepcopy
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
from sst2_loop import (
    EPOCHS,
    RATE,
    batches,
    collate,
    examples,
    linear,
    optimizer_of,
    options_of,
    right_answers,
    taught_loss,
)

from prunus.environment import processor

SHARE, UPDATES, START, END = 0.5, 10, 0.03, 0.48


def layer_parameters(model: torch.nn.Module) -> int:
    """Of the matrices and biases of all layers."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if "encoder.layer" in name and "LayerNorm" not in name)


class TorchPruning:
    """Its pruner, one iteration an update."""

    def __init__(self, model: torch.nn.Module, example: dict[str, torch.Tensor], total: int) -> None:
        import torch_pruning

        self.model, self.whole = model, layer_parameters(model)
        ignored = [
            m for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding) or n.endswith("output.dense")
        ]
        ignored += [model.bert.pooler.dense, model.classifier]
        heads = {}
        for layer in model.bert.encoder.layer:
            own = layer.attention.self
            heads |= dict.fromkeys((own.query, own.key, own.value), own.num_attention_heads)
        self.pruner = torch_pruning.pruner.BasePruner(
            model,
            example,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=SHARE,
            max_pruning_ratio=0.95,
            iterative_steps=UPDATES,
            ignored_layers=ignored,
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=SHARE,
            output_transform=lambda out: out.logits.sum(),
        )

    def before_step(self) -> None:
        pass

    def update(self) -> bool:
        """True: the optimizer's parameters are others now."""
        if layer_parameters(self.model) > SHARE * self.whole:
            self.pruner.step()
            for layer in self.model.bert.encoder.layer:
                own = layer.attention.self
                own.num_attention_heads = own.query.out_features // own.attention_head_size
                own.all_head_size = own.query.out_features
        return True

    def after_step(self) -> None:
        pass

    def finish(self) -> torch.nn.Module:
        return self.model


class Prunus:
    """The same moments with prunus."""

    def __init__(self, model: torch.nn.Module, example: dict[str, torch.Tensor], total: int) -> None:
        from prunus import Allocation, Masker, Pruning, Schedule, Span
        from prunus.sparsity.budget import cost_of, sparsity_for
        from prunus.sparsity.structures import structures

        counts = [each.units for each in structures(model)]
        s = sparsity_for(lambda s: cost_of(model, "params", {"heads": s, "ffn": s}), SHARE, counts, most=0.95)
        first, last = int(START * total), int(END * total)
        schedule = Schedule("linear", Span(first), Span(last), Span((last - first) // UPDATES))
        whole = Allocation("global", "normed", 0.95)
        self.model = model
        self.masker = Masker(model, [Pruning(s, k, "first_order", schedule, whole) for k in ("heads", "ffn")], total)

    def before_step(self) -> None:
        self.masker.observe(self.model)

    def update(self) -> bool:
        return False

    def after_step(self) -> None:
        self.masker.step(self.model)

    def finish(self) -> torch.nn.Module:
        import prunus

        self.masker.finish(self.model)
        prunus.compact(self.model)
        return self.model


def main() -> None:
    """Trains with one engine and writes its result."""
    options = options_of(__doc__, "torch-pruning", 8000, EPOCHS)
    tokenizer = AutoTokenizer.from_pretrained(options.dense)
    train, dev = examples(options.data, tokenizer, options.rows)
    model = AutoModelForSequenceClassification.from_pretrained(options.dense)
    teacher = deepcopy(model).eval().requires_grad_(False)
    dense = right_answers(teacher, dev, tokenizer.pad_token_id) / len(dev)
    whole = layer_parameters(model)
    example = {k: v for k, v in collate(train[:2], tokenizer.pad_token_id).items() if k != "labels"}
    total = options.epochs * -(-len(train) // 32)
    optimizer_of(model)  # freezes the embeddings
    engine = (TorchPruning if options.engine == "torch-pruning" else Prunus)(model, example, total)
    model.train()
    optimizer = optimizer_of(model)
    first, last = int(START * total), int(END * total)
    every = (last - first) // UPDATES
    generator = torch.Generator().manual_seed(options.seed)
    began, step = time.perf_counter(), 0
    for _ in range(options.epochs):
        for rows in batches(train, generator):
            batch = collate(rows, tokenizer.pad_token_id)
            batch.pop("labels")
            for group in optimizer.param_groups:
                group["lr"] = RATE * linear(step, total)
            _, loss = taught_loss(model, teacher, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            engine.before_step()
            optimizer.step()
            engine.after_step()
            step += 1
            if first < step <= last and (step - first) % every == 0 and engine.update():
                optimizer = optimizer_of(model)
            optimizer.zero_grad()
    seconds = time.perf_counter() - began
    model = engine.finish().eval()
    package = "torch-pruning" if options.engine == "torch-pruning" else "prunus"
    result = {
        "engine": options.engine,
        "seed": options.seed,
        "accuracy": right_answers(model, dev, tokenizer.pad_token_id) / len(dev),
        "dense": dense,
        "layer_parameters": layer_parameters(model) / whole,
        "parameters": sum(p.numel() for p in model.parameters()),
        "heads": [layer.attention.self.query.out_features for layer in model.bert.encoder.layer],
        "neurons": [layer.intermediate.dense.out_features for layer in model.bert.encoder.layer],
        "training_seconds": seconds,
        "settings": {"rows": len(train), "epochs": options.epochs, "share": SHARE, "updates": UPDATES},
        "versions": {name: version(name) for name in ("torch", "transformers", package)},
        "command": f"benchmarks/peers/smaller_loop.py --engine {options.engine} --seed {options.seed}",
        "processor": processor(),
        "threads": options.threads,
        "date": date.today().isoformat(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({key: result[key] for key in ("accuracy", "dense", "layer_parameters", "training_seconds")})


if __name__ == "__main__":
    main()
