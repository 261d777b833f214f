"""The CPU runtime: sparse encoders, in float32 or int8, faster than dense ones. Needs numpy and llvmlite, not torch.

load(dir) -> Engine       a packed model (``prunus export DIR --to prunus``)
accelerate(model)         sparse linear layers in any PyTorch model
"""

from typing import TYPE_CHECKING, Any

from prunus.runtime.engine import Engine, Output, load

if TYPE_CHECKING:
    from prunus.runtime.modules import SparseLinear, accelerate

__all__ = ["Engine", "Output", "SparseLinear", "accelerate", "load"]


def __getattr__(name: str) -> Any:
    if name in {"SparseLinear", "accelerate"}:  # these need torch
        from prunus.runtime import modules

        return getattr(modules, name)
    raise AttributeError(f"module 'prunus.runtime' has no attribute {name!r}")
