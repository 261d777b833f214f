"""A directory that is filled beside its place: what goes wrong on the way leaves what was there."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from prunus.checkpoint.locked import locked
from prunus.errors import FULL, CheckpointError, Problem

__all__ = ["copy_files", "is_new", "staged"]

_PARTIAL: Final = ".partial"
_REFUSED: Final = (*FULL, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of a device that is full, broken, or not ours to write to."""


def copy_files(directory: Path, output: Path, names: Iterable[str]) -> None:
    """Those of the named files that are there."""
    for name in names:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, output / name)


def is_new(output: Path) -> bool:
    """Whether nothing is there, or a directory with nothing in it but what a killed command left."""
    if output.is_symlink() or not output.is_dir():
        return not (output.exists() or output.is_symlink())
    return [path.name for path in output.iterdir()] == [_PARTIAL]


@contextmanager
def staged(output: Path, last: str = "", *, new: str = "", held: bool = False) -> Iterator[Path]:
    """A new directory inside ``output``; at the end its files replace those of ``output``, the one named ``last`` last.

    ``new`` names a file that must not be there yet: another process may have written it since the caller looked. After an
    exception nothing of it is left, and an ``output`` that this made is gone too. The lock of ``output`` (``locked``)
    is taken, unless the caller has ``held`` it since before. Raises ``CheckpointError`` where the device does not take what is
    written, and where another process writes there.
    """
    with nullcontext() if held else locked(output), _staged(output, last, new) as partial:
        yield partial


@contextmanager
def _staged(output: Path, last: str, new: str) -> Iterator[Path]:
    if new and (output / new).exists():
        fix = "another directory, or --overwrite"
        raise CheckpointError(Problem("output", str(output), f"not hold {new} yet", fix))
    made = not output.exists()
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
            if path.is_dir() and (output / path.name).is_dir():  # a directory does not replace one that holds files
                shutil.rmtree(output / path.name)
            os.replace(path, output / path.name)
        partial.rmdir()
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if made and not any(output.iterdir()):
            output.rmdir()
        if isinstance(error, SafetensorError) or getattr(error, "errno", None) in _REFUSED:
            fix = "space, or another directory; what was there before is whole"
            raise CheckpointError(Problem(str(output), str(error), "be written whole", fix)) from None
        raise
