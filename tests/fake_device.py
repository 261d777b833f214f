"""A second device that needs no hardware: tensors on ``lazy:0`` hold their numbers on the CPU, and refuse what a GPU refuses.

    with fake_device() as device:
        model.to(device)                     # parameters, gradients, optimizers, whole trainings

An operator whose tensors lie on different devices raises, as a kernel of CUDA does. PyTorch ships no kernels for the device
type ``lazy``, so what reaches it is computed here, by the kernels of the CPU. Saving is not possible: there is no storage.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")
_MAY_MIX = ("aten::copy_", "aten::_to_copy")


class There(torch.Tensor):
    """A tensor that says it is elsewhere."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> "There":
        more = {"strides": numbers.stride(), "dtype": numbers.dtype, "storage_offset": numbers.storage_offset()}
        made: There = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, device=DEVICE, **more)
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    stays = bool(there)
    # A number without dimensions may come from the CPU, as on CUDA.
    if there and any(t.dim() for t in tensors if not isinstance(t, There)) and func._schema.name not in _MAY_MIX:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func._schema.name}")
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = lambda leaf: leaf.numbers if isinstance(leaf, There) else leaf  # noqa: E731
    result = func(*tree_map(held, args), **tree_map(held, kwargs))
    if not stays:
        return result
    changed = {id(tensor.numbers): tensor for tensor in there}  # what is changed in place stays the same tensor

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return changed[id(leaf)] if id(leaf) in changed else There(leaf)

    return tree_map(wrapped, result)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """``torch.tensor(..., device=...)`` never reaches the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """While it lasts, tensors can be on ``DEVICE``, and accelerate's trainings run there."""
    from accelerate.state import AcceleratorState
    from transformers import TrainingArguments

    try:
        with (
            patch("torch.autocast", lambda *args, **kwargs: nullcontext()),  # which knows no such device
            patch.object(TrainingArguments, "device", property(_device_of)),
            _Dispatch(),
            _Factories(),
        ):
            yield DEVICE
    finally:
        AcceleratorState._reset_state(True)  # and that of PartialState: the next training sets up its own


def _device_of(arguments: Any) -> torch.device:
    from accelerate import PartialState

    arguments._setup_devices  # noqa: B018 (a property that sets up processes)
    PartialState().device = DEVICE
    return DEVICE
