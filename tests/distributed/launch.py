"""Starts a worker of this directory in one or several processes, and compares where runs end."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from prunus.checkpoint.tensor_io import read_masks

HERE = Path(__file__).parent


def ended(place: Path, worker: str, processes: int, *arguments: str) -> list[dict[str, Tensor]]:
    """What each process of the worker wrote into ``place`` (its first argument), in a file named by its rank."""
    place.mkdir()
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(HERE / worker), str(place), *arguments]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [load_file(place / str(rank)) for rank in range(processes)]


def same_end(place: Path, first: str, second: str) -> None:
    """The same masks, and weights but for the order of sums."""
    masks = [read_masks(place / name / "masks.safetensors") for name in (first, second)]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    left, right = (load_file(place / name / "model.safetensors") for name in (first, second))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-5)
