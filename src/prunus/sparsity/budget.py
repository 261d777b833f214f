"""Budgets: how many heads and neurons may stay in a model that is to cost a given share of the dense one.

With u_l the heads (or neurons) of layer l, of which the share s goes everywhere alike, k_l = u_l - floor(s u_l) stay, and

    params     sum over l of k_l x the weights and biases of one (its rows in the layers that write it, its columns in the one
               that reads it), and the reader's bias
    flops      2 T x those weights, and for heads 4 T^2 x the width of one (scores, and what they weigh), for T tokens
    latency    t(dense) - sum over l of (t_l(u_l) - t_l(k_l)), by a table of measured times, linear between its points

``sparsity_for`` finds the least s whose cost is within the budget. Which of a kind go is the business of the criterion.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Final, Literal

from torch import nn

from prunus.errors import Problem, RecipeError
from prunus.sparsity.structures import Structure, structures

__all__ = ["Budget", "Kinds", "Measure", "cost_of", "interpolated", "left_of", "sparsity_for"]

Measure = Literal["params", "flops", "latency"]
Kinds = Mapping[str, Mapping[int, float]]
"""``heads`` and ``ffn`` -> how many are left in a layer -> seconds of the whole model with so many in every layer."""
_TINY: Final = 1e-9


@dataclass(frozen=True)
class Budget:
    """What share of the dense model's cost may be left; one of the three."""

    params: float | None = None
    """Fraction of the weights and biases of the dense model's layers that may be left."""
    flops: float | None = None
    """Fraction of its operations that may be left."""
    latency: float | None = None
    """Fraction of its measured time that may be left."""
    tokens: int = 128
    """Sequence length for `flops` and `latency`."""

    @property
    def limit(self) -> tuple[Measure, float] | None:
        """The one that is given."""
        measures: tuple[Measure, ...] = ("params", "flops", "latency")
        given = [(name, value) for name in measures if (value := getattr(self, name)) is not None]
        return given[0] if len(given) == 1 else None

    def problems(self, key: str = "budget") -> list[Problem]:
        """What is wrong whatever the model."""
        problems = []
        if self.limit is None:
            rule = "be one of params, flops and latency"
            given = [n for n in ("params", "flops", "latency") if getattr(self, n) is not None]
            problems.append(Problem(key, given, rule, "params: 0.5"))
        elif not 0 < self.limit[1] < 1:
            rule = "be a share of the dense model in (0, 1)"
            problems.append(Problem(f"{key}.{self.limit[0]}", self.limit[1], rule, "0.5"))
        if self.tokens < 1:
            problems.append(Problem(f"{key}.tokens", self.tokens, "be at least 1", "128"))
        return problems


def _left(structure: Structure, sparsity: Mapping[str, float], multiples: Mapping[str, int]) -> int:
    left = structure.units - floor(sparsity.get(structure.kind, 0.0) * structure.units + 1e-6)
    multiple = multiples.get(structure.kind, 1)
    return min(structure.units, -(-left // multiple) * multiple)


def left_of(
    model: nn.Module, sparsity: Mapping[str, float], multiples: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Reader of the heads or neurons of a layer -> k_l, of the kinds that ``sparsity`` names."""
    pruned = [each for each in structures(model) if each.kind in sparsity]
    return {each.reader: _left(each, sparsity, multiples or {}) for each in pruned}


def cost_of(
    model: nn.Module,
    measure: Measure,
    sparsity: Mapping[str, float],
    tokens: int = 128,
    times: Kinds | None = None,
    multiples: Mapping[str, int] | None = None,
) -> float:
    """Cost of the layers of ``model`` (shapes are enough: the meta device) with these shares of ``heads`` and ``ffn`` gone.

    ``latency`` is that of the whole model, in seconds, by ``times``; ``multiples`` are those of which a layer is left one, and
    count as if every layer were rounded up.
    """
    every, multiples = structures(model), multiples or {}
    if measure == "latency":
        if times is None:
            raise ValueError("latency needs measured times")
        dense = max(times["heads"].values())
        total = dense
        for kind, table in times.items():
            layers = [each for each in every if each.kind == kind]
            dense_time = interpolated(table, max(each.units for each in layers))
            total -= sum(
                (dense_time - interpolated(table, _left(each, sparsity, multiples))) / len(layers) for each in layers
            )
        return total
    cost = 0.0
    for each in every:
        reader = model.get_submodule(each.reader)
        weight = reader.get_parameter("weight")
        width = each.width * len(weight)
        biases = 0
        for writer in each.writers:
            linear = model.get_submodule(writer.name)
            rows = writer.parts * writer.width
            width += rows * linear.get_parameter("weight").shape[1]
            biases += rows if getattr(linear, "bias", None) is not None else 0
        left = _left(each, sparsity, multiples)
        if measure == "params":
            bias_count = len(weight) if getattr(reader, "bias", None) is not None else 0
            cost += left * (width + biases) + bias_count
        else:
            cost += 2 * tokens * left * width + (4 * tokens**2 * left * each.width if each.kind == "heads" else 0)
    return cost


def interpolated(table: Mapping[int, float], count: float) -> float:
    """The value at ``count``, linear between the points of the table and constant beyond them."""
    points = sorted(table)
    place = bisect_left(points, count)
    if place == 0:
        return table[points[0]]
    if place == len(points):
        return table[points[-1]]
    low, high = points[place - 1], points[place]
    part = (count - low) / (high - low)
    return table[low] + part * (table[high] - table[low])


def sparsity_for(
    cost: Callable[[float], float], share: float, counts: Sequence[int], key: str = "budget", most: float = 1.0
) -> float:
    """The least share of structures that has to go, among those that whole ones can make.

    ``counts`` are the heads or neurons of the layers; ``most`` is how much may go. Raises ``RecipeError``, with the nearest
    budget that can be met, where even that leaves too much.
    """
    steps = sorted({k / n for n in set(counts) for k in range(n + 1) if k / n <= most + _TINY})
    dense = cost(0.0)
    low, high = 0, len(steps) - 1
    if cost(steps[high]) > share * dense * (1 + _TINY):
        nearest = cost(steps[high]) / dense
        rule = (
            f"leave room for what cannot go; with {steps[high]:.3g} of the heads and neurons gone {nearest:.3f} is left"
        )
        fix = f"{nearest + 0.001:.3f}" if nearest < 0.999 else "a model with larger layers, which has something to gain"
        raise RecipeError(Problem(key, share, rule, fix))
    while low < high:
        middle = (low + high) // 2
        if cost(steps[middle]) <= share * dense * (1 + _TINY):
            high = middle
        else:
            low = middle + 1
    return steps[low]
