"""Masks of replicated and sharded models are those of one process, for every pattern, scope and criterion.

So are those of models that are sharded only after their zeros were locked, or within a training.
"""

import os
from pathlib import Path

import pytest
import torch
from launch import ended
from torch import Tensor

MORE = pytest.mark.skipif(not os.environ.get("PRUNUS_DISTRIBUTED"), reason="make test-distributed")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All cases in one process."""
    return ended(tmp_path_factory.mktemp("whole") / "one", "shard_worker.py", 1, "one")[0]


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
    held = ended(tmp_path / "many", "shard_worker.py", processes, kind)
    assert len({key.partition("|")[0] for key in one}) == 25
    for key, value in one.items():
        for other in held:
            if "|weight|" in key:
                torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-9)
            else:
                assert torch.equal(other[key], value), key
