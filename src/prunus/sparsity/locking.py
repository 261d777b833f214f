"""Locking: the zeros that a model has are its pattern, and stay zero whatever trains it.

    mask = (w != 0), element by element

What is declared of the pattern is checked against what is found, before anything is trained:

    RxC, rows, columns    zeros outside whole units are at most 0.1 % of all zeros
    N:M                   groups with fewer than M - N zeros are at most 0.1 % of all groups
    sparsity              zeros / weights is at most 0.001 away
    masks                 no weight that a saved mask locks is other than zero

A dense model becomes no sparser by it. Zafrir et al. 2021 (arXiv:2111.05754) call it pattern-lock.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, final
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from prunus.errors import Problem, TargetError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts
from prunus.sparsity.targets import Targets
from prunus.sparsity.wrappers import unwrapped

__all__ = ["Lock", "lock"]

_LOCKS: Final[WeakKeyDictionary[nn.Module, tuple["Lock", ...]]] = WeakKeyDictionary()
"""The locks of each model. A lock lives as long as its model, whether anybody keeps the lock or not."""


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for model, locks in list(_LOCKS.items()):
        if any(id(parameter) in trained for parameter in model.parameters()):
            for each in locks:
                each.masker.apply(model)


@cache
def _listen() -> RemovableHandle:
    """Registers the hook of this module with torch, once for the process.

    It is never taken away: torch walks through its hooks while they run, so none may be removed in one, and a model can be
    collected at any moment.
    """
    return register_optimizer_step_post_hook(_after_step)


@final
class Lock:
    """Keeps zeros zero after every step of any ``torch.optim`` optimizer that holds parameters of the model."""

    def __init__(self, model: nn.Module, masker: Masker) -> None:
        model = unwrapped(model)  # a wrapper may be dropped while the model goes on
        self.masker = masker
        self._model = ref(model)
        _LOCKS[model] = (*_LOCKS.get(model, ()), self)
        _listen()

    def remove_pruning(self) -> list[TensorFacts]:
        """Lets go; the weights stay as they are. Returns what was counted in them.

        Raises ``TrainingError`` where a locked weight is not zero.
        """
        model = self._model()
        if model is None:
            return []
        left = tuple(each for each in _LOCKS.get(model, ()) if each is not self)
        _LOCKS[model] = left
        if not left:
            del _LOCKS[model]
        return self.masker.finish(model)


def lock(
    model: nn.Module,
    *,
    pattern: str = "unstructured",
    sparsity: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    targets: Targets | None = None,
) -> Lock:
    """Keeps a sparse model sparse: train it as you like, its zeros stay.

        scheduler = prunus.lock(model)
        ...                                # train; any optimizer, weight decay, accumulation, DDP
        scheduler.remove_pruning()         # or nothing at all

    Args:
        model: a model with zeros in its Linear weights, from anywhere. Its parameters are not replaced or renamed.
        pattern: what the zeros are expected to form; ``4x1`` (outputs x inputs), ``2:4``, ...
        sparsity: what share of the targets is expected to be zero.
        masks: saved masks (bool, True = kept) that the zeros must agree with.
        targets: which weights; all Linear weights outside embeddings and heads by default.

    Raises:
        TargetError: no zeros, or others than were declared; says what was found.

    """
    if not isinstance(model, nn.Module):
        raise TargetError(Problem("model", type(model).__name__, "be a torch.nn.Module", "the model itself"))
    return Lock(model, Masker.lock(model, targets, pattern=pattern, sparsity=sparsity, masks=masks))
