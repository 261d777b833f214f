"""How many threads PyTorch trains with."""

import torch

from prunus.runtime.processors import processors

__all__ = ["training_threads"]


def training_threads(stated: int | None) -> int:
    """What a recipe states; else PyTorch's own choice, and no more than affinity and CPU quota give (PyTorch sees no quota)."""
    return stated or min(torch.get_num_threads(), max(1, processors()))
