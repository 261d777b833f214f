"""First ranges from real samples: what a tensor spanned while the model ran in float.

min_max         the lowest and the highest number of all batches
mean_min_max    the mean over the batches of each one's lowest, and of each one's highest
percentile      the mean over the batches of the 0.1th and the 99.9th percentile
"""

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from prunus.quantization.spec import Estimator

__all__ = ["Observed"]

TAIL: Final = 0.001
MOST: Final = 1 << 20
"""Numbers that a percentile is taken from; of a larger tensor, evenly spaced ones."""


@dataclass
class Observed:
    """What a tensor spanned in each batch."""

    estimator: Estimator
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)

    def see(self, x: Tensor) -> None:
        """One batch."""
        flat = x.detach().float().flatten()
        if not len(flat):
            return
        if self.estimator == "percentile":
            some = flat[:: 1 + (len(flat) - 1) // MOST]
            low, high = torch.quantile(some, torch.tensor([TAIL, 1 - TAIL], device=some.device)).tolist()
        else:
            low, high = (value.item() for value in torch.aminmax(flat))
        self.lows.append(low)
        self.highs.append(high)

    def span(self) -> tuple[float, float]:
        """Lowest and highest, as the estimator has it; (0, 0) where nothing was seen."""
        if not self.lows:
            return 0.0, 0.0
        if self.estimator == "min_max":
            return min(self.lows), max(self.highs)
        return sum(self.lows) / len(self.lows), sum(self.highs) / len(self.highs)
