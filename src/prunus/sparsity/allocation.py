"""Allocation: how one sparsity is spread over the tensors of a rule.

    scope tensor   every tensor l loses k_l = floor(s * n_l) of its n_l units
    scope global   one threshold for all units; the tensors share K = floor(s * sum n_l) as their scores decide
    per_tensor     the sparsity of each tensor is given by the user (name pattern -> final sparsity), scope tensor

Global scores are made comparable by an *importance*: ``plain`` takes them as they are, ``normed`` divides by the tensor's
L2 norm, ``rms`` by its root mean square (``normed`` favours pruning large tensors, as NNCF's default does; ``rms`` does not).

In a global scope, no tensor loses more than ``max_per_tensor`` of its units. What a capped tensor cannot give, the others
give: rounds of (threshold over the uncapped tensors, cap those above) until none is above, which ends in the one solution of
sum_l min(cap_l, |{score_l <= theta}|) = K. Without a cap, a gradient criterion empties whole layers. (For N:M, fractions
count zeros, so a cap above (M - N) / M is no cap.)

Units of ``rows`` and ``columns`` differ in size between tensors; a global scope then counts weights and not units.

``multiple`` m leaves each tensor a number of units that m divides (what kernels like: 8, 16, 64): the units left in all,
rounded up to a multiple, go to the tensors whose own number is furthest above one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import le, lt
from typing import Final, Literal

import torch
from torch import Tensor

from prunus.errors import Problem, nearest
from prunus.sparsity.selection import Cut, count_of, cut_lowest
from prunus.sparsity.sharding import SINGLE, Sharding, count, kth_smallest, norm, size

__all__ = ["Allocation", "Importance", "Scope", "global_cuts", "importance", "in_multiples", "lowest"]

Scope = Literal["tensor", "global"]
Importance = Literal["plain", "normed", "rms"]
_SCOPES: Final = ("tensor", "global")
_IMPORTANCES: Final = ("plain", "normed", "rms")


@dataclass(frozen=True)
class Allocation:
    """How a rule's sparsity is spread; fractions in [0, 1]."""

    scope: Scope = "global"
    """`global` has one threshold for all targets; `tensor` gives each target the same sparsity."""
    importance: Importance = "plain"
    """How scores are made comparable in scope `global`: unchanged, divided by the tensor's L2 norm, or by its root
    mean square."""
    max_per_tensor: float = 0.98
    """Scope `global`: the highest sparsity of any target, so that no layer is emptied."""
    per_tensor: Mapping[str, float] = field(default_factory=dict)
    """Scope `tensor`: regular expression on parameter names -> sparsity. The first match counts; targets without a
    match have the rule's sparsity."""
    multiple: int = 1
    """The number of units left in each target is a multiple of this. Set 8, 16 or 64 neurons for kernels that need
    such a multiple."""

    def problems(self, sparsity: float, key: str = "allocation") -> list[Problem]:
        """What is wrong with this allocation for a rule of this final sparsity."""
        problems = []
        if self.scope not in _SCOPES:
            problems.append(Problem(f"{key}.scope", self.scope, "be tensor or global", nearest(self.scope, _SCOPES)))
        if self.importance not in _IMPORTANCES:
            fix = nearest(self.importance, _IMPORTANCES)
            problems.append(Problem(f"{key}.importance", self.importance, "be plain, normed or rms", fix))
        if not 0 < self.max_per_tensor <= 1:
            problems.append(Problem(f"{key}.max_per_tensor", self.max_per_tensor, "be a fraction in (0, 1]", "0.98"))
        elif self.scope == "global" and sparsity > self.max_per_tensor:
            rule = f"be at least the sparsity {sparsity:g}"
            problems.append(
                Problem(f"{key}.max_per_tensor", self.max_per_tensor, rule, f"{min(1.0, sparsity + 0.1):g}")
            )
        if self.per_tensor and self.scope == "global":
            rule = "not be given with scope global, which spreads the sparsity itself"
            problems.append(Problem(f"{key}.per_tensor", dict(self.per_tensor), rule, "scope: tensor"))
        if self.multiple < 1:
            problems.append(Problem(f"{key}.multiple", self.multiple, "be at least 1", "8"))
        for pattern, value in self.per_tensor.items():
            try:
                re.compile(pattern)
            except re.error as error:
                problems.append(
                    Problem(f"{key}.per_tensor", pattern, f"be a regular expression ({error})", re.escape(pattern))
                )
            if not 0 <= value < 1:
                problems.append(Problem(f"{key}.per_tensor[{pattern}]", value, "be a fraction in [0, 1)", "0.8"))
        return problems

    def final(self, name: str, sparsity: float) -> float:
        """The final sparsity of the tensor ``name`` in scope tensor."""
        return next((value for pattern, value in self.per_tensor.items() if re.search(pattern, name)), sparsity)


