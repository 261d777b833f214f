"""The pattern that the zeros of a model form, checked against what is declared of it (see ``locking``)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunus.errors import Problem, TargetError
from prunus.sparsity.measure import zero_units
from prunus.sparsity.patterns import NofM, Pattern
from prunus.sparsity.wrappers import parameter

__all__ = ["masks_of_zeros"]

STRAY = 1e-3
"""Share of zeros (N:M: of groups) that may lie outside the pattern: weights that are zero by chance."""


@torch.no_grad()
def masks_of_zeros(
    model: nn.Module,
    names: Iterable[str],
    pattern: Pattern,
    sparsity: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    key: str = "lock",
) -> dict[str, Tensor]:
    """Masks (bool ``[out, in]``, True = kept) of the named weights that have zeros.

    Of a weight with a saved mask in ``masks`` that mask is the pattern: rounding to 8 bits makes zeros beside it, which are
    weights like any other. Raises ``TargetError`` with everything in which the zeros are not what was declared.
    """
    problems: list[Problem] = []
    zeros: dict[str, Tensor] = {}
    outside = inside = total = weights = 0
    for name in names:
        weight = parameter(model, name).detach()
        zero = weight == 0
        weights += zero.numel()
        if masks is not None and name in masks:
            wrong = damaged(name, zero, masks[name])
            problems += wrong
            zero = zero if wrong else ~masks[name].to(zero.device)
        count = int(torch.count_nonzero(zero))
        if not count:
            continue
        zeros[name], total = ~zero, total + count
        rows, columns = pattern.units((weight.shape[0], weight.shape[1]))
        whole = zero_units((~zero).float(), pattern)
        if isinstance(pattern, NofM):
            outside, inside = outside + rows * columns - whole, inside + rows * columns
        else:
            outside += count - whole * pattern.zeros_per_unit((weight.shape[0], weight.shape[1]))
            inside += count
    if not total:
        rule = "hold zero weights, which are then kept zero"
        raise TargetError(Problem(key, f"no zero in {weights:,} weights", rule, "a pruned model, or other targets"))
    if outside > STRAY * inside:
        what = "groups have too few zeros" if isinstance(pattern, NofM) else f"zeros lie outside whole {pattern} units"
        got = f"{outside:,} of {inside:,} {what} ({outside / inside:.1%})"
        rule = f"be the pattern of the zeros, but for {STRAY:.1%}"
        problems.append(Problem(f"{key}.pattern", f"{pattern}: {got}", rule, "unstructured, or the intact model"))
    if sparsity is not None and abs(total / weights - sparsity) > STRAY:
        rule = f"be the share of zeros in the targets, {total / weights:.4f}"
        problems.append(Problem(f"{key}.sparsity", sparsity, rule, "leaving it out, or the intact model"))
    if problems:
        raise TargetError(*problems)
    return zeros


def damaged(name: str, zero: Tensor, mask: Tensor) -> list[Problem]:
    """What a saved mask says against the zeros of one weight."""
    if mask.shape != zero.shape:
        rule = f"have the shape {list(zero.shape)} of the weight"
        return [Problem(f"mask of {name}", list(mask.shape), rule, "the masks of this model")]
    locked = ~mask.to(zero.device)
    broken, places = int(torch.count_nonzero(locked & ~zero)), int(torch.count_nonzero(locked))
    if not broken:
        return []
    got = f"{broken:,} of {places:,} weights that its mask locks are not zero"
    return [Problem(name, got, "be zero where its mask says so", "the directory as it was saved")]
