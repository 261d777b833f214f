"""Fake quantization against its formulas in float64, and its gradients against their definition."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prunus.grid import byte_step_and_zero as step_and_zero
from prunus.quantization.fake import asymmetric, symmetric

Array = NDArray[np.float64]


def values(seed: int = 0, count: int = 4000) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=draw, dtype=torch.float64) * 3


@pytest.mark.parametrize("bound", [0.01, 1.0, 2.5, 100.0])
@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 63)])
@pytest.mark.parametrize("narrow", [False, True])
def test_symmetric(bound: float, bits: int, most: int, narrow: bool) -> None:
    x = values()
    y = symmetric(x, torch.tensor(bound, dtype=torch.float64), bits, narrow).numpy()
    step = bound / most
    expected = np.clip(np.rint(x.numpy() / step), -most if narrow else -most - 1, most) * step
    assert np.abs(y - expected).max() <= 1e-12 * bound
    assert len(np.unique(np.rint(y / step))) <= 2 * most + (1 if narrow else 2)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (-0.17, 6.0), (0.0, 4.0), (-3.0, 0.0), (1.0, 4.0), (-4.0, -1.0)]
)
def test_asymmetric(low: float, high: float) -> None:
    x = values()
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (low, high))
    y = asymmetric(x, a, b).numpy()
    bottom, top = min(low, 0.0), max(high, 0.0)
    step = (top - bottom) / 255
    zero = np.rint(-bottom / step)
    expected = (np.clip(np.rint(x.numpy() / step) + zero, 0, 255) - zero) * step
    assert np.abs(y - expected).max() <= 1e-12
    assert step_and_zero(a, b)[1].item() == zero
    inside = (expected > (0 - zero) * step) & (expected < (255 - zero) * step)
    assert np.abs(y - x.numpy())[inside].max() <= step / 2 * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_stays_zero(dtype: torch.dtype) -> None:
    x = torch.zeros(5, dtype=dtype)
    for low, high in ((-0.3, 5.1), (-7.7, 0.2), (0.0, 1.0), (-1.0, 0.0)):
        assert (asymmetric(x, torch.tensor(low), torch.tensor(high)) == 0).all()
    assert (symmetric(x, torch.tensor(0.37), narrow=True) == 0).all()


def test_the_same_as_torch() -> None:
    x = values(1).float()
    step, zero = step_and_zero(torch.tensor(-1.3), torch.tensor(5.0))
    theirs = torch.fake_quantize_per_tensor_affine(x, step.item(), int(zero.item()), 0, 255)
    assert (asymmetric(x, torch.tensor(-1.3), torch.tensor(5.0)) - theirs).abs().max() <= 1e-6
    rows = x.reshape(40, 100)
    bound = rows.abs().amax(1, keepdim=True)
    theirs = torch.fake_quantize_per_channel_affine(
        rows, bound[:, 0] / 127, torch.zeros(40, dtype=torch.int32), 0, -127, 127
    )
    assert (symmetric(rows, bound, narrow=True) - theirs).abs().max() <= 1e-6


def slopes(x: Array, y: Array, width: float) -> Array:
    return (y - x) / width


@pytest.mark.parametrize("narrow", [False, True])
def test_gradients_of_symmetric(narrow: bool) -> None:
    x = values(2, 600).reshape(6, 100).requires_grad_()
    bound = torch.tensor([[1.0], [2.0], [3.0], [0.5], [9.0], [50.0]], dtype=torch.float64, requires_grad=True)
    gain = values(3, 600).reshape(6, 100)
    (symmetric(x, bound, narrow=narrow) * gain).sum().backward()
    a, r, g = x.detach().numpy(), bound.detach().numpy(), gain.numpy()
    step = r / 127
    whole, least = np.rint(a / step), -127 if narrow else -128
    inside = (whole >= least) & (whole <= 127)
    slope = np.where(inside, slopes(a, whole * step, r), np.where(whole > 127, 1.0, least / 127))
    assert x.grad is not None
    assert bound.grad is not None
    assert np.allclose(x.grad, g * inside, atol=0, rtol=0)
    assert np.allclose(bound.grad, (g * slope).sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_a_range_below_zero_counts_by_its_magnitude() -> None:
    x, bound = values(7), torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    y = symmetric(x, bound)
    assert torch.equal(y, symmetric(x, torch.tensor(1.5, dtype=torch.float64)))
    y.sum().backward()
    other = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    symmetric(x, other).sum().backward()
    assert bound.grad is not None
    assert other.grad is not None
    assert bound.grad.item() == -other.grad.item()


def test_gradients_of_asymmetric() -> None:
    x = values(4, 500).requires_grad_()
    low, high = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.8, 3.1))
    gain = values(5, 500)
    (asymmetric(x, low, high) * gain).sum().backward()
    a, g, step = x.detach().numpy(), gain.numpy(), 3.9 / 255
    zero = np.rint(0.8 / step)
    whole = np.rint(a / step) + zero
    below, above = whole < 0, whole > 255
    inside = ~below & ~above
    slope = np.where(inside, slopes(a, (whole - zero) * step, 3.9), 0)
    assert x.grad is not None
    assert low.grad is not None
    assert high.grad is not None
    assert np.allclose(x.grad, g * inside, atol=0, rtol=0)
    assert np.allclose(low.grad, (g * (below - slope)).sum(), rtol=1e-4)
    assert np.allclose(high.grad, (g * (above + slope)).sum(), rtol=1e-4)


@pytest.mark.parametrize("which", ["bound", "low", "high"])
def test_a_range_learns_to_fit(which: str) -> None:
    """Gradient descent on the error of rounding moves a range that is far off to one that is near the best."""
    x = values(6, 2000).float()
    start = {"bound": (30.0,), "low": (-40.0, 9.0), "high": (-9.0, 40.0)}[which]
    ranges = [torch.tensor(v, requires_grad=True) for v in start]
    run = symmetric if which == "bound" else asymmetric
    optimizer = torch.optim.Adam(ranges, 0.2)
    errors = []
    for _ in range(300):
        error = (run(x, *ranges) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 4
