"""Criteria: how much a weight matters. Higher is kept.

Every criterion is a *contribution* c of the weight w and its gradient g = dL/dw, elementwise over ``[out, in]``, and a
*history* h in [0, 1] that says how the score s remembers earlier optimizer steps t:

    s_t = h * s_{t-1} + R(c(w_t, g_t))          s_0 = 0,  R pools weights to the pattern's units

==============  ===========  ====  ==========================================================================
criterion       c(w, g)      h     source
==============  ===========  ====  ==========================================================================
magnitude       |w|          0     Han et al. 2015, arXiv:1506.02626; taken when masks are updated, no gradient
gradient        |g|          0     the last step's gradient
snip            |w * g|      0     SNIP, Lee et al. 2019, arXiv:1810.02340, equation 3
snip_momentum   |w * g|      0.9   Intel Neural Compressor 2.x: 0.9 on the history, 1 on the new term
movement        -w * g       1     Movement pruning, Sanh et al. 2020, arXiv:2005.07683, equation 3, learning rate 1
first_order     w * g        1     Michel et al. 2019, arXiv:1905.10650, equation 2: R |sum of c|, h 0 after each update
wanda           |w| * ||x||  0     Sun et al. 2023, arXiv:2306.11695, equation 1: x its inputs since the last update
random          u(0, 1)      0     a control; drawn once from a seed, so that masks grow and do not jump
==============  ===========  ====  ==========================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from prunus.errors import Problem, TargetError, nearest

__all__ = ["CRITERIA", "Criterion", "criterion"]


@dataclass(frozen=True)
class Criterion:
    """A contribution and its history. ``contribution`` is None for random, whose scores are drawn and not computed."""

    name: str
    needs_gradient: bool
    history: float
    contribution: Callable[[Tensor, Tensor], Tensor] | None
    needs_input: bool = False
    """The contribution is of the weight and of the norms of its inputs ``[in]``, in the place of the gradient."""
    of_units: bool = False
    """The contributions of a unit are summed, and then their absolute value counts; a mask update begins a new sum."""


def _magnitude(weight: Tensor, grad: Tensor) -> Tensor:
    return weight.abs()


def _gradient(weight: Tensor, grad: Tensor) -> Tensor:
    return grad.abs()


def _snip(weight: Tensor, grad: Tensor) -> Tensor:
    return (weight * grad).abs_()


def _first_order(weight: Tensor, grad: Tensor) -> Tensor:
    return weight * grad


def _movement(weight: Tensor, grad: Tensor) -> Tensor:
    return (weight * grad).neg_()


CRITERIA: Final[dict[str, Criterion]] = {
    "magnitude": Criterion("magnitude", False, 0.0, _magnitude),
    "gradient": Criterion("gradient", True, 0.0, _gradient),
    "snip": Criterion("snip", True, 0.0, _snip),
    "snip_momentum": Criterion("snip_momentum", True, 0.9, _snip),
    "first_order": Criterion("first_order", True, 1.0, _first_order, of_units=True),
    "movement": Criterion("movement", True, 1.0, _movement),
    "wanda": Criterion("wanda", False, 0.0, _snip, needs_input=True),
    "random": Criterion("random", False, 0.0, None),
}


def criterion(name: str, key: str = "criterion") -> Criterion:
    """The criterion of that name, or a ``TargetError`` that names the nearest."""
    if name not in CRITERIA:
        rule = "be one of " + ", ".join(CRITERIA)
        raise TargetError(Problem(key, name, rule, nearest(name, CRITERIA)))
    return CRITERIA[name]
