"""Files of tensors: whole or not at all, and masks at one bit a weight."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunus import CheckpointError
from prunus.checkpoint import tensor_io
from prunus.checkpoint.tensor_io import read_masks, read_tensors, write_masks, write_tensors
from small import no_space


def random_mask(out: int, inp: int, seed: int = 0) -> Tensor:
    return torch.rand(out, inp, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_the_same_masks_give_the_same_bytes(tmp_path: Path) -> None:
    """As a resumed run has them, in another order than the run that was never stopped."""
    masks = {f'layer.{i}."é\\.weight': random_mask(8, 4, i) for i in range(12)}
    first, second = tmp_path / "first", tmp_path / "second"
    write_masks(first, masks)
    write_masks(second, dict(reversed(masks.items())))
    assert first.read_bytes() == second.read_bytes()
    assert all(torch.equal(mask, masks[name]) for name, mask in read_masks(first).items())
    size = int.from_bytes(first.read_bytes()[:8], "little")
    names = list(json.loads(first.read_bytes()[8 : 8 + size])["__metadata__"])
    assert names == sorted(masks)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4), seed=st.integers(0, 999)
)
def test_masks_of_any_shape_come_back(shapes: list[tuple[int, int]], seed: int, tmp_path: Path) -> None:
    masks = {f"layer.{i}.weight": random_mask(*shape, seed=seed + i) for i, shape in enumerate(shapes)}
    write_masks(tmp_path / "m.safetensors", masks)
    again = read_masks(tmp_path / "m.safetensors")
    assert again.keys() == masks.keys()
    for name, mask in masks.items():
        assert again[name].dtype == torch.bool
        assert again[name].shape == mask.shape
        assert torch.equal(again[name], mask)


def test_the_layout_is_one_bit_a_weight_row_major_first_in_the_highest_bit(tmp_path: Path) -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    write_masks(tmp_path / "m.safetensors", {"w": mask})
    assert load_file(tmp_path / "m.safetensors")["w"].tolist() == [0b10011000, 0b10000000]
    big = random_mask(64, 48)
    write_masks(tmp_path / "m.safetensors", {"w": big})
    stored = load_file(tmp_path / "m.safetensors")["w"]
    assert stored.numel() == 64 * 48 // 8
    one_by_one = [(int(stored[i // 8]) >> (7 - i % 8)) & 1 for i in range(64 * 48)]
    assert one_by_one == big.flatten().int().tolist()


def test_masks_that_are_views_come_back(tmp_path: Path) -> None:
    mask = random_mask(6, 10)
    write_masks(tmp_path / "m.safetensors", {"t": mask.T, "e": mask[:1].expand(4, 10)})
    again = read_masks(tmp_path / "m.safetensors")
    assert torch.equal(again["t"], mask.T)
    assert torch.equal(again["e"], mask[:1].expand(4, 10))


Damage = Callable[[Path], object]


def cut(size: int) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def replaced(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


def saved(tensor: Tensor, metadata: dict[str, str]) -> Damage:
    return lambda path: save_file({"w": tensor}, path, metadata)


LIAR = struct.pack("<Q", 2**40) + b"{}"
HUGE = json.dumps({"w": {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}}).encode()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut(0), "be a whole safetensors file"),
        (cut(7), "be a whole safetensors file"),
        (cut(40), "be a whole safetensors file"),
        (cut(-1), "be a whole safetensors file"),
        (lambda path: path.unlink(), "be a whole safetensors file"),
        (replaced(b"PK\x03\x04 not a safetensors file at all"), "be a whole safetensors file"),
        (replaced(LIAR), "be a whole safetensors file"),
        (replaced(struct.pack("<Q", len(HUGE)) + HUGE), "be a whole safetensors file"),
        (saved(torch.zeros(8, dtype=torch.uint8), {}), "have a shape 'out,in'"),
        (saved(torch.zeros(8, dtype=torch.uint8), {"w": "64"}), "have a shape 'out,in'"),
        (saved(torch.zeros(8, dtype=torch.uint8), {"w": "8,-8"}), "have a shape 'out,in'"),
        (saved(torch.zeros(8, dtype=torch.uint8), {"w": "2,4,8"}), "have a shape 'out,in'"),
        (saved(torch.zeros(8), {"w": "8,8"}), "have a shape 'out,in'"),
        (saved(torch.zeros(2, 4, dtype=torch.uint8), {"w": "8,8"}), "have a shape 'out,in'"),
        (saved(torch.zeros(7, dtype=torch.uint8), {"w": "8,8"}), "hold one bit for each of 8 x 8 weights"),
        (saved(torch.zeros(9, dtype=torch.uint8), {"w": "8,8"}), "hold one bit for each of 8 x 8 weights"),
        (saved(torch.zeros(8, dtype=torch.uint8), {"w": "99999999999,99999999999"}), "hold one bit for each"),
    ],
)
def test_a_damaged_file_is_a_checkpoint_error(damage: Damage, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_masks(path, {"w": random_mask(8, 8)})
    damage(path)
    with pytest.raises(CheckpointError, match=said):
        read_masks(path)


def test_every_single_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_masks(path, {"w": random_mask(8, 8)})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_masks(path)


@pytest.mark.parametrize(("module", "name"), [(os, "replace"), (tensor_io, "save_file")], ids=["rename", "write"])
def test_a_failed_write_leaves_the_old_file(
    module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    write_tensors(path, {"w": torch.arange(3)})
    before = path.read_bytes()
    monkeypatch.setattr(module, name, no_space)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_tensors(path, {"w": torch.arange(5)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_missing_directory_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be writable"):
        write_tensors(tmp_path / "nowhere" / "m.safetensors", {"w": torch.arange(3)})


def test_tensors_of_all_kinds_come_back(tmp_path: Path) -> None:
    tensors = {
        "steps": torch.tensor(12),
        "mask": random_mask(3, 5),
        "view": torch.arange(12.0).view(3, 4).T,
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "grad": torch.ones(2, requires_grad=True),
        "empty": torch.zeros(0, 4),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    again = read_tensors(tmp_path / "t.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        np.testing.assert_array_equal(again[name].float().numpy(), tensor.detach().float().numpy())
