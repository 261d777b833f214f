"""Paths as a user types them, checked before anything is read or written.

expanded      ``~`` and ``~user`` become the home they name
readable      the same; ``.`` and ``..`` become a directory with a name, so that others can be written beside it
writable      the same; and the place can be created: no link to nothing, no file on the way, and we may write there
"""

import os
from pathlib import Path

from prunus.errors import CheckpointError, Problem, RecipeError

__all__ = ["expanded", "readable", "writable"]


def expanded(path: str | Path, key: str) -> Path:
    """The path with the home that ``~`` stands for. Raises ``RecipeError`` for a user who is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        rule = "begin with the home of a user that this machine knows"
        raise RecipeError(Problem(key, str(path), rule, "the whole path, from /")) from None


def readable(path: Path, key: str) -> Path:
    """A path that every library can open. Raises ``RecipeError`` for one that is not UTF-8, which some of them need."""
    path = expanded(path, key)
    try:
        os.fsencode(path).decode(
            "utf-8"
        )  # the bytes count: in a locale that is not UTF-8 the text is full of surrogates
    except UnicodeDecodeError:
        shown = os.fsencode(path).decode("utf-8", errors="backslashreplace")
        raise RecipeError(Problem(key, shown, "be a path in UTF-8", "another name")) from None
    return path if path.name not in ("", "..") else path.resolve()


def writable(path: Path, key: str = "--output") -> Path:
    """A place that can be written. Raises ``CheckpointError`` where it cannot, with the reason."""
    path = readable(path, key)
    reason = _hindrance(path)
    if reason:
        raise CheckpointError(Problem(key, str(path), reason, "another place"))
    return path


def _hindrance(path: Path) -> str:
    """What keeps a place from being written; empty where nothing does."""
    try:
        if path.is_symlink() and not path.exists():
            return f"not be a link to what is not there ({os.readlink(path)})"
        there = next(each for each in (path, *path.absolute().parents) if _exists(each))
        if there != path and not there.is_dir():
            return f"lie in directories: {there} is a file"
        if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
            return f"lie where we may write: {there} is read-only for us"
    except OSError as error:
        return f"be a path that this system takes ({error.strerror})"
    return ""


def _exists(path: Path) -> bool:
    """``Path.exists``, which answers no for what lies below a file and for a link that leads in a circle."""
    return path.exists() or path.is_symlink()
