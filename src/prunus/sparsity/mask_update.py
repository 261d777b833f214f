"""One mask update: from the scores of a rule's weights, how many units go (a cut) and which (the masks)."""

from collections.abc import Mapping
from operator import le

import torch
from torch import Tensor

from prunus.sparsity.allocation import global_cuts, in_multiples, lowest, on_one_device
from prunus.sparsity.criteria import least_kept
from prunus.sparsity.pruning import Rule
from prunus.sparsity.selection import Cut, count_of, kept
from prunus.sparsity.sharding import Shard, Sharding, count, cut_here, expand, kept_units, pool, size

__all__ = ["select_masks"]


def select_masks(
    rule: Rule,
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    step: int,
    sharding: Sharding,
    shards: Mapping[str, Shard],
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The masks (bool ``[out, in]``, True = kept) of a rule after ``step`` optimizer steps, and how many zeros each has.

    ``scores`` are those of units, or of weights for N:M; ``masks`` the masks so far. Of sharded weights, scores and masks are
    the part of this process; zeros are counted in all of the weight.
    """
    if not rule.pruning.revive:
        scores = {
            name: _without_pruned(sharding, shards[name], score, masks.get(name)) for name, score in scores.items()
        }
    units = scores
    if rule.pattern.needs_element_scores:
        units = {name: pool(sharding, shards[name], score, rule.pruning.reduce) for name, score in scores.items()}
    cuts = _cuts(rule, units, step, sharding)
    if rule.pruning.allocation.multiple > 1:
        cuts = in_multiples(units, cuts, rule.pruning.allocation.multiple, sharding)
    selected, zeros = {}, {}
    for name, cut in cuts.items():
        keep = kept(units[name], cut_here(sharding, units[name], cut))
        selected[name] = expand(sharding, shards[name], keep, scores[name]).contiguous()
        zeros[name] = cut.k * rule.pattern.zeros_per_unit(shards[name].shape)
    return selected, zeros


def _without_pruned(sharding: Sharding, shard: Shard, score: Tensor, mask: Tensor | None) -> Tensor:
    """Scores in which what is pruned already has -inf, so that it goes first."""
    if mask is None:
        return score
    keep = mask if shard.pattern.needs_element_scores else kept_units(sharding, shard, mask)
    return score.masked_fill(~keep, -torch.inf)


def _cuts(rule: Rule, units: Mapping[str, Tensor], step: int, sharding: Sharding) -> dict[str, Cut]:
    """How many of each weight's units go, and up to which score."""
    allocation, threshold = rule.pruning.allocation, None
    if rule.pruning.scores is not None:
        threshold = rule.pruning.scores.threshold
    if threshold is None and allocation.scope == "global":
        zeros = {name: rule.pattern.zeros_per_unit(shape) for name, shape in rule.selection.taken.items()}
        fraction = rule.fraction_of_units(step, rule.sparsity)
        cap = min(1.0, allocation.max_per_tensor / rule.pattern.max_sparsity)
        return global_cuts(on_one_device(units), fraction, cap, zeros, sharding)
    cuts = {}
    for name, score in units.items():
        number = size(sharding, score)
        if threshold is None:
            k = count_of(rule.fraction_of_units(step, allocation.final(name, rule.sparsity)), number)
        else:  # soft movement
            below = count(sharding, torch.sigmoid(score), le, threshold * rule.timetable.share(step))
            k = min(below, number - least_kept(number))
        cuts[name] = lowest(score, k, sharding)
    return cuts
