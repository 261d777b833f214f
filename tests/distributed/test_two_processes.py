"""Two processes on gloo end where one ends that sees the same batches."""

import sys
from pathlib import Path

import pytest
import torch
from launch import ended
from torch import Tensor

from prunus import cli
from prunus.distributed import processes
from small import locked_bert


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
    first, second = ended(tmp_path / "two", "lock_worker.py", 2, "2", "plain")
    zeros_stay(locked_bert().state_dict(), first, second)


def test_zeros_stay_and_weights_are_those_of_one_process(tmp_path: Path) -> None:
    (one,) = ended(tmp_path / "one", "lock_worker.py", 1, "4", "prunus")
    first, second = ended(tmp_path / "two", "lock_worker.py", 2, "2", "prunus")
    zeros_stay(locked_bert().state_dict(), first, second)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def test_contrastive_terms_see_the_right_rows_and_hold_one_bank(tmp_path: Path) -> None:
    (one,) = ended(tmp_path / "one", "contrast_worker.py", 1, "4", "cpu")
    first, second = ended(tmp_path / "two", "contrast_worker.py", 2, "2", "mmap")
    assert sorted(one["seen"].tolist()) == list(range(32))
    assert sorted([*first["seen"].tolist(), *second["seen"].tolist()]) == list(range(32))
    assert first["bank.snc"].shape == (32, 1, 16)
    for name, value in first.items():
        if name != "seen":
            assert torch.equal(value, second[name]), name
    for name in ("bank.prc", "bank.fic"):
        torch.testing.assert_close(first[name], one[name], rtol=1e-3, atol=1e-3)


def test_tokens_count_alike_in_all_processes(tmp_path: Path) -> None:
    """Also where the first micro-batch of one process has no labels, and does not show whether the model counts them."""
    (one,) = ended(tmp_path / "one", "items_worker.py", 1, "4")
    first, second = ended(tmp_path / "two", "items_worker.py", 2, "2")
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "met"), [(0.8, True), (0.1, False)])
def test_all_processes_take_the_times_of_the_first(
    share: float, met: bool, tmp_path: Path, tiny_bert: Path, small_data: Path
) -> None:
    first, second = ended(tmp_path / "two", "budget_worker.py", 2, str(tiny_bert), str(small_data), str(share))
    assert torch.equal(first["sparsity"], second["sparsity"])
    assert float(first["sparsity"]) > 0 if met else float(first["sparsity"]) == -1


def test_the_command_line_leaves_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    assert processes.is_main_process()
    monkeypatch.setattr(sys, "argv", ["prunus", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert not torch.distributed.is_initialized()
    processes.leave_process_group()  # none: nothing to do
