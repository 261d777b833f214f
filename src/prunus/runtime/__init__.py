"""The CPU runtime: sparse encoders, in float32 or int8, faster than dense ones. Needs numpy and llvmlite, not torch.

load(dir) -> Engine       a packed model (``prunus export DIR --to prunus``)
"""

from prunus.runtime.engine import Engine, Output, load

__all__ = ["Engine", "Output", "load"]
