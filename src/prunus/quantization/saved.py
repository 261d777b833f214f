"""Saved ranges (what ``to_float`` returned): the checks before they are put into a model again."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from prunus.architectures import is_score_operand
from prunus.errors import Problem
from prunus.quantization.sharing import Site

__all__ = ["restore_problems"]

_KEY: Final = re.compile(r"(.+)\.(weight_range|bits|input_range\.(?:low|high|bound)|output_range\.bound)")
_FILE: Final = "an intact file of ranges"


def restore_problems(layers: Sequence[Site], ranges: Mapping[str, Tensor]) -> list[Problem]:
    """What is wrong with ``ranges`` for a model with these Linear and Embedding modules."""
    problems = [
        Problem(key, "NaN or infinity", "be finite", _FILE)
        for key, value in ranges.items()
        if not torch.isfinite(value.float()).all()
    ]
    modules = {name: site.module for site in layers for name in site.names}
    given = dict.fromkeys(match[1] for key in ranges if (match := _KEY.fullmatch(key)))
    with_outputs = any(key.endswith(".output_range.bound") for key in ranges)
    for name in sorted(given):
        module, bound = modules.get(name), ranges.get(f"{name}.weight_range")
        if bound is None or module is None:
            missing = [f"{name}.weight_range"] if bound is None else []
        else:
            missing = missing_keys(name, module, ranges, with_outputs)
        problems += [
            Problem(key, "nothing", "be among the ranges, as others of its layer are", _FILE) for key in missing
        ]
        if bound is not None and (module is None or tuple(bound.shape) != (rows_of(module), 1)):
            rule = f"belong to a layer of the model with {len(bound)} rows"
            problems.append(Problem(f"{name}.weight_range", tuple(bound.shape), rule, "the model it was saved with"))
    return problems + differing(layers, ranges)


def rows_of(layer: nn.Module) -> int:
    """Outputs of a Linear layer, rows of a table."""
    return layer.get_parameter("weight").shape[0]


def missing_keys(name: str, module: nn.Module, ranges: Mapping[str, Tensor], with_outputs: bool) -> list[str]:
    """The names of ranges that a layer has to have and has not."""
    if isinstance(module, nn.Embedding):
        return []
    needed = [f"{name}.bits"]
    if f"{name}.input_range.bound" not in ranges:
        needed += [f"{name}.input_range.low", f"{name}.input_range.high"]
    if with_outputs and is_score_operand(name):
        needed.append(f"{name}.output_range.bound")
    return [key for key in needed if key not in ranges]


def differing(layers: Sequence[Site], ranges: Mapping[str, Tensor]) -> list[Problem]:
    """Layers with one weight (or one layer with several names) that were saved with different ranges."""
    first: dict[tuple[int, str], str] = {}
    problems = []
    for site in layers:
        for name in site.names:
            for key in ("weight_range", "bits"):
                if f"{name}.{key}" not in ranges:
                    continue
                other = first.setdefault((id(site.module.weight), key), f"{name}.{key}")
                if not torch.equal(ranges[other].cpu(), ranges[f"{name}.{key}"].cpu()):
                    rule = f"be what {other} is, as both are of one weight"
                    problems.append(Problem(f"{name}.{key}", "other values", rule, "the model it was saved with"))
    return problems
