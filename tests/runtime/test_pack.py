"""Packed weights: records against loops, round trips, and the weight_format that is chosen."""

from itertools import product

import numpy as np
import pytest
from harness import Array, keep

from prunus.runtime.kernels.linear import RECORD
from prunus.runtime.pack import FLOAT32_FORMATS, INT8_FORMATS, choose_format, pack, quantize_weight, unpack

KINDS = (*INT8_FORMATS, *FLOAT32_FORMATS)
SHAPES = ((1, 1), (1, 9), (2, 3), (4, 4), (5, 7), (3, 16), (16, 3), (12, 30), (64, 33))
DENSITIES = (0.0, 0.03, 0.2, 0.5, 1.0)


def weight_of(shape: tuple[int, int], density: float, seed: int = 0) -> Array:
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal(shape) * (draw.random(shape) < density)
    if density < 1 and shape[0] > 2:
        weight[1] = 0  # an output of zeros between others
    return weight.astype(np.float32)


def rounded(weight: Array) -> tuple[Array, Array]:
    """Symmetric int8, output by output."""
    numbers, scales = [], []
    for row in weight:
        largest = max(abs(float(value)) for value in row)
        scale = np.float32(np.float32(largest) / np.float32(127)) if largest else np.float32(1)
        scales.append(scale)
        numbers.append([round(float(np.float32(value) / scale)) for value in row])
    return np.array(numbers), np.array(scales, np.float32)


