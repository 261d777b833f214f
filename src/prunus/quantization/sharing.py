"""Modules and weights that a model has under several names: they are quantized once.

A module that stands under two names is one quantized module under both. Different modules with one weight share one range: what
trains is then what is stored, since the weight can be rounded to one grid only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from prunus.errors import Problem

__all__ = ["Site", "float_sharers", "joined", "put", "sites"]


@dataclass(frozen=True)
class Site:
    """A module of a model and all of its names, in the model's order."""

    names: tuple[str, ...]
    module: nn.Module


def sites(model: nn.Module) -> list[Site]:
    """Every module once, in the model's order."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    return [Site(tuple(names[key]), module) for key, module in modules.items()]


def put(model: nn.Module, names: Iterable[str], module: nn.Module) -> None:
    """Sets the submodule under each of the dotted names."""
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)


def float_sharers(everything: Sequence[Site], quantized: Sequence[Site]) -> list[Problem]:
    """Weights that would be rounded for a quantized layer while another module goes on reading them as float."""
    chosen = {id(site.module) for site in quantized}
    first: dict[int, str] = {}
    for site in quantized:
        first.setdefault(id(site.module.weight), site.names[0])
    problems = []
    for site in everything:
        for last, weight in site.module._parameters.items() if id(site.module) not in chosen else ():
            if weight is not None and id(weight) in first:
                other = f"{site.names[0]}.{last}".lstrip(".")
                got = f"the same weight as {other}, which stays in float"
                rule = "share its weight only with layers that are quantized too"
                fix = f"quantize.exclude with both ({first[id(weight)]} and {site.names[0] or other}) or neither"
                problems.append(Problem(f"{first[id(weight)]}.weight", got, rule, fix))
    return problems


def joined(groups: Iterable[Iterable[str]]) -> list[list[str]]:
    """Groups with a common member as one: a shared module reads several tensors, and has one range for all of them."""
    result: list[list[str]] = []
    for group in groups:
        names = list(group)
        touched = [each for each in result if not set(each).isdisjoint(names)]
        merged = list(dict.fromkeys([*(name for each in touched for name in each), *names]))
        result = [each for each in result if each not in touched] + [merged]
    return result
