"""Checkpoints that were cut short anywhere are told from whole ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunus.checkpoint.whole import is_whole


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    place = tmp_path / "checkpoint-7"
    place.mkdir()
    save_file({"a": torch.rand(5, 3), "b": torch.arange(3)}, place / "model.safetensors")
    save_file({"mask.a": torch.ones(5, 3, dtype=torch.bool)}, place / "prunus_state.safetensors")
    torch.save({"state": torch.rand(9)}, place / "optimizer.pt")
    torch.save({"cpu": torch.rand(9)}, place / "rng_state.pth")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": 7, "log_history": [{"loss": 1.0}] * 20}))
    (place / "config.json").write_text("{}")
    return place


def test_a_whole_one_is(checkpoint: Path) -> None:
    assert is_whole(checkpoint)
    assert is_whole(checkpoint, "prunus_state.safetensors")
    assert not is_whole(checkpoint, "other.safetensors")
    assert not is_whole(checkpoint.with_name("checkpoint-8"))
    (checkpoint / "model.safetensors.partial").write_bytes(b"x")
    assert is_whole(checkpoint)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "prunus_state.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"],
)
def test_one_that_was_cut_anywhere_is_not(name: str, checkpoint: Path) -> None:
    path = checkpoint / name
    whole = path.read_bytes()
    for left in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        assert not is_whole(checkpoint), left
    path.write_bytes(whole)
    assert is_whole(checkpoint)
    path.unlink()
    if name == "trainer_state.json":
        assert not is_whole(checkpoint)


@pytest.mark.parametrize("state", ['{"global_step": 8}', "[]", '{"step": 7}', "[" * 9000])
def test_the_state_of_another_step_is_none(state: str, checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").write_text(state)
    assert not is_whole(checkpoint)


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}x"])
def test_headers_that_lie_are_told(header: bytes, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(header)
    assert not is_whole(checkpoint)
