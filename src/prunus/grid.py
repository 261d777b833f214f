"""The 8-bit grid: step, zero point, rounding and clamping of numbers that are stored in 8 (or 7) bits.

    symmetric     step = bound / n                   q = clip(round(x / step), least, n)           x' = q step
    asymmetric    step = (high - low) / 255          q = clip(round(x / step) + zero, 0, 255)      x' = (q - zero) step
                  zero = clip(round(-low / step), 0, 255)                       low <= 0 <= high

n is 127, or 63 in 7 bits; ``least`` is -n for weights and -n - 1 for activations. Rounding is to even, as ONNX's QuantizeLinear
and OpenVINO round. Zero is stored exactly.

Training, export, archives, packing and the runtime's kernels all use these functions. They take NumPy arrays and torch tensors
alike, and compute in the precision of their arguments, with the same operations in the same order: float32 gives the same bits
in both libraries.
"""

from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LARGEST_BYTE",
    "SMALLEST_RANGE",
    "byte_step_and_zero",
    "from_integers",
    "largest",
    "row_steps",
    "signed_limits",
    "symmetric_step",
    "to_integers",
]

LARGEST_BYTE: Final = 255
SMALLEST_RANGE: Final = 1e-8
"""Smaller ranges, learned or observed, count as this: x / step stays finite for every activation."""

T = TypeVar("T")
"""A NumPy array or scalar, or a torch tensor, of floating type."""


def largest(bits: int = 8) -> int:
    """The largest signed whole number."""
    return int(2 ** (bits - 1) - 1)


def signed_limits(bits: int = 8, *, narrow: bool = False) -> tuple[int, int]:
    """The least and the largest whole number of the signed grid: ``narrow``, as for weights, they have one magnitude."""
    most = largest(bits)
    return -most if narrow else -most - 1, most


def symmetric_step(bound: T, bits: int = 8) -> T:
    """Step of the signed grid whose largest number is the magnitude of ``bound``, element by element."""
    magnitude: Any = abs(bound)  # type: ignore[arg-type]
    step: T = magnitude.clip(min=SMALLEST_RANGE) / largest(bits)
    return step


def byte_step_and_zero(low: T, high: T) -> tuple[T, T]:
    """Step and zero point (a whole number 0..255, in floating type) of the range low..high, widened to hold 0."""
    first: Any = low
    last: Any = high
    bottom, top = first.clip(max=0.0), last.clip(min=0.0)
    step = (top - bottom).clip(min=SMALLEST_RANGE) / LARGEST_BYTE
    return step, (-bottom / step).round().clip(0, LARGEST_BYTE)


def row_steps(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Steps ``[rows]`` measured from a float32 weight ``[rows, columns]``: the largest magnitude of each row over 127.

    No range is too small here, because no weight exceeds its own; a row whose step would not be a normal number, such as a
    row of zeros, has the step 1.
    """
    magnitude = np.abs(weight).max(axis=1, initial=0.0)
    normal = magnitude > largest() * np.finfo(np.float32).tiny
    return np.where(normal, magnitude / largest(), 1.0).astype(np.float32)


def to_integers(x: T, step: T, least: int, most: int, zero: T | None = None) -> T:
    """The nearest whole numbers of the grid, in floating type. Arguments broadcast; no argument is changed."""
    quotient: Any = x / step  # type: ignore[operator]
    if hasattr(quotient, "round_"):  # torch: in place, because memory costs more than arithmetic in training
        rounded: T = (quotient.round_() if zero is None else quotient.round_().add_(zero)).clamp_(least, most)
    else:
        rounded = (quotient.round() if zero is None else quotient.round() + zero).clip(least, most)
    return rounded


def from_integers(integers: T, step: T, zero: T | None = None) -> T:
    """The numbers that whole numbers of the grid (in floating type) stand for."""
    values: Any = integers
    x: T = (values if zero is None else values - zero) * step
    return x
