"""Files of states: whole, of this data, read or mapped."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prunus import CheckpointError
from prunus.checkpoint.bank_io import read_states, write_states


@pytest.fixture
def states() -> Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).half()


@pytest.mark.parametrize("mapped", [False, True])
def test_what_was_written_is_read(mapped: bool, states: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "banks" / "prc.safetensors"
    write_states(path, states, "data")
    assert torch.equal(read_states(path, 12, "data", mapped), states)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("mapped", [False, True])
def test_files_of_other_data_and_damaged_ones_are_refused(mapped: bool, states: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "prc.safetensors"
    with pytest.raises(CheckpointError, match="be a whole bank"):
        read_states(path, 12, "data", mapped)
    write_states(path, states, "data")
    with pytest.raises(CheckpointError, match="for each of 13 examples"):
        read_states(path, 13, "data", mapped)
    with pytest.raises(CheckpointError, match="be of the data of this run, in its order, got 'data'"):
        read_states(path, 12, "other", mapped)
    for wrong in (states[0], states.float()):
        save_file({"states": wrong}, path, {"digest": "data"})
        with pytest.raises(CheckpointError, match="hold a row in half precision"):
            read_states(path, 12, "data", mapped)
    write_states(path, states, "data")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="be a whole bank"):
        read_states(path, 12, "data", mapped)
    save_file({"other": states}, path, {"digest": "data"})
    with pytest.raises(CheckpointError, match="be a whole bank"):
        read_states(path, 12, "data", mapped)


def test_a_place_that_cannot_be_written_is_told(states: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="be writable"):
        write_states(tmp_path / "file" / "prc.safetensors", states, "data")