def records_needed(weight_format: str, kept: Array) -> Array:
    """Records of each group, or of each output, counted one by one."""
    outputs, inputs = kept.shape
    rows = outputs + -outputs % 4
    padded = np.zeros((rows, inputs + -inputs % 4), bool)
    padded[:outputs, :inputs] = kept
    if weight_format == "dense_int8x4":
        return np.full(rows // 4, padded.shape[1] // 4)
    if weight_format == "block_sparse_int8":
        return np.array([sum(row[i : i + 4].any() for i in range(0, len(row), 4)) for row in padded])
    if weight_format == "sparse_float32":
        return np.array([int(row.sum()) for row in padded])
    columns = np.array([padded[i : i + 4].any(0).sum() for i in range(0, rows, 4)])
    return columns if weight_format == "group_sparse_float32" else -(-columns // 4)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight_format", KINDS)
def test_what_is_packed_is_unpacked(weight_format: str, shape: tuple[int, int], density: float) -> None:
    weight, rows = weight_of(shape, density), shape[0] + -shape[0] % 4
    bias = np.random.default_rng(1).standard_normal(shape[0]).astype(np.float32)
    layer = pack(weight_format, weight, bias, step=0.25, zero=7.0)
    numbers, scales = (weight, np.ones(shape[0])) if weight_format in FLOAT32_FORMATS else rounded(weight)
    assert (unpack(layer) == numbers).all()
    assert unpack(layer).dtype == (np.float32 if weight_format in FLOAT32_FORMATS else np.int8)
    assert (layer.weight_format, layer.shape) == (weight_format, shape)
    needed = records_needed(weight_format, numbers != 0)
    assert (np.diff(layer.first.astype(int)) == needed).all()
    assert (layer.first[0], layer.first.dtype) == (0, np.uint32)
    assert layer.records.size == RECORD[weight_format] * needed.sum()
    assert (layer.scale.shape, layer.scale.dtype) == ((rows,), np.float32)
    assert (layer.bias.shape, layer.bias.dtype) == ((rows,), np.float32)
    if weight_format in FLOAT32_FORMATS:
        assert (layer.scale == 1).all()
        assert (layer.bias == np.pad(bias, (0, rows - shape[0]))).all()
    else:
        assert layer.scale[: shape[0]] == pytest.approx(scales * 0.25, rel=1e-6)
        expected = bias - 7.0 * scales * 0.25 * numbers.sum(1)
        assert layer.bias[: shape[0]] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert (layer.bias[shape[0] :] == 0).all()
    parts = (layer.first, layer.records, layer.scale, layer.bias)
    assert layer.bytes == sum(part.size * part.itemsize for part in parts)


@pytest.mark.parametrize("weight_format", INT8_FORMATS)
def test_scale_and_bias_undo_the_bytes(weight_format: str) -> None:
    # y of bytes, by scale and bias alone, is the layer of the numbers that the bytes stand for, times gain, plus shift.
    draw = np.random.default_rng(0)
    weight, bias = weight_of((10, 30), 0.4), draw.standard_normal(10).astype(np.float32)
    gain, shift, step, zero = draw.random(10).astype(np.float32) + 0.5, 128.0, 0.03, 100.0
    layer = pack(weight_format, weight, bias, step, zero, gain, shift)
    numbers, scales = rounded(weight)
    x = draw.integers(0, 256, (30, 50))
    y = (numbers @ x) * layer.scale[:10, None] + layer.bias[:10, None]
    exact = (numbers * scales[:, None]) @ (step * (x - zero)) + bias[:, None]
    assert y == pytest.approx(exact * gain[:, None] + shift, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("weight_format", KINDS)
def test_records_point_at_inputs_and_grow_within_a_group(weight_format: str) -> None:
    if weight_format == "dense_int8x4":
        return
    layer = pack(weight_format, weight_of((16, 37), 0.3), np.zeros(16, np.float32))
    raw = layer.records.reshape(-1, RECORD[weight_format])
    width, dtype = (8, np.uint16) if weight_format == "group_sparse_int8" else (4, np.uint32)
    index = np.ascontiguousarray(raw[:, :width]).view(dtype)
    assert index.max() < (10 if weight_format == "block_sparse_int8" else 37)
    if weight_format != "group_sparse_int8":  # what fills up the last quad of a group has weights of zero and any index
        for begin, end in zip(layer.first, layer.first[1:], strict=False):
            assert (np.diff(index[begin:end, 0].astype(int)) > 0).all()


def test_quantizing_is_symmetric_and_keeps_zeros() -> None:
    weight = weight_of((50, 40), 0.5)
    numbers, scale = quantize_weight(weight)
    assert numbers.dtype == np.int8
    assert (np.abs(numbers).max(1)[np.abs(weight).max(1) > 0] == 127).all()
    assert numbers.min() >= -127
    assert (numbers[weight == 0] == 0).all()
    assert (np.abs(numbers * scale[:, None] - weight) <= 0.5001 * scale[:, None]).all()
    assert scale[1] == 1  # an output of zeros
    assert (quantize_weight(-weight)[0] == -numbers).all()


@pytest.mark.parametrize("largest", [3e38, 1.0, 1e-35, 1e-44])
def test_quantizing_extreme_weights(largest: float) -> None:
    weight = np.array([[largest, -largest, 0.0, largest / 2], [1, 2, 0, 4]], np.float32)
    numbers, scale = quantize_weight(weight)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert (numbers[:, 2] == 0).all()
    assert np.abs(numbers * scale[:, None] - weight)[0].max() <= max(0.0051 * largest, 1e-37)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "integer", "floating"),
    [
        ("4x1", 0.8, "group_sparse_int8", "group_sparse_float32"),
        ("8x1", 0.8, "group_sparse_int8", "group_sparse_float32"),
        ("16x1", 0.9, "group_sparse_int8", "group_sparse_float32"),
        ("1x4", 0.8, "block_sparse_int8", "sparse_float32"),
        ("dense", 0.0, "dense_int8x4", "group_sparse_float32"),
        ("2:4", 0.5, "dense_int8x4", None),
        ("unstructured", 0.5, "dense_int8x4", None),
        ("unstructured", 0.95, None, "sparse_float32"),
        ("4x1", 1.0, None, None),
    ],
)
def test_the_kind_that_costs_least(pattern: str, sparsity: float, integer: str | None, floating: str | None) -> None:
    for shape, seed in product(((64, 64), (96, 384), (384, 96)), range(3)):
        kept = keep(pattern, shape, 1 - sparsity, np.random.default_rng(seed))
        assert choose_format(kept, True) == (integer or choose_format(kept, True))
        assert choose_format(kept, False) == (floating or choose_format(kept, False))
        assert choose_format(kept, True) in INT8_FORMATS
        assert choose_format(kept, False) in FLOAT32_FORMATS


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kind_is_chosen_for_every_shape(shape: tuple[int, int]) -> None:
    for density in DENSITIES:
        kept = weight_of(shape, density) != 0
        assert choose_format(kept, True) in INT8_FORMATS
        assert choose_format(kept, False) in FLOAT32_FORMATS
