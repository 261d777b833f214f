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
    torch.save({"last_epoch": 7}, place / "scheduler.pt")
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
    [
        "model.safetensors",
        "prunus_state.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ],
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
    assert is_whole(checkpoint) is (name == "prunus_state.safetensors")  # which a Trainer does not write
    assert not is_whole(checkpoint, "prunus_state.safetensors")


@pytest.mark.parametrize("state", ['{"global_step": 8}', "[]", '{"step": 7}', "[" * 9000])
def test_the_state_of_another_step_is_none(state: str, checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").write_text(state)
    assert not is_whole(checkpoint)


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}x"])
def test_headers_that_lie_are_told(header: bytes, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(header)
    assert not is_whole(checkpoint)


def test_every_shard_must_be_there(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    save_file({"b": torch.arange(3)}, checkpoint / "model-2.safetensors")
    index_file = checkpoint / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert is_whole(checkpoint)
    (checkpoint / "model-2.safetensors").unlink()
    assert not is_whole(checkpoint)


@pytest.mark.parametrize("names", [("optimizer_0", "pytorch_model_fsdp_0"), ("global_step7",)])
def test_the_directories_of_sharded_trainings_are_parts(names: tuple[str, ...], checkpoint: Path) -> None:
    for name in ("optimizer.pt", "model.safetensors"):
        (checkpoint / name).unlink()
    assert not is_whole(checkpoint)
    for name in names:
        (checkpoint / name).mkdir()
    assert is_whole(checkpoint)
