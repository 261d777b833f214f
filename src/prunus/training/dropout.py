"""Dropout of one training, whatever the model's configuration says.

A pruned model that a teacher teaches from plenty of text has little to overfit with; noise in its activations is then a floor
under what it can learn. Models keep the probability as ``p`` of ``nn.Dropout`` modules, or as a number of a module's own whose
name has "dropout" in it, which they hand to functions; both are set, and set back. The configuration is not touched: what is
saved trains with its own dropout again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["dropout"]


@contextmanager
def dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Every dropout of ``model`` has this ``probability`` until the end; None leaves the model's own."""
    before = [] if probability is None else [(m, name, getattr(m, name)) for m in model.modules() for name in _names(m)]
    for module, name, _ in before:
        setattr(module, name, probability)
    try:
        yield
    finally:
        for module, name, before_value in before:
            setattr(module, name, before_value)


def _names(module: nn.Module) -> list[str]:
    if isinstance(module, _DropoutNd):
        return ["p"]
    return [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]
