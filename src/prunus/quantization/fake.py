"""Fake quantization: what a number becomes when it is stored in 8 bits, as a function one can train through.

    symmetric     y = s * clip(round(x / s), -n', n)                      s = r / n      r > 0, n = 127 (or 63)
    asymmetric    y = s * (clip(round(x / s) + z, 0, 255) - z)            s = (b - a) / 255, z = round(-a / s)      a <= 0 <= b

with n' = n for weights (a *narrow* range: -127..127, one bit pattern unused) and n' = n + 1 for activations. ``prunus.grid``
defines step, zero point and rounding. Zero becomes zero exactly in both, so what pruning made zero stays zero.

The ranges r, a, b are learned (Esser et al. 2020, arXiv:1902.08153, equations 3 to 5, for ranges in the place of steps).
Rounding counts as the identity in the backward pass; with g = dL/dy:

    dL/dx = g where x lies inside the range, else 0
    dL/dr = sum of g * ((y - x) / r inside; 1 above; -n'/n below)
    dL/da = sum of g * (-(y - x) / (b - a) inside; 1 below)
    dL/db = sum of g * ((y - x) / (b - a) inside; 1 above)

NNCF divides its inside term for signed ranges by 2 r, half of the derivative; here it is the derivative.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from prunus.grid import LARGEST_BYTE, byte_step_and_zero, signed_limits, symmetric_step, to_integers

__all__ = ["asymmetric", "symmetric"]


class Symmetric(Function):
    """See ``symmetric``. In place, and with masks that are numbers: memory and booleans cost more here than the arithmetic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor, bits: int, narrow: bool) -> Tensor:
        """``bound`` broadcasts against ``x``."""
        ctx.save_for_backward(x, bound)
        ctx.bits, ctx.limits = bits, signed_limits(bits, narrow=narrow)
        step = symmetric_step(bound, bits)
        y: Tensor = to_integers(x, step, *ctx.limits).mul_(step)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of x and of the bound."""
        (grad,), (x, bound), (least, most) = grads, ctx.saved_tensors, ctx.limits
        scaled = x / symmetric_step(bound, ctx.bits)
        whole = scaled.round()
        clamped = whole.clamp(least, most)
        inside = whole.eq_(clamped)
        of_bound = clamped.sub_(scaled.mul_(inside)).mul_(grad)
        return inside.mul_(grad), reduced(of_bound, bound.shape) / most, None, None


class Asymmetric(Function):
    """See ``asymmetric``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``low`` and ``high`` are scalars."""
        ctx.save_for_backward(x, low, high)
        step, zero = byte_step_and_zero(low, high)
        return to_integers(x, step, 0, LARGEST_BYTE, zero).sub_(zero).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, low and high."""
        (grad,), (x, low, high) = grads, ctx.saved_tensors
        step, zero = byte_step_and_zero(low, high)
        scaled = x / step
        whole = scaled.round()
        clamped = whole.clamp(-zero, LARGEST_BYTE - zero)
        side = whole.sub_(clamped).sign_()  # -1 below the range, 0 inside, 1 above
        signed = reduced(grad * side, low.shape)
        outside = side.abs_().mul_(grad)
        clipped = reduced(outside, low.shape)
        of_x = grad - outside
        slope = reduced(clamped.sub_(scaled).mul_(of_x), low.shape) / LARGEST_BYTE
        return of_x, (clipped - signed) / 2 - slope, (clipped + signed) / 2 + slope


def reduced(grad: Tensor, shape: torch.Size) -> Tensor:
    """The sum over what was broadcast, in float32 at least."""
    return (grad if grad.dtype == torch.float64 else grad.float()).sum_to_size(shape)


def symmetric(x: Tensor, bound: Tensor, bits: int = 8, narrow: bool = False) -> Tensor:
    """x on the grid of signed whole numbers whose largest is ``bound``.

    Args:
        x: any shape.
        bound: its magnitude counts; broadcasts against x: one number, or ``[outputs, 1]`` for the rows of a weight.
        bits: 8, or 7 for processors whose byte products saturate at 16 bits.
        narrow: whether the lowest number is minus the largest.

    """
    bound = bound.abs().to(x.dtype)  # a large step may carry a small range across zero: it is not lost there
    y: Tensor = Symmetric.apply(x, bound, bits, narrow)  # type: ignore[no-untyped-call]
    return y


def asymmetric(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x on the grid of unsigned bytes between two scalars; zero is on the grid."""
    y: Tensor = Asymmetric.apply(x, low.to(x.dtype), high.to(x.dtype))  # type: ignore[no-untyped-call]
    return y
