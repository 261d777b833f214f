"""A directory that is filled beside its place: what goes wrong on the way leaves what was there."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["copy_files", "staged"]


def copy_files(directory: Path, output: Path, names: Iterable[str]) -> None:
    """Those of the named files that are there."""
    for name in names:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, output / name)


@contextmanager
def staged(output: Path, last: str = "") -> Iterator[Path]:
    """A new directory inside ``output``; at the end its files replace those of ``output``, the one named ``last`` last.

    After an exception nothing of it is left, and an ``output`` that this made is gone too.
    """
    made = not output.exists()
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
            os.replace(path, output / path.name)
        partial.rmdir()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if made and not any(output.iterdir()):
            output.rmdir()
        raise
