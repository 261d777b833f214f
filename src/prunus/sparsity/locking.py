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
from typing import Any, final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus.errors import Problem, TargetError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts
from prunus.sparsity.targets import Targets

__all__ = ["Lock", "lock"]


@final
class Lock:
    """Keeps zeros zero after every step of any ``torch.optim`` optimizer that holds parameters of the model."""

    def __init__(self, model: nn.Module, masker: Masker) -> None:
        self.masker = masker
        self._model = ref(model)
        self._handle = register_optimizer_step_post_hook(self._after)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        model = self._model()
        if model is None:
            self._handle.remove()
            return
        own = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            self.masker.apply(model)

    def remove_pruning(self) -> list[TensorFacts]:
        """Lets go; the weights stay as they are. Returns what was counted in them.

        Raises ``TrainingError`` where a locked weight is not zero.
        """
        self._handle.remove()
        model = self._model()
        return [] if model is None else self.masker.finish(model)


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
