"""Exact selection: of n scores, the k lowest go, and never one more.

    cut   (k, threshold): everything below the threshold goes; of the scores equal to it, the first ones by position,
          until k have gone.

A threshold alone over-prunes wherever scores tie (all equal weights, zero gradients); a cut cannot.

The k-th smallest of many scores is found without sorting them: a strided sample brackets it, one pass counts what lies
below the bracket and gathers what lies inside (at most 2 %), and the exact value is selected from those. Scores are read as
a list of tensors, never concatenated, so that a global selection needs no copy of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, isqrt
from operator import gt, le, lt
from typing import Any, Final

import torch
from torch import Tensor

__all__ = [
    "SMALL",
    "Cut",
    "at_end",
    "bracket",
    "compared",
    "count",
    "count_of",
    "cut_lowest",
    "kept",
    "kth_smallest",
    "sampled",
    "within",
]

SMALL: Final = 1 << 18  # below this many scores, selecting directly is faster than bracketing
_SAMPLE: Final = 1 << 17


@dataclass(frozen=True)
class Cut:
    """The ``k`` lowest scores go; none of them is above ``threshold``."""

    k: int
    threshold: float


def count_of(fraction: float, n: int) -> int:
    """How many of ``n`` units a sparsity means: the floor, forgiving the rounding of floats (0.29 of 100 is 29)."""
    return min(n, floor(fraction * n + 1e-6))


def kth_smallest(scores: Sequence[Tensor], k: int) -> float:
    """The k-th smallest (k from 1) of all scores in all tensors, exactly."""
    flat = [score.flatten() for score in scores]
    n = sum(score.numel() for score in flat)
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1..{n}, got {k}")
    if n > SMALL:
        low, high = bracket(sampled(flat, n), k, n)
        counts, inside = within(flat, low, high)
        if counts[1] < k <= counts[2]:
            return float(_ascending(inside)[k - counts[1] - 1])
        tied = at_end(counts, low, high, k)
        if tied is not None:
            return tied
    return float(torch.cat(flat).kthvalue(k).values)


def sampled(flat: Sequence[Tensor], n: int) -> Tensor:
    """A share of the scores that is the same of every part of all ``n``."""
    stride = n // _SAMPLE | 1  # odd, so that it does not march along one column of a power-of-two matrix
    return torch.cat([score[::stride] for score in flat])


def bracket(sample: Tensor, k: int, n: int) -> tuple[float, float]:
    """Two values that the k-th smallest of ``n`` lies between, as far as a sample of them can tell."""
    sample = _ascending(sample)
    # A margin of six standard deviations of the rank, or more.
    rank, margin = k * sample.numel() // n, 3 * isqrt(sample.numel())
    low = float(sample[max(0, rank - margin)]) if rank > margin else -torch.inf
    high = float(sample[rank + margin]) if rank + margin < sample.numel() else torch.inf
    return low, high


def within(flat: Sequence[Tensor], low: float, high: float) -> tuple[list[int], Tensor]:
    """How many scores are ``< low``, ``<= low``, ``< high`` and ``<= high``; and those between the two.

    Ends are counted apart: where many scores are the same (masked ones are all -inf), an end is one of them.
    """
    between = [score[compared(score, gt, low) & compared(score, lt, high)] for score in flat]
    below, up_to, through = (sum(count(score, *each) for score in flat) for each in ((lt, low), (le, low), (le, high)))
    inside = torch.cat(between)
    return [below, up_to, up_to + inside.numel(), through], inside


def at_end(counts: Sequence[int], low: float, high: float, k: int) -> float | None:
    """``low`` or ``high``, where the k-th smallest is one of them; ``counts`` as ``within`` gives them."""
    if counts[0] < k <= counts[1]:
        return low
    return high if counts[2] < k <= counts[3] else None


def compared(score: Tensor, operator: Callable[[Any, float], Any], value: float) -> Tensor:
    """``score < value`` and the like; numpy's comparisons take a third of the time of torch's on a CPU."""
    if score.device.type == "cpu" and score.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(operator(score.numpy(), value))
    result: Tensor = operator(score, value)
    return result


def count(score: Tensor, operator: Callable[[Any, float], Any], value: float) -> int:
    """For how many scores ``operator(score, value)`` is true."""
    return int(torch.count_nonzero(compared(score, operator, value)))


def _ascending(values: Tensor) -> Tensor:
    """Sorts, in place where it can; numpy's sort is vectorised and takes a tenth of the time of torch's on a CPU."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        values.numpy().sort()
        return values
    return values.sort().values


def cut_lowest(score: Tensor, k: int) -> Cut:
    """The cut that takes the ``k`` lowest of one tensor's scores."""
    return Cut(k, kth_smallest([score], k) if k else -torch.inf)


def kept(score: Tensor, cut: Cut) -> Tensor:
    """Bool of ``score``'s shape, False at exactly ``cut.k`` places."""
    if cut.k == 0:
        return torch.ones_like(score, dtype=torch.bool)
    keep = compared(score, gt, cut.threshold)
    excess = score.numel() - int(torch.count_nonzero(keep)) - cut.k
    if excess > 0:
        ties = (score == cut.threshold).flatten().nonzero().flatten()
        keep = keep.flatten()
        keep[ties[ties.numel() - excess :]] = True
        keep = keep.view(score.shape)
    return keep
