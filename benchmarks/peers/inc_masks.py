"""Masks of Intel Neural Compressor 2.6 on recorded gradients; runs in an environment of its own.

    python inc_masks.py recorded.npz masks.npz

``recorded.npz`` holds a JSON text ``cases`` (a list of dictionaries with the keys of ``settings`` below) and, for case i
and layer l, ``w.i.l`` [out, in] and ``g.i.l`` [steps, out, in]. A step is plain descent, w <- w - lr g. ``masks.npz`` gets
``m.i.l`` [steps + 1, out, in], the weight's mask after 0, 1, ... steps.

Environment: torch 2.13.0, neural-compressor 2.6, "setuptools<81", six.
"""

import json
import logging
import sys

import numpy as np
import torch
from torch import nn


def settings(case: dict[str, object]) -> dict[str, object]:
    """The package's own keys; every list is new, since the package appends to the ones it is given."""
    return {
        "op_names": [],
        "excluded_op_names": [],
        "pruning_op_types": ["Linear"],
        "pruning_type": case["criterion"],
        "pattern": case["pattern"],
        "target_sparsity": case["sparsity"],
        "pruning_scope": case["scope"],
        "sparsity_decay_type": case["decay"],
        "criterion_reduce_type": case["reduce"],
        "max_sparsity_ratio_per_op": case["cap"],
        "start_step": case["start"],
        "end_step": case["end"],
        "pruning_frequency": case["every"],
    }


def run(case: dict[str, object], weights: list[np.ndarray], grads: list[np.ndarray]) -> list[np.ndarray]:
    from neural_compressor import WeightPruningConfig  # type: ignore[import-not-found]
    from neural_compressor.compression.pruner.pruning import BasicPruning  # type: ignore[import-not-found]
    from neural_compressor.compression.pruner.utils import process_config  # type: ignore[import-not-found]

    layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    model = nn.Sequential(*layers, nn.Identity())  # without it the last layer counts as a head and is left out
    pruning = BasicPruning(process_config(WeightPruningConfig([settings(case)])), model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    pruner = pruning.pruners[0]
    steps = grads[0].shape[0]
    seen: list[list[np.ndarray]] = [[] for _ in layers]
    pruning.on_train_begin()
    for step in range(steps + 1):
        pruning.on_step_begin(step)
        for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
            mask = pruner.masks.get(name, torch.ones_like(layer.weight))
            full = mask.repeat_interleave(layer.weight.shape[0] // mask.shape[0], 0)
            full = full.repeat_interleave(layer.weight.shape[1] // mask.shape[1], 1)
            seen[index].append(full.bool().numpy().copy())
        if step == steps:
            break
        for layer, grad in zip(layers, grads, strict=True):
            layer.weight.grad = torch.tensor(grad[step])
        pruning.on_before_optimizer_step()
        with torch.no_grad():
            for layer in layers:
                if layer.weight.grad is not None:
                    layer.weight.sub_(layer.weight.grad, alpha=float(str(case["lr"])))
        pruning.on_after_optimizer_step()
    return [np.stack(masks) for masks in seen]


def main(source: str, target: str) -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    recorded = np.load(source)
    found: dict[str, np.ndarray] = {}
    for index, case in enumerate(json.loads(str(recorded["cases"]))):
        layers = range(case["layers"])
        weights, grads = ([recorded[f"{kind}.{index}.{layer}"] for layer in layers] for kind in "wg")
        for layer, masks in enumerate(run(case, weights, grads)):
            found[f"m.{index}.{layer}"] = masks
    np.savez_compressed(target, **found)  # type: ignore[arg-type]  # numpy below 2.1 has no other argument


if __name__ == "__main__":
    main(*sys.argv[1:3])
