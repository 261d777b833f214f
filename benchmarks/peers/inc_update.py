"""Seconds of one mask update in Intel Neural Compressor 2.6; runs in an environment of its own (see inc_masks.py).

    python inc_update.py --blocks 24 --width 1024 --threads 2 [--case "magnitude 4x1 0.8"]

Prints one JSON object: versions, and for each case the seconds of two updates (the second from 40 % to 80 %, or to 2:4),
of the criterion's own work per step, and the zeros at the end.
"""

import argparse
import json
import logging
import resource
import time
from importlib.metadata import version

import torch
from torch import nn

CASES = [
    (criterion, pattern, sparsity)
    for criterion in ("magnitude", "snip_momentum")
    for pattern, sparsity in (("1x1", 0.8), ("4x1", 0.8), ("2:4", 0.5))
]


def encoder(blocks: int, width: int) -> nn.Sequential:
    """The shapes of BERT's encoder weights; the Identity stops the package from leaving out the last layer."""
    torch.manual_seed(0)
    shapes = ([(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]) * blocks
    return nn.Sequential(*(nn.Linear(inp, out, bias=False) for inp, out in shapes), nn.Identity())


def run(model: nn.Sequential, criterion: str, pattern: str, sparsity: float) -> dict[str, object]:
    from neural_compressor import WeightPruningConfig  # type: ignore[import-not-found]
    from neural_compressor.compression.pruner.pruning import BasicPruning  # type: ignore[import-not-found]
    from neural_compressor.compression.pruner.utils import process_config  # type: ignore[import-not-found]

    local = {
        "op_names": [],
        "excluded_op_names": [],
        "pruning_op_types": ["Linear"],
        "pruning_type": criterion,
        "pattern": pattern,
        "target_sparsity": sparsity,
        "pruning_scope": "global",
        "sparsity_decay_type": "linear",
        "start_step": 1,
        "end_step": 3,
        "pruning_frequency": 1,
    }
    pruning = BasicPruning(process_config(WeightPruningConfig([local])), model)
    pruning.on_train_begin()
    updates, observes = [], []
    for step in range(4):
        start = time.perf_counter()
        pruning.on_step_begin(step)
        updates.append(time.perf_counter() - start)
        start = time.perf_counter()
        pruning.on_before_optimizer_step()
        observes.append(time.perf_counter() - start)
        pruning.on_after_optimizer_step()
    weights = list(model.parameters())
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    return {"update_s": updates[2:], "observe_s": observes[1:], "sparsity": zeros / total}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("blocks", 24), ("width", 1024), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", help="one case by name, as 'magnitude 4x1 0.8'; all of them without it")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(arguments.threads)
    cases = {}
    for criterion, pattern, sparsity in CASES:
        if arguments.case not in (None, f"{criterion} {pattern} {sparsity}"):
            continue
        model = encoder(arguments.blocks, arguments.width)
        if criterion != "magnitude":
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
        cases[f"{criterion} {pattern} {sparsity}"] = run(model, criterion, pattern, sparsity)
    print(
        json.dumps(
            {
                "versions": {"neural-compressor": version("neural-compressor"), "torch": torch.__version__},
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "cases": cases,
            }
        )
    )


if __name__ == "__main__":
    main()
