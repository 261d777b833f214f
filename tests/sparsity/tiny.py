"""Small models and training loops that the tests of this room share."""

from collections.abc import Mapping, Sequence
from math import floor

import torch
from torch import Tensor, nn

from prunus.sparsity import Masker, Pruning

FIRST, SECOND = "0.weight", "2.weight"


class Layers(nn.Sequential):
    """A stack of layers that is a body as a whole: it has no head that a rule would leave dense."""

    base_model_prefix = ""


def two_layers(seed: int = 0, width: int = 32, hidden: int = 64) -> nn.Sequential:
    """Weights ``[hidden, width]`` and ``[width, hidden]``: equal in weights, different in rows and columns."""
    torch.manual_seed(seed)
    return Layers(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))


def adamw(model: nn.Module, lr: float = 1e-2) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)


def train(
    model: nn.Sequential, masker: Masker, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1, first: int = 0
) -> None:
    """Steps ``first`` to ``first + steps`` of a training on random data, each with data of its own seed."""
    layer = model[0]
    width = layer.in_features if isinstance(layer, nn.Linear) else 0
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        inputs = torch.randn(8, width, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - inputs.roll(1, 1)).square().mean().backward()
        masker.observe(model)
        optimizer.step()
        masker.step(model)


def backward(model: nn.Module, seed: int) -> None:
    inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    (model(inputs) - inputs.roll(1, 1)).square().mean().backward()


def prune(model: nn.Sequential, pruning: Pruning | Sequence[Pruning], steps: int, seed: int = 0) -> Masker:
    """A whole training of ``steps`` optimizer steps with AdamW and weight decay."""
    masker = Masker(model, pruning, steps, seed=seed)
    train(model, masker, adamw(model), steps)
    return masker


def zeros(model: nn.Module, names: Sequence[str] = (FIRST, SECOND)) -> dict[str, int]:
    return {name: int((model.get_parameter(name) == 0).sum()) for name in names}


def weights(model: nn.Module, names: Sequence[str] = (FIRST, SECOND)) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach().clone() for name in names}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Equal names, and equal values bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def scaled_floor(fraction: float, n: int) -> int:
    """floor(fraction * n) of a decimal fraction, in whole numbers: 0.29 of 100 is 29."""
    return floor(round(fraction * 10_000) * n / 10_000)
