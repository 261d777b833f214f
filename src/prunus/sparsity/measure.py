"""Measures: what is zero, counted from the weights themselves and never from a plan.

sparsity of the targets        zeros / weights, over the tensors that a rule prunes
sparsity of all weights        zeros / parameters, over every parameter of the model
zero units                     units of the pattern whose zeros are all there (a 4x1 block of four zeros; an N:M group
                               with at least M - N zeros)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.sparsity.patterns import NofM, Pattern
from prunus.sparsity.wrappers import parameter

__all__ = ["TensorFacts", "all_sparsity", "counted", "is_sharded", "measure", "sparsity_of", "whole", "zero_units"]


@dataclass(frozen=True)
class TensorFacts:
    """What was counted in one tensor."""

    name: str
    shape: tuple[int, int]
    pattern: str
    weights: int
    zeros: int
    units: int
    zero_units: int

    @property
    def sparsity(self) -> float:
        """zeros / weights."""
        return self.zeros / self.weights


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered in every process; all of them call it."""
    sharded: Any = tensor
    return tensor if not is_sharded(tensor) else sharded.full_tensor()


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``, whose class takes half a second to import and is not needed elsewhere."""
    return hasattr(tensor, "placements")


def zero_units(weight: Tensor, pattern: Pattern) -> int:
    """How many units of ``pattern`` in a weight ``[out, in]`` are as sparse as the pattern makes them."""
    zero = (weight == 0).float()
    if isinstance(pattern, NofM):
        groups = zero.reshape(weight.shape[0], -1, pattern.m).sum(-1)
        return int((groups >= pattern.m - pattern.n).sum())
    return int((pattern.pool(zero, "mean") == 1).sum())


def measure(model: nn.Module, patterns: Mapping[str, Pattern]) -> list[TensorFacts]:
    """Counts zeros and zero units in the named tensors of ``model``."""
    return [counted(name, parameter(model, name), pattern) for name, pattern in patterns.items()]


def counted(name: str, weight: Tensor, pattern: Pattern) -> TensorFacts:
    """Counts zeros and zero units of ``pattern`` in a weight ``[out, in]``; of a sharded one all processes call it."""
    values = whole(weight.detach())
    shape = (values.shape[0], values.shape[1])
    rows, columns = pattern.units(shape)
    zeros = int((values == 0).sum())
    return TensorFacts(name, shape, str(pattern), values.numel(), zeros, rows * columns, zero_units(values, pattern))


def sparsity_of(facts: Iterable[TensorFacts]) -> float:
    """zeros / weights over the given tensors; 0 for none."""
    facts = list(facts)
    weights = sum(fact.weights for fact in facts)
    return sum(fact.zeros for fact in facts) / weights if weights else 0.0


def all_sparsity(model: nn.Module) -> float:
    """zeros / parameters over every parameter of the model, shared ones once."""
    zeros = total = 0
    for weight in model.parameters():
        zeros += int((whole(weight.detach()) == 0).sum())
        total += weight.numel()
    return zeros / total if total else 0.0
