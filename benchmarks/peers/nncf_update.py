"""Seconds of one mask update in NNCF 3.4; runs in an environment of its own.

    python nncf_update.py --blocks 24 --width 1024 --threads 2

Prints one JSON object like inc_update.py. ``prune_s`` is ``nncf.prune`` as a user calls it, with the tracing of the model;
``update_s`` are two updates of the ratio alone, as a schedule makes them. NNCF masks in the forward pass and leaves the
weights as they are, so its update has no weight to write, and every forward pass has.

Environment: torch 2.13.0, nncf 3.4.0.
"""

import argparse
import json
import logging
import resource
import time
from importlib.metadata import version

import torch
from torch import nn


class Encoder(nn.Module):
    """The shapes of BERT's encoder weights in a row. (Not a Sequential: it would call what NNCF adds as one more layer.)"""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = ([(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]) * blocks
        self.layers = nn.ModuleList(nn.Linear(inp, out, bias=False) for inp, out in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def run(model: nn.Module, scope: str, width: int, sparsity: float) -> dict[str, object]:
    import nncf  # type: ignore[import-not-found]
    from nncf.torch.function_hook.pruning.magnitude.algo import (  # type: ignore[import-not-found]
        get_pruned_modules,
        update_pruning_ratio,
    )

    modes = {
        "global": nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
        "local": nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL,
    }
    start = time.perf_counter()
    model = nncf.prune(model, modes[scope], ratio=sparsity, examples_inputs=torch.zeros(1, width))
    whole = time.perf_counter() - start
    updates = []
    for ratio in (sparsity / 2, sparsity):
        start = time.perf_counter()
        update_pruning_ratio(model, modes[scope], ratio)
        updates.append(time.perf_counter() - start)
    masks = [hook.binary_mask for hook in get_pruned_modules(model).values()]
    zeros = sum(int((~mask.bool()).sum()) for mask in masks)
    return {"prune_s": whole, "update_s": updates, "sparsity": zeros / sum(mask.numel() for mask in masks)}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("blocks", 24), ("width", 1024), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(arguments.threads)
    cases = {}
    for scope in ("global", "local"):
        model = Encoder(arguments.blocks, arguments.width)
        cases[f"magnitude 1x1 0.8 {scope}"] = run(model, scope, arguments.width, 0.8)
    print(
        json.dumps(
            {
                "versions": {"nncf": version("nncf"), "torch": torch.__version__},
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "cases": cases,
            }
        )
    )


if __name__ == "__main__":
    main()
