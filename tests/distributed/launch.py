"""Starts a worker of this directory in one or several processes."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

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
