"""The default number of threads: affinity, and the quota of control groups as files."""

from pathlib import Path

import pytest

from prunus.distributed.processes import training_threads
from prunus.errors import EngineError
from prunus.runtime import processors as module
from prunus.runtime.processors import cpu_quota, processors

Files = dict[str, str]


def groups(place: Path, member: str, files: Files) -> tuple[Path, Path]:
    """Control groups as the kernel shows them, under ``place``."""
    root, named = place / "cgroup", place / "self"
    root.mkdir()
    named.write_text(member)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root, named


V1 = {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
CASES: list[tuple[str, Files, float | None]] = [
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "150000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 1.5),
    ("0::/of/the/host\n", {"cpu.max": "300000 100000\n"}, 3.0),  # a path that this namespace does not show
    ("0::/../other\n", {"cpu.max": "200000 100000\n"}, 2.0),
    ("4:cpu,cpuacct:/\n1:name=systemd:/\n", V1, None),
    ("4:cpu,cpuacct:/\n", V1 | {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n"}, 0.5),
    ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"}, 2.5),
    ("4:cpuacct,cpu:/docker/1\n", V1 | {"cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "45000"}, 2.0),
    ("4:cpuset:/\n0::/\n", {}, None),
    ("0::/\n", {"cpu.max": "nonsense\n"}, None),
    ("0::/\n", {"cpu.max": "0 100000\n"}, None),
    ("\n::\n0\n", {}, None),
]


@pytest.mark.parametrize(("member", "files", "expected"), CASES)
def test_the_quota_of_control_groups(member: str, files: Files, expected: float | None, tmp_path: Path) -> None:
    assert cpu_quota(*groups(tmp_path, member, files)) == expected


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nowhere", tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("stated", "quota", "expected"),
    [("", None, 8), ("", 0.5, 1), ("", 1.5, 1), ("", 2.0, 2), ("", 64.0, 8), ("3", 0.5, 3), ("none", 0.5, 0)],
)
def test_the_default_number_of_threads(
    stated: str, quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_THREADS", stated)
    monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert processors() == expected


def test_training_takes_what_it_is_told_or_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("PRUNUS_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr("prunus.distributed.processes.processors", lambda: 2)
    assert training_threads(None) == 2
    assert training_threads(5) == 5
    monkeypatch.setattr("prunus.distributed.processes.processors", lambda: 0)
    assert training_threads(None) == 1


def test_an_engine_refuses_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import small_dense

    from prunus.runtime.convert import convert
    from prunus.runtime.engine import Engine

    monkeypatch.setenv("PRUNUS_THREADS", "many")
    with pytest.raises(EngineError, match="threads must be 1 to 256, got 0"):
        Engine(convert(small_dense("bert")))
