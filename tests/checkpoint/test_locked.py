"""One command at a time writes into an output, whatever has happened to the one before."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.checkpoint import locked as locked_module
from prunus.checkpoint.locked import Busy, locked
from prunus.checkpoint.staged import staged

HOLD = """
import sys, time
from pathlib import Path
from prunus.checkpoint.locked import locked
with locked(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(60)
"""


def holder(output: Path) -> "subprocess.Popen[str]":
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_second_process_is_told_who_the_first_is_and_a_killed_one_keeps_nobody_out(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with holder(output) as process:
        try:
            (tmp_path / "link").symlink_to(output.parent)
            for path in (output, tmp_path / "link" / "out"):
                with pytest.raises(Busy, match=rf"output must be .* process {process.pid} is at work on it, got .*out"), locked(path):  # fmt: skip  # noqa: E501
                    pass
                with pytest.raises(Busy), staged(path):
                    pass
            with locked(tmp_path / "deep" / "other") as held:
                assert held
        finally:
            process.kill()
    assert (output.parent / ".out.lock").exists()  # nobody could take it away
    with locked(output) as held:
        assert held
        with pytest.raises(Busy, match=f"process {os.getpid()} "), locked(output):
            pass
    assert list(tmp_path.glob("**/.*.lock")) == []


def test_nothing_is_left_beside_an_output_that_was_not_made(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "out"):
        (tmp_path / "a" / "out").mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "flock"])
def test_without_locks_it_goes_on(number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    place = locked_module.os if call == "open" else locked_module.fcntl
    with monkeypatch.context() as patch:
        patch.setattr(place, call, refuse)
        with locked(tmp_path / "out") as held:
            assert not held


def test_a_lock_that_was_taken_away_while_it_was_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens the file just before its owner removes it would lock a file that nobody else sees."""
    path, flock, calls = tmp_path / ".out.lock", locked_module.fcntl.flock, []

    def late(file: object, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(operation)
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(locked_module.fcntl, "flock", late)
    with locked(tmp_path / "out") as held:
        assert held
        assert path.read_bytes() == str(os.getpid()).encode()
    assert len(calls) == 2
