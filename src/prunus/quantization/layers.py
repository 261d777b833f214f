"""Layers that train as if they were stored in 8 bits. Names of parameters do not change: ``weight`` and ``bias`` stay where
they were, ranges come beside them (``weight_range``, ``input_range.low``, ...): the float model reads the checkpoint as it is.

    y = quantize_out( quantize_in(x) quantize(w)^T + b )

Prune, then quantize: w is what the masks left, and zero is on every grid.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.grid import SMALLEST_RANGE
from prunus.quantization.fake import asymmetric, symmetric
from prunus.quantization.ranges import Observed
from prunus.quantization.spec import Estimator

__all__ = ["RANGES", "ActivationRange", "QuantEmbedding", "QuantLinear", "observing", "row_ranges"]


RANGES = ("weight_range", "_range.low", "_range.high", "_range.bound")
"""How the names of learned ranges end."""


class ActivationRange(nn.Module):
    """The learned range of one activation: ``low`` and ``high`` of a byte, or ``bound`` of a signed byte.

    ``device`` is that of the layer's weight.
    """

    def __init__(self, signed: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.signed = signed
        self.observed: Observed | None = None
        names = ("bound",) if signed else ("low", "high")
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones((), device=device)))

    def forward(self, x: Tensor) -> Tensor:
        """x, on the grid; unchanged while ranges are observed."""
        if self.observed is not None:
            self.observed.see(x)
            return x
        if self.signed:
            return symmetric(x, self.get_parameter("bound"))
        return asymmetric(x, self.get_parameter("low"), self.get_parameter("high"))

    @torch.no_grad()
    def start(self, low: float, high: float) -> None:
        """Sets the range from what was observed."""
        if self.signed:
            self.get_parameter("bound").fill_(max(abs(low), abs(high), SMALLEST_RANGE))
        else:
            self.get_parameter("low").fill_(min(low, 0.0))
            self.get_parameter("high").fill_(max(high, 0.0, min(low, 0.0) + SMALLEST_RANGE))

    def extra_repr(self) -> str:
        """Signed or not."""
        return f"signed={self.signed}"


def row_ranges(weight: Tensor) -> Tensor:
    """The largest magnitude of each row ``[rows, 1]``; a row of zeros has the range 1."""
    largest = weight.detach().float().abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


class QuantLinear(nn.Linear):
    """``nn.Linear`` with 8-bit inputs and weights; the parameters of the layer it replaces are taken over as they are.

    ``owner`` is a quantized layer with the same weight. Its weight range then counts, and this layer has none of its own.
    """

    weight_range: nn.Parameter | None

    def __init__(self, dense: nn.Linear, bits: int = 8, owner: "QuantLinear | QuantEmbedding | None" = None) -> None:
        super().__init__(dense.in_features, dense.out_features, dense.bias is not None, device="meta")
        self.weight, self.bias, self.bits = dense.weight, dense.bias, bits
        self.tied = () if owner is None else (owner,)
        self.weight_range = nn.Parameter(row_ranges(dense.weight)) if owner is None else None
        self.input_range: ActivationRange | None = None
        self.output_range: ActivationRange | None = None
        self.shared: tuple[ActivationRange, ...] = ()
        """The input range of another layer that reads the same tensor; owned (and saved) there."""
        self.train(dense.training)

    @property
    def weight_bound(self) -> Tensor:
        """The range of its weight ``[out_features, 1]``, its own or that of the layer with the same weight."""
        return bound_of(self)

    @property
    def reads(self) -> ActivationRange | None:
        """The range of its input, its own or shared."""
        return self.shared[0] if self.shared else self.input_range

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Linear)
        """``[..., in_features]`` -> ``[..., out_features]``."""
        if self.reads is not None:
            input = self.reads(input)  # noqa: A001
        weight = self.weight
        if self.reads is None or self.reads.observed is None:
            weight = symmetric(weight, self.weight_bound, self.bits, narrow=True)
        y = functional.linear(input, weight, self.bias)
        return y if self.output_range is None else self.output_range(y)


class QuantEmbedding(nn.Embedding):
    """``nn.Embedding`` with 8-bit rows; ``bits`` and ``owner`` as in ``QuantLinear``."""

    weight_range: nn.Parameter | None

    def __init__(self, dense: nn.Embedding, bits: int = 8, owner: "QuantLinear | QuantEmbedding | None" = None) -> None:
        options: dict[str, Any] = {"padding_idx": dense.padding_idx, "max_norm": dense.max_norm, "device": "meta"}
        super().__init__(dense.num_embeddings, dense.embedding_dim, **options)
        self.weight, self.bits = dense.weight, bits
        self.tied = () if owner is None else (owner,)
        self.weight_range = nn.Parameter(row_ranges(dense.weight)) if owner is None else None
        self.train(dense.training)

    @property
    def weight_bound(self) -> Tensor:
        """The range of each row ``[num_embeddings, 1]``, its own or that of the layer with the same weight."""
        return bound_of(self)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Embedding)
        """Ids -> rows."""
        rows = super().forward(input)
        bound = functional.embedding(input, self.weight_bound)
        return symmetric(rows, bound, self.bits, narrow=True)


def bound_of(layer: QuantLinear | QuantEmbedding) -> Tensor:
    """The learned range of the layer's weight, wherever it is kept."""
    return cast("Tensor", (layer.tied[0] if layer.tied else layer).weight_range)


@contextmanager
def observing(model: nn.Module, estimator: Estimator) -> Iterator[None]:
    """While it lasts, activations pass as they are and are watched; then their ranges are set."""
    ranges = [module for module in model.modules() if isinstance(module, ActivationRange)]
    for one in ranges:
        one.observed = Observed(estimator)
    try:
        yield
        for one in ranges:
            if one.observed is not None:
                one.start(*one.observed.span())
    finally:
        for one in ranges:
            one.observed = None
