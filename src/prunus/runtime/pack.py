"""Weights as the kernels read them: records of what is kept, and which weight format suits a weight best.

    int8       s[o] = max |w[o]| / 127,  w_int = round(w / s)           per output, symmetric: a zero stays a zero
               scale = s s_x,  bias = b - z_x scale * sum of w_int      (see ``kernels.linear``)

A weight is ``[outputs, inputs]``; outputs come in groups of four, padded with outputs of zeros. Per-input factors of the
activations (``x = x_int factor[i]``) are multiplied into the columns before anything is rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.grid import largest, row_steps, to_integers
from prunus.runtime.kernels.linear import RECORD

__all__ = ["FLOAT32_FORMATS", "INT8_FORMATS", "Packed", "choose_format", "pack", "quantize_weight", "unpack"]

Floats = NDArray[np.float32]
INT8_FORMATS = ("group_sparse_int8", "dense_int8x4", "block_sparse_int8")
FLOAT32_FORMATS = ("group_sparse_float32", "sparse_float32")

# Time of one record on 64 tokens, in cycles of a core that issues two vector products and two loads each: what was measured,
# rounded; only the order matters. ``group_sparse_int8`` first mixes the bytes of four columns; formats of single outputs load
# their inputs for each output.
_COST = {
    "group_sparse_int8": 10.5,
    "dense_int8x4": 8.5,
    "block_sparse_int8": 2.7,
    "group_sparse_float32": 8.5,
    "sparse_float32": 2.7,
}


@dataclass(frozen=True)
class Packed:
    """One linear layer, ready for its kernel."""

    weight_format: str
    """A key of ``kernels.linear.RECORDS``."""
    shape: tuple[int, int]
    first: NDArray[np.uint32]
    """``[groups + 1]``, or ``[outputs + 1]`` of ``block_sparse_int8`` and ``sparse_float32``: first record of each."""
    records: NDArray[np.uint8]
    scale: Floats
    """``[outputs]``; ones of a float32 layer."""
    bias: Floats

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return int(self.first.nbytes + self.records.nbytes + self.scale.nbytes + self.bias.nbytes)


def quantize_weight(weight: Floats, steps: Floats | None = None) -> tuple[NDArray[np.int8], Floats]:
    """``w`` -> (w_int, s): symmetric, one s for each output, -127..127; an output of zeros has s = 1.

    ``steps`` ``[outputs]`` are used as they are, if they were learned.
    """
    scale = row_steps(weight)
    if steps is not None:
        scale[: len(steps)] = steps
    return to_integers(weight, scale[:, None], -largest(), largest()).astype(np.int8), scale


def choose_format(kept: NDArray[np.bool_], integers: bool) -> str:
    """The weight format that takes the least time for this pattern of nonzero weights ``[outputs, inputs]``."""
    outputs, inputs = kept.shape
    group = _pad_outputs(kept).reshape(-1, 4, inputs).any(1)
    if not integers:
        counts = {"group_sparse_float32": int(group.sum()), "sparse_float32": int(kept.sum())}
    else:
        fours = _pad_inputs(kept).reshape(outputs, -1, 4).any(2)
        counts = {
            "group_sparse_int8": int(np.ceil(group.sum(1) / 4).sum()),
            "dense_int8x4": -(-inputs // 4) * -(-outputs // 4),
            "block_sparse_int8": int(fours.sum()),
        }
    return min(counts, key=lambda weight_format: counts[weight_format] * _COST[weight_format])


def _pad_outputs(weight: NDArray[Any]) -> NDArray[Any]:
    extra = -weight.shape[0] % 4
    return np.pad(weight, ((0, extra), (0, 0))) if extra else weight


def _pad_inputs(weight: NDArray[Any]) -> NDArray[Any]:
    extra = -weight.shape[1] % 4
    return np.pad(weight, ((0, 0), (0, extra))) if extra else weight


def pack(
    weight_format: str,
    weight: Floats,
    bias: Floats,
    step: float = 1.0,
    zero: float = 0.0,
    gain: Floats | None = None,
    shift: float = 0.0,
    steps: Floats | None = None,
) -> Packed:
    """Packs a weight ``[outputs, inputs]`` into records of one weight format.

    Args:
        weight_format: one of ``INT8_FORMATS`` or ``FLOAT32_FORMATS``.
        weight: float32; per-input factors are already in it.
        bias: ``[outputs]``.
        step: s_x of the input bytes.
        zero: z_x of the input bytes.
        gain: ``[outputs]``, y is wanted as y * gain + shift: for outputs that are stored as bytes without an activation.
        shift: see ``gain``.
        steps: ``[outputs]``, s_w where it was learned.

    """
    outputs, inputs = weight.shape
    if max(outputs, inputs) >= 2**16:
        raise EngineError(Problem("weight", f"{outputs} x {inputs}", "have fewer than 65536 outputs and inputs"))
    weight = _pad_outputs(weight)
    bias = np.pad(bias.astype(np.float32), (0, len(weight) - outputs))
    scale = np.ones(len(weight), np.float32)
    if weight_format in FLOAT32_FORMATS:
        numbers: NDArray[Any] = weight.astype(np.float32)
    else:
        numbers, weight_steps = quantize_weight(weight, steps)
        scale = (weight_steps * step).astype(np.float32)
        bias = (bias - zero * scale * numbers.astype(np.int64).sum(1)).astype(np.float32)
    if gain is not None:
        padded = np.pad(gain.astype(np.float32), (0, len(weight) - outputs))
        scale, bias = scale * padded, bias * padded + np.float32(shift)
    first, records = _WRITERS[weight_format](numbers)
    return Packed(weight_format, (outputs, inputs), first, records, scale, bias.astype(np.float32))


def _starts(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)


def _side_by_side(*fields: NDArray[Any]) -> NDArray[np.uint8]:
    """Fields ``[records, ...]`` side by side, as bytes."""
    if not len(fields[0]):
        return np.zeros(0, np.uint8)
    raw = [np.ascontiguousarray(field).reshape(len(field), -1).view(np.uint8) for field in fields]
    return np.ascontiguousarray(np.concatenate(raw, axis=1)).reshape(-1)


def _group_sparse_int8(numbers: NDArray[np.int8]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    inputs = numbers.shape[1]
    grouped = numbers.reshape(-1, 4, inputs)
    kept = (grouped != 0).any(1)
    counts = -(-kept.sum(1) // 4)
    # kept columns first, in their order; what fills the last quad of a group is a column with weights of zero
    order = np.argsort(~kept, axis=1, kind="stable")[:, : 4 * max(1, int(counts.max(initial=0)))]
    if order.shape[1] % 4:
        order = np.pad(order, ((0, 0), (0, -order.shape[1] % 4)), mode="edge")
    real = np.arange(order.shape[1]) < kept.sum(1)[:, None]
    weights = np.take_along_axis(grouped, order[:, None, :], axis=2) * real[:, None, :]
    inside = np.arange(order.shape[1] // 4) < counts[:, None]
    indices = order.astype(np.uint16).reshape(len(order), -1, 4)[inside]
    four_by_four = weights.astype(np.int8).reshape(len(order), 4, -1, 4).transpose(0, 2, 1, 3)[inside]
    return _starts(counts), _side_by_side(indices, four_by_four)


def _dense_int8x4(numbers: NDArray[np.int8]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    padded = _pad_inputs(numbers)
    groups, count = len(padded) // 4, padded.shape[1] // 4
    records = padded.reshape(groups, 4, count, 4).transpose(0, 2, 1, 3)
    return _starts(np.full(groups, count)), _side_by_side(records.reshape(groups * count, 16))


def _block_sparse_int8(numbers: NDArray[np.int8]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    fours = _pad_inputs(numbers).reshape(len(numbers), -1, 4)
    kept = (fours != 0).any(2)
    return _starts(kept.sum(1)), _side_by_side(np.nonzero(kept)[1].astype(np.uint32), fours[kept])


def _group_sparse_float32(numbers: Floats) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    grouped = numbers.reshape(-1, 4, numbers.shape[1])
    kept = (grouped != 0).any(1)
    return _starts(kept.sum(1)), _side_by_side(np.nonzero(kept)[1].astype(np.uint32), grouped.transpose(0, 2, 1)[kept])


def _sparse_float32(numbers: Floats) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    kept = numbers != 0
    return _starts(kept.sum(1)), _side_by_side(np.nonzero(kept)[1].astype(np.uint32), numbers[kept])


_WRITERS: dict[str, Callable[[NDArray[Any]], tuple[NDArray[np.uint32], NDArray[np.uint8]]]] = {
    "group_sparse_int8": _group_sparse_int8,
    "dense_int8x4": _dense_int8x4,
    "block_sparse_int8": _block_sparse_int8,
    "group_sparse_float32": _group_sparse_float32,
    "sparse_float32": _sparse_float32,
}


def unpack(layer: Packed) -> NDArray[Any]:
    """The numbers of a packed weight ``[outputs, inputs]``: int8, or float32."""
    outputs, inputs = layer.shape
    rows = len(layer.scale)
    weight: NDArray[Any] = np.zeros(
        (rows, inputs + -inputs % 4), np.float32 if layer.weight_format in FLOAT32_FORMATS else np.int8
    )
    owner = np.repeat(np.arange(len(layer.first) - 1), np.diff(layer.first.astype(np.int64)).astype(np.int64))
    raw = layer.records.reshape(len(owner), RECORD[layer.weight_format])
    if layer.weight_format == "group_sparse_int8":
        index = np.ascontiguousarray(raw[:, :8]).view(np.uint16).astype(np.int64)
        weights = np.ascontiguousarray(raw[:, 8:]).view(np.int8).reshape(-1, 4, 4)
        for output in range(4):
            np.add.at(weight, (4 * owner[:, None] + output, index), weights[:, output])
    elif layer.weight_format == "dense_int8x4":
        weight[:] = raw.view(np.int8).reshape(rows // 4, -1, 4, 4).transpose(0, 2, 1, 3).reshape(rows, -1)
    elif layer.weight_format == "block_sparse_int8":
        index = np.ascontiguousarray(raw[:, :4]).view(np.uint32)[:, 0].astype(np.int64)
        weight.reshape(rows, -1, 4)[owner, index] = np.ascontiguousarray(raw[:, 4:]).view(np.int8)
    elif layer.weight_format == "group_sparse_float32":
        index = np.ascontiguousarray(raw[:, :4]).view(np.uint32)[:, 0].astype(np.int64)
        weights = np.ascontiguousarray(raw[:, 4:]).view(np.float32)
        for output in range(4):
            weight[4 * owner + output, index] = weights[:, output]
    else:
        index = np.ascontiguousarray(raw[:, :4]).view(np.uint32)[:, 0].astype(np.int64)
        weight[owner, index] = np.ascontiguousarray(raw[:, 4:]).view(np.float32)[:, 0]
    return weight[:outputs, :inputs]
