"""Model-Compression-Research-Package's pruning configuration: iterative magnitude pruning on a cubic schedule.

Its block dimensions count (inputs, outputs); a pattern counts outputs x inputs.
"""

from collections.abc import Mapping
from typing import Any, Final

from prunus.converters.reading import ConfigBlock, Converted

__all__ = ["convert_mcr"]

FUNCTIONS: Final = {
    "unstructured_magnitude": "tensor",
    "global_unstructured_magnitude": "global",
    "block_structured_magnitude": "tensor",
    "uniform_magnitude": "tensor",
}


def convert_mcr(values: Mapping[str, Any]) -> Converted:
    """The recipe that a pruning configuration means."""
    lost: list[str] = []
    block = ConfigBlock(values, "", lost)
    function = block.take("pruning_fn")
    if function == "pattern_lock":
        return Converted({"prune": locked(block)}, lost)
    if block.take("scheduler", "iterative") != "iterative":
        block.lose("scheduler", "an iterative schedule in its place")
    if function not in FUNCTIONS:
        block.lose("pruning_fn", "has no counterpart; unstructured_magnitude in its place")
    kwargs = block.block("pruning_fn_default_kwargs")
    prefix = "group_" if function == "global_unstructured_magnitude" else ""
    target = kwargs.number(f"{prefix}target_sparsity", 0.0)
    for key in (f"{prefix}initial_sparsity", f"{prefix}threshold_decay"):
        if kwargs.number(key, 0.0):
            kwargs.lose(key, "has no counterpart")
    kwargs.take("fast_threshold")  # how its threshold is found; ours is exact
    scope = FUNCTIONS.get(str(function), "tensor")
    allocation: dict[str, Any] = {"scope": scope}
    if scope == "global":
        allocation |= {"max_per_tensor": 1.0}
    rule: dict[str, Any] = {
        "pattern": "unstructured",
        "sparsity": target,
        "criterion": "magnitude",
        "revive": True,
    }
    if function == "block_structured_magnitude":
        rule["pattern"] = blocks(kwargs)
        rule["reduce"] = "max" if kwargs.take("pooling_type", "avg") == "max" else "mean"
    if function == "uniform_magnitude":
        size = int(kwargs.number("block_size", 1))
        rule["pattern"] = f"{size - int(target * size)}:{size}"
        del rule["sparsity"]
    kwargs.rest()
    rule |= {"schedule": schedule(block), "allocation": allocation}
    rule |= targets(block)
    sparsities = block.block("weight_sparsity_map")
    for regex in sparsities.values:
        value = sparsities.block(regex)
        allocation.setdefault("per_tensor", {})[regex] = value.number("target_sparsity", target)
        value.rest()
    if block.take("init_strategy", "uniform") != "uniform":
        block.lose("init_strategy", "every tensor the same in its place")
    if block.take("explicit_prune"):
        block.lose("explicit_prune", "only weights of Linear layers are pruned")
    block.take("initial_step")  # its own package ignores it
    block.rest()
    return Converted({"prune": rule}, lost)


def targets(block: ConfigBlock) -> dict[str, Any]:
    """Which layers, and which not."""
    kinds = block.block("prune_layer_types")
    for kind in kinds.values:
        if kind not in {"Linear", "QuantizedLinear"}:
            kinds.lose(kind, "only Linear layers are pruned")
    excluded = [name for name in block.texts("not_to_prune") if name != "teacher"]  # it is no part of the model here
    return {"targets": {"exclude": excluded}} if excluded else {}


def locked(block: ConfigBlock) -> dict[str, Any]:
    """``pattern_lock``: the zeros that are there stay."""
    if block.take("scheduler", "one_shot") != "one_shot":
        block.lose("scheduler", "a pattern is locked once, before training")
    rule = {"lock": True, "pattern": "unstructured"} | targets(block)
    block.take("pruning_fn_default_kwargs")  # it has none that act
    block.rest()
    return rule


def schedule(block: ConfigBlock) -> dict[str, Any]:
    """Cubic between the policy's steps; masks are selected again until the pruning ends."""
    start, end = block.number("policy_begin_step", 0), block.number("policy_end_step", 1000)
    last, begin = block.number("end_pruning_step", -1), block.number("begin_pruning_step", 0)
    keys: dict[str, Any] = {"kind": "polynomial", "power": 3, "start": int(start), "end": int(end)}
    if begin > start:
        block.lose("begin_pruning_step", "pruning begins with the policy")
    if last < 0:
        block.lose("end_pruning_step", "masks freeze at the end of the policy, not never")
    elif last > end:
        keys["hold"] = int(last - end)
    return keys | {"every": int(block.number("pruning_frequency", 100))}


def blocks(own: ConfigBlock) -> str:
    """``block_dims`` -> outputs x inputs."""
    dims = own.take("block_dims", 1)
    if isinstance(dims, int):
        return f"{dims}x{dims}"
    if isinstance(dims, list) and 1 <= len(dims) <= 2 and all(isinstance(size, int) for size in dims):
        inputs, outputs = dims if len(dims) == 2 else (1, dims[0])
        return f"{outputs}x{inputs}"
    own.lose("block_dims", "is neither a number nor a pair; 4x1 in its place")
    return "4x1"
