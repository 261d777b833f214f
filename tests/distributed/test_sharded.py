"""Masks of replicated and sharded models are those of one process, for every pattern, scope and criterion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
MORE = pytest.mark.skipif(not os.environ.get("PRUNUS_DISTRIBUTED"), reason="make test-distributed")


def ended(place: Path, kind: str, processes: int) -> list[dict[str, Tensor]]:
    place.mkdir()
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(HERE / "shard_worker.py"), str(place), kind]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [load_file(place / str(rank)) for rank in range(processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All cases in one process."""
    return ended(tmp_path_factory.mktemp("whole") / "one", "one", 1)[0]


@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        ("fsdp", 2),
        pytest.param("ddp", 2, marks=MORE),
        pytest.param("fsdp", 3, marks=MORE),  # 6, 6 and 4 of 16 rows: blocks of 4 lie across
        pytest.param("ddp", 4, marks=MORE),
        pytest.param("fsdp", 4, marks=MORE),
    ],
)
def test_masks_are_those_of_one_process(kind: str, processes: int, one: dict[str, Tensor], tmp_path: Path) -> None:
    held = ended(tmp_path / "many", kind, processes)
    assert len({key.partition("|")[0] for key in one}) == 15
    for key, value in one.items():
        for other in held:
            if "|weight|" in key:
                torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-9)
            else:
                assert torch.equal(other[key], value), key
