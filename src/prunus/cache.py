"""Where things are kept between runs: ``$PRUNUS_CACHE``, else ``prunus`` in the user's cache directory.

kernels    compiled code of the runtime
dense      fine-tuned dense models
tokens     tokenised text of language modelling

Where that cannot be written, what is made goes to a directory of the user among the temporary files, and a line says so.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

from prunus.errors import CheckpointError, Problem

__all__ = ["cache_directory", "cache_or_temporary"]

Kind = Literal["kernels", "dense", "tokens"]


def cache_directory(kind: Kind) -> Path | None:
    """The directory for one kind; None for a user without a home."""
    named, home = os.environ.get("PRUNUS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) / kind if named else Path(home or Path.home() / ".cache") / "prunus" / kind
    except RuntimeError:
        return None


def cache_or_temporary(kind: Kind, name: str) -> Path:
    """Where the thing called ``name`` is kept, or is to be kept; the directory above it can be written if it is not there yet.

    Raises ``CheckpointError`` where not even the place for temporary files can be written.
    """
    directory = cache_directory(kind)
    if directory is not None and (_is_there(directory / name) or _can_write(directory)):
        return directory / name
    user = os.getuid() if hasattr(os, "getuid") else "user"
    other = Path(tempfile.gettempdir()) / f"prunus-{user}" / kind
    if not (_can_write(other) and _is_ours(other)):
        fix = "PRUNUS_CACHE, a directory that can be written"
        raise CheckpointError(Problem("PRUNUS_CACHE", str(directory), "be a place that can be written", fix))
    logging.getLogger("prunus").warning("cache: %s cannot be written; %s is used instead", directory, other)
    return other / name


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _can_write(directory: Path) -> bool:
    """Whether files can be made in ``directory``, which is made if it is not there."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _is_ours(directory: Path) -> bool:
    return not hasattr(os, "getuid") or directory.parent.stat().st_uid == directory.stat().st_uid == os.getuid()
