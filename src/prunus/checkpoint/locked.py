"""One command at a time on one output: an advisory lock on ``.NAME.lock`` beside it.

The kernel lets go of it when its process ends, however that ends; a file that a killed process left keeps nobody out.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from prunus.errors import CheckpointError, Problem

if sys.platform != "win32":
    import fcntl

__all__ = ["Busy", "locked"]

_LONGEST: Final = 32


class Busy(CheckpointError):
    """Another process has the lock."""


@contextmanager
def locked(output: Path, key: str = "output") -> Iterator[bool]:
    """Holds the lock of ``output`` (a directory that may not exist yet); False where this file system has no locks.

    Raises ``Busy`` where another process, or another call in this one, has it.
    """
    place = output.resolve()
    path = place.with_name(f".{place.name}.lock")
    made = _missing_parents(path)
    file = _take(path, output, key)
    try:
        yield file is not None
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # before it is let go: who opens it now opens a new one
            file.close()
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break


def _missing_parents(path: Path) -> list[Path]:
    """Makes the directories above ``path``; returns those that were not there, the innermost first."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return []
    return made


def _take(path: Path, output: Path, key: str) -> IO[bytes] | None:
    """The open file whose lock we have; None where there can be none."""
    if sys.platform == "win32":
        return None
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        except OSError:  # a place that is read-only for us
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):  # the one who had it has taken the file away
                file.close()
                continue
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
        except BlockingIOError:
            who = file.read(_LONGEST).decode("ascii", errors="replace").strip() or "another process"
            file.close()
            rule = f"be written by one command at a time: process {who} is at work on it"
            raise Busy(Problem(key, str(output), rule, "waiting until it ends, or another place")) from None
        except OSError:  # no locks here, or no space
            file.close()
            return None
        return file


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)
