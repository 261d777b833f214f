"""The pattern that the zeros of a model form, checked against what is declared of it (see ``locking``)."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import Problem, TargetError, nearest
from prunus.sparsity.measure import whole, zero_units
from prunus.sparsity.patterns import NofM, Pattern
from prunus.sparsity.wrappers import parameter, plain_names

__all__ = ["masks_by_name", "masks_of_zeros"]

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

    Of a weight with a mask in ``masks`` (from ``masks_by_name``) that mask is the pattern: rounding to 8 bits makes zeros
    beside it, which are weights like any other. Of sharded weights the masks are whole, and all processes call it. Raises
    ``TargetError`` with everything in which the zeros are not what was declared.
    """
    problems: list[Problem] = []
    zeros: dict[str, Tensor] = {}
    outside = inside = total = weights = 0
    for name in names:
        weight = whole(parameter(model, name).detach())
        if weight.is_meta:
            text = "hold numbers, some of which are zero"
            raise TargetError(Problem(name, "the meta device", text, "loading the weights first"))
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
        complete = zero_units((~zero).float(), pattern)
        if isinstance(pattern, NofM):
            outside, inside = outside + rows * columns - complete, inside + rows * columns
        else:
            outside += count - complete * pattern.zeros_per_unit((weight.shape[0], weight.shape[1]))
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


def masks_by_name(
    model: nn.Module,
    masks: Mapping[str, Any],
    taken: Collection[str] | None = None,
    *,
    skip_unknown: bool = False,
    key: str = "lock.masks",
) -> dict[str, Tensor]:
    """Masks (bool ``[out, in]``, True = kept) by the plain names of ``model``.

    ``masks`` may bear the names that the weights have in a wrapper of the model or in the model inside it, and may be torch
    tensors or NumPy arrays of bool or of exactly 0 and 1. With ``skip_unknown``, names that are not in the model are left out;
    they are an error otherwise, and so are masks of weights outside ``taken``, where that is given. Raises ``TargetError``.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(name, str) for name in masks):
        got = f"a {type(masks).__name__}" + (" with other keys" if isinstance(masks, Mapping) else "")
        raise TargetError(Problem(key, got, "be a dictionary of masks by name", "{'encoder.....weight': mask}"))
    if not masks and not skip_unknown:
        raise TargetError(Problem(key, {}, "hold at least one mask", "leaving it out, or the masks of this model"))
    names = plain_names(model, masks)
    result: dict[str, Tensor] = {}
    problems: list[Problem] = []
    unknown = [given for given, name in names.items() if name is None]
    if unknown and not skip_unknown:
        problems.append(_unknown(model, unknown, key))
    for given, name in names.items():
        if name is None:
            continue
        mask = _as_bool(masks[given])
        if isinstance(mask, str):
            rule = "be a torch tensor or NumPy array of bool, or of 0 and 1"
            problems.append(Problem(f"{key}[{given!r}]", mask, rule, "weight != 0, True where a weight is kept"))
        elif name in result:
            rule = f"be the only mask of {name}"
            problems.append(Problem(f"{key}[{given!r}]", "a second mask of it", rule, "one mask for each weight"))
        elif taken is not None and name not in taken:
            rule = "belong to a weight of the targets, which are locked"
            problems.append(
                Problem(f"{key}[{given!r}]", "another weight", rule, "targets with an include that names it")
            )
        else:
            result[name] = mask
    if problems:
        raise TargetError(*problems)
    return result


def _unknown(model: nn.Module, unknown: list[str], key: str) -> Problem:
    listed = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
    known = [name for name, weight in model.named_parameters() if weight.dim() == 2]
    fix = nearest(unknown[0], known) if known else ""
    return Problem(key, f"unknown names: {listed}", "name weights of the model", fix)


def _as_bool(mask: Any) -> Tensor | str:
    """A mask as bool, or what it is where it is no mask."""
    if hasattr(mask, "__array_interface__") and mask.dtype.kind in "biuf":  # NumPy's
        other = int(((mask != 0) & (mask != 1)).sum())
        return torch.as_tensor(mask == 1) if not other else f"{other:,} numbers other than 0 and 1"
    if not isinstance(mask, Tensor) or mask.is_meta or mask.is_quantized:
        return f"a {type(mask).__name__}" + (" on the meta device, or quantized" if isinstance(mask, Tensor) else "")
    values = whole(mask.detach())
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.dtype == torch.bool:
        return values
    if values.is_floating_point():
        values = values.double()  # not every type of 8 bits can be compared
    other = int(torch.count_nonzero((values != 0) & (values != 1)))
    return values == 1 if not other else f"{other:,} numbers other than 0 and 1"
