"""Scores that learn: movement pruning, hard and soft (Sanh et al. 2020, arXiv:2005.07683).

With w the dense weight behind the mask, g = dL/d(w m) and n the units of a tensor, of M tensors

    G_t  = R(w g) + l_t / (M n) sigma'(s)          straight through the mask; the second term is soft movement's regulariser
    s   <- Adam(s, G_t), learning rate = learning_rate x the share of the peak that the weights' own rate has now

    hard    m keeps the k highest s, k by the schedule's sparsity
    soft    m keeps sigma(s) > tau_t, and at least 0.5 % of a tensor's units;
            tau_t = threshold x share, l_t = regularization x share

share is that part of the way which the schedule has gone (1 - (1 - x)^3 of ``polynomial``). Scores begin at 0. A masked weight
gets no gradient, as in the paper; its score does, and brings it back.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from prunus.errors import Problem

__all__ = ["Scores", "learn", "least_kept", "regularizer_gradient"]

_BETAS: Final = (0.9, 0.999)
_EPSILON: Final = 1e-8


@dataclass(frozen=True)
class Scores:
    """How scores learn; see the module's equations."""

    learning_rate: float = 0.01
    threshold: float | None = None
    """tau, of soft movement; the sparsity is then what comes of it, and is not asked for."""
    regularization: float = 0.0
    """l at the end: the higher, the sparser."""

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with these numbers."""
        found = []
        if not self.learning_rate > 0:
            found.append(Problem(f"{key}.learning_rate", self.learning_rate, "be above 0", "0.01"))
        if self.threshold is not None and not 0 < self.threshold < 1:
            found.append(Problem(f"{key}.threshold", self.threshold, "be in (0, 1)", "0.1"))
        if not self.regularization >= 0:
            found.append(Problem(f"{key}.regularization", self.regularization, "be 0 or above", "190"))
        if self.regularization and self.threshold is None:
            rule = "come with threshold: hard movement goes by its schedule"
            found.append(Problem(f"{key}.regularization", self.regularization, rule, "threshold: 0.1"))
        return found


def regularizer_gradient(score: Tensor, strength: float, tensors: int, units: int | None = None) -> Tensor:
    """d/ds of ``strength`` x the mean over ``tensors`` of the mean of sigma(s), for one of them.

    ``units`` is how many scores the tensor has, where ``score`` is a part of them.
    """
    sigma = torch.sigmoid(score)
    return sigma * (1 - sigma) * (strength / (tensors * (units or score.numel())))


def learn(score: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rate: float, step: int) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), in place; ``step`` counts from 1."""
    first.lerp_(gradient, 1 - _BETAS[0])
    second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    size = (second / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
    score.addcdiv_(first, size, value=-rate / (1 - _BETAS[0] ** step))


def least_kept(units: int) -> int:
    """How many units of a tensor soft movement keeps whatever their scores."""
    return min(units, int(0.005 * units) + 1)
