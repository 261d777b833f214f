"""Several processes that train one model, as ``accelerate launch`` or ``torchrun`` starts them.

Every process prepares, trains and scores the same; the first one alone prints and writes. A recipe's ``batch_size`` is that of
all of them together, so that the same recipe makes the same steps whatever their number.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from prunus.errors import PrunusError

__all__ = ["count", "first", "first_before_others", "from_first", "leave", "together"]

_T = TypeVar("_T")


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


def from_first(make: Callable[[], _T]) -> _T:
    """What ``make`` returns, or raises as a ``PrunusError``, in the first process; it is called nowhere else.

    For what no two processes find alike, such as times.
    """
    if count() == 1:
        return make()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.accelerator.is_available())
    held: list[_T | PrunusError | None] = [None]
    if first():
        try:
            held = [make()]
        except PrunusError as error:
            held = [error]
    made: _T | PrunusError = broadcast_object_list(held)[0]
    if isinstance(made, PrunusError):
        raise made
    return made


def leave() -> None:
    """Ends the group of processes, where this one is in one; nothing otherwise.

    Left to the interpreter's end, a thread of gloo that still holds a tensor can abort a process that has done its work.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