def importance(score: Tensor, kind: Importance, in_place: bool = False, sharding: Sharding = SINGLE) -> Tensor:
    """Scores of one tensor, scaled so that tensors can be compared; a tensor of zeros stays zeros."""
    if kind == "plain":
        return score
    scale = norm(sharding, score)
    if kind == "rms":
        scale = scale / size(sharding, score) ** 0.5
    scale = scale.clamp_min(torch.finfo(score.dtype).tiny)
    return score.div_(scale) if in_place else score / scale


def global_cuts(
    scores: Mapping[str, Tensor],
    fraction: float,
    cap: float = 1.0,
    weights_per_unit: Mapping[str, int] | None = None,
    sharding: Sharding = SINGLE,
) -> dict[str, Cut]:
    """One cut per tensor, from scores that are comparable.

    ``fraction`` of all units goes, at most ``cap`` of each tensor's. ``weights_per_unit`` makes units count by their size
    (then the total is the nearest one not above the target that taking units in order of score can reach).
    """
    if weights_per_unit is not None and len(set(weights_per_unit.values())) > 1:
        gathered = {name: sharding.gather(score) for name, score in scores.items()}
        return _cuts_by_weight(gathered, fraction, cap, weights_per_unit)
    sizes = {name: size(sharding, score) for name, score in scores.items()}
    limit = {name: count_of(cap, size) for name, size in sizes.items()}
    left = min(count_of(fraction, sum(sizes.values())), sum(limit.values()))
    cuts: dict[str, Cut] = {}
    active = dict(scores)
    while active and left:
        theta = kth_smallest(sharding, list(active.values()), left)
        at_or_below = {name: count(sharding, score, le, theta) for name, score in active.items()}
        room = {name: min(number, limit[name]) for name, number in at_or_below.items()}
        if sum(room.values()) >= left:
            return cuts | _share_ties(active, theta, room, limit, sum(room.values()) - left, sharding)
        for name in [name for name in active if at_or_below[name] > limit[name]]:
            cuts[name] = lowest(active.pop(name), limit[name], sharding)
            left -= limit[name]
    return cuts | {name: Cut(0, -torch.inf) for name in active}


def on_one_device(scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Scores that are compared with each other, where layers of a model lie on several devices: all on that of the first."""
    devices = {score.device for score in scores.values()}
    if len(devices) <= 1:
        return scores
    device = next(iter(scores.values())).device
    return {name: score.to(device) for name, score in scores.items()}


def in_multiples(
    scores: Mapping[str, Tensor], cuts: Mapping[str, Cut], multiple: int, sharding: Sharding = SINGLE
) -> dict[str, Cut]:
    """The cuts that leave each tensor a multiple of units; no tensor is left more than the multiple above what it had.

    A tensor whose size is none keeps what is over it.
    """
    sizes = {name: size(sharding, score) for name, score in scores.items()}
    over = {name: size % multiple for name, size in sizes.items()}
    left = {name: max(0, sizes[name] - over[name] - cuts[name].k) for name in scores}
    base = {name: number // multiple * multiple for name, number in left.items()}
    more = -(-(sum(left.values()) - sum(base.values())) // multiple)
    for name in sorted(left, key=lambda name: base[name] - left[name])[:more]:
        base[name] += multiple
    return {name: lowest(score, sizes[name] - over[name] - base[name], sharding) for name, score in scores.items()}


def _share_ties(
    scores: Mapping[str, Tensor],
    theta: float,
    room: Mapping[str, int],
    limit: Mapping[str, int],
    excess: int,
    sharding: Sharding,
) -> dict[str, Cut]:
    """Cuts at one threshold: each tensor's ``room`` less ``excess`` units tied at it, which go in the tensors' order."""
    cuts = {}
    for name in reversed(list(scores)):
        if not excess and room[name] < limit[name]:  # all at or below the threshold, and no tie to spare
            cuts[name] = Cut(room[name], theta)
            continue
        below = count(sharding, scores[name], lt, theta)
        spared = min(excess, max(0, room[name] - below))
        excess -= spared
        k = room[name] - spared
        cuts[name] = Cut(k, theta) if k >= below else lowest(scores[name], k, sharding)
    return cuts


def lowest(score: Tensor, k: int, sharding: Sharding = SINGLE) -> Cut:
    """The cut that takes the ``k`` lowest units of one tensor."""
    return Cut(k, kth_smallest(sharding, [score], k) if k else -torch.inf)


def _cuts_by_weight(
    scores: Mapping[str, Tensor], fraction: float, cap: float, weights_per_unit: Mapping[str, int]
) -> dict[str, Cut]:
    """Takes units in order of score while their weights fit into the target; rows and columns are few, so they are sorted."""
    budget = count_of(fraction, sum(score.numel() * weights_per_unit[name] for name, score in scores.items()))
    order = sorted(
        (value, index, name)
        for index, (name, score) in enumerate(scores.items())
        for value in score.flatten().sort().values[: count_of(cap, score.numel())].tolist()
    )
    taken = dict.fromkeys(scores, 0)
    for _, _, name in order:
        if budget < weights_per_unit[name]:
            break
        budget -= weights_per_unit[name]
        taken[name] += 1
    return {name: cut_lowest(score, taken[name]) for name, score in scores.items()}
