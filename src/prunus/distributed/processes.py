"""Several processes that train one model, as ``accelerate launch`` or ``torchrun`` starts them.

Every process prepares, trains and scores the same; only the main process (rank 0) prints and writes. A recipe's ``batch_size``
is the total over all processes, so the same recipe takes the same steps whatever their number.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from prunus.errors import PrunusError
from prunus.runtime.processors import processors

__all__ = [
    "barrier",
    "from_main_process",
    "is_main_process",
    "leave_process_group",
    "main_process_first",
    "process_count",
    "training_threads",
]

_T = TypeVar("_T")


def process_count() -> int:
    """The number of processes that train together; 1 outside of a distributed launch."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def is_main_process() -> bool:
    """Whether this process has rank 0, which prints and writes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def barrier() -> None:
    """Waits until every process has reached this call."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Runs the block in the main process first, then in the others, which find in the cache what it wrote."""
    if process_count() > 1 and not is_main_process():
        barrier()
    try:
        yield
    finally:
        if process_count() > 1 and is_main_process():
            barrier()


def from_main_process(make: Callable[[], _T]) -> _T:
    """Calls ``make`` in the main process alone and returns its result, or raises its ``PrunusError``, in every process.

    For values that differ between processes, such as measured times.
    """
    if process_count() == 1:
        return make()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.accelerator.is_available())
    results: list[_T | PrunusError | None] = [None]
    if is_main_process():
        try:
            results = [make()]
        except PrunusError as error:
            results = [error]
    made: _T | PrunusError = broadcast_object_list(results)[0]
    if isinstance(made, PrunusError):
        raise made
    return made


def leave_process_group() -> None:
    """Destroys torch's process group if there is one.

    If that is left to the end of the interpreter, a gloo thread that still holds a tensor can abort a finished process.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def training_threads(stated: int | None) -> int:
    """The number of threads PyTorch trains with: ``stated`` by the recipe, or PyTorch's choice within the CPU quota.

    PyTorch sees neither the affinity mask nor the quota of a container.
    """
    return stated or min(torch.get_num_threads(), max(1, processors()))
