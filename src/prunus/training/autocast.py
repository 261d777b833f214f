"""What accelerate lays around a model's ``forward`` for mixed precision, taken off again.

``accelerator.unwrap_model(keep_fp32_wrapper=False)`` takes it off for good and keeps the mark of a prepared model; evaluation
between two steps needs it back, and a second training needs the mark gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_float32", "release"]


def release(model: nn.Module) -> None:
    """Takes off what accelerate laid on a model: the autocast (what is measured afterwards is float32), and the mark that
    would keep the next training from having its own.
    """
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        model.__dict__.pop(name, None)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Without the autocast that accelerate lays around a model's forward, and leaves there when the training is over."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped
