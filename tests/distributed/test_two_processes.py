"""Two processes on gloo end where one ends that sees the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from small import locked_bert

WORKER = Path(__file__).with_name("lock_worker.py")


def ended(place: Path, kind: str, processes: int) -> list[dict[str, Tensor]]:
    place.mkdir()
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(WORKER), str(place), kind, str(4 // processes)]
    path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [load_file(place / str(rank)) for rank in range(processes)]


def zeros_stay(start: dict[str, Tensor], first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    moved = 0.0
    for name, value in first.items():
        assert torch.equal(value, second[name])
        moved = max(moved, float((value - start[name]).abs().max()))
        if ".encoder." in name and value.ndim == 2:
            assert torch.equal(value == 0, start[name] == 0)
            assert 0.1 < float((value == 0).float().mean()) < 0.9
    assert moved > 1e-3


def test_locked_zeros_stay_in_the_trainer_of_transformers(tmp_path: Path) -> None:
    first, second = ended(tmp_path / "two", "plain", 2)
    zeros_stay(locked_bert().state_dict(), first, second)


def test_zeros_stay_and_weights_are_those_of_one_process(tmp_path: Path) -> None:
    (one,) = ended(tmp_path / "one", "prunus", 1)
    first, second = ended(tmp_path / "two", "prunus", 2)
    zeros_stay(locked_bert().state_dict(), first, second)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
