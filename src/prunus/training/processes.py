"""Several processes that train one model, as ``accelerate launch`` or ``torchrun`` starts them.

Every process prepares, trains and scores the same; the first one alone prints and writes. A recipe's ``batch_size`` is that of
all of them together, so that the same recipe makes the same steps whatever their number.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["count", "first", "first_before_others", "together"]


def count() -> int:
    """How many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    held = os.environ.get("WORLD_SIZE", "1")
    return int(held) if held.isdecimal() else 1


def first() -> bool:
    """Whether this is the one that prints and writes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def together() -> None:
    """Waits for the others."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


@contextmanager
def first_before_others() -> Iterator[None]:
    """What is made once and then found: the first process makes it, the others come after."""
    if count() > 1 and not first():
        together()
    try:
        yield
    finally:
        if count() > 1 and first():
            together()
