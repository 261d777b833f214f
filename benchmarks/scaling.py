"""Cost of a mask update and of a training step against the number of weights and of processes.

    python benchmarks/scaling.py [--millions 10 100 300 1000] [--processes 1 2]

Update: Linear layers of 1,024 x 1,024 random weights (1,048,576 each), in float32; a global selection at 80 %, again among all
of them, by magnitude and by scores that a gradient criterion holds; median seconds of the updates after the first, and the peak
memory of the process beyond that of the weights themselves. With several processes, rows are sharded (FSDP2) over them on this
one machine.

Step: forward, backward, SGD on 256 tokens through the same layers, with and without a masker that updates in every tenth step;
its mean over the median of those without; up to 100 million weights. Each case runs in processes of its own. Results go to
``benchmarks/results/scaling.json``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from headers import header
from prunus import Allocation, Masker, Pruning, Schedule, Span

HERE = Path(__file__).parent
SIDE, TOKENS, STEPS, EVERY, LARGEST_STEP, UPDATES = 1024, 256, 20, 10, 100, 5
RULES = {
    "magnitude, unstructured": Pruning(0.8, "1x1", "magnitude", allocation=Allocation("global", "normed", 1.0)),
    "magnitude, 4x1": Pruning(0.8, "4x1", "magnitude", allocation=Allocation("global", "plain", 0.98)),
    "snip_momentum, 4x1": Pruning(0.8, "4x1", "snip_momentum", allocation=Allocation("global", "plain", 0.98)),
}


def peak() -> int:
    """Bytes of the most memory that this process has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def model_of(millions: int) -> nn.Sequential:
    """Layers with about so many million weights."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(max(1, round(millions * 1e6 / SIDE**2)))))


def update(millions: int, rule: str, processes: int) -> dict[str, Any]:
    """Seconds and memory of one update."""
    model = model_of(millions)
    if processes > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        torch.distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (processes,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
    schedule = Schedule("constant", Span(1), end=Span(9), every=Span(1))
    pruning = RULES[rule]
    pruning = Pruning(pruning.sparsity, pruning.pattern, pruning.criterion, schedule, pruning.allocation)
    masker = Masker(model, pruning, 10)
    before, seconds = peak(), []
    for _ in range(UPDATES):
        if pruning.criterion != "magnitude":
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            masker.observe(model)
            model.zero_grad()
        began = time.perf_counter()
        masker.step(model)
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": median(seconds[1:]),
        "more_bytes": peak() - before,
        "weights": sum(p.numel() for p in model.parameters()),
    }


def step(millions: int, rule: str) -> dict[str, Any]:
    """The medians of a step with and without a masker, taking turns."""
    model = model_of(millions)
    pruning = RULES[rule]
    schedule = Schedule("constant", Span(1), end=Span(STEPS), every=Span(EVERY))
    held = Masker(
        model, Pruning(pruning.sparsity, pruning.pattern, pruning.criterion, schedule, pruning.allocation), STEPS
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(TOKENS, SIDE)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * STEPS):
        masked = bool(number % 2)
        began = time.perf_counter()
        model(x).square().mean().backward()
        if masked:
            held.observe(model)
        optimizer.step()
        if masked:
            held.step(model)
        optimizer.zero_grad()
        times[masked].append(time.perf_counter() - began)
    plain, with_masks = median(times[False][1:]), sum(times[True][1:]) / len(times[True][1:])
    return {"plain_seconds": plain, "mean_with_masks_seconds": with_masks, "ratio": with_masks / plain}


def one(case: dict[str, Any]) -> None:
    """One case in this process; the first of several writes."""
    torch.set_num_threads(max(1, case["threads"] // case["processes"]))
    if case["part"] == "update":
        found = update(case["millions"], case["rule"], case["processes"])
    else:
        found = step(case["millions"], case["rule"])
    if os.environ.get("RANK", "0") == "0":
        Path(case["out"]).write_text(json.dumps(found))


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(json.loads(options.one))
        return
    cases = [
        {"part": part, "millions": millions, "rule": rule, "processes": processes, "threads": options.threads}
        for part in ("update", "step")
        for millions in options.millions
        if part == "update" or millions <= LARGEST_STEP
        for rule in RULES
        for processes in (options.processes if part == "update" else [1])
    ]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            out = Path(place) / "out.json"
            out.unlink(missing_ok=True)
            words = [__file__, "--one", json.dumps(case | {"out": str(out)})]
            if case["processes"] > 1:
                launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case['processes']}"]
                words = [*launcher, *words]
            ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            found = (
                json.loads(out.read_text())
                if out.is_file()
                else {"failed": (ran.stderr.splitlines() or ["killed"])[-1][:200]}
            )
            rows.append(case | found)
            print(rows[-1], flush=True)
    result = {
        **header("python benchmarks/scaling.py --millions " + " ".join(map(str, options.millions))),
        "rows": rows,
    }
    (HERE / "results" / "scaling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
