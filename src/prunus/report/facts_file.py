"""The file ``prunus.json``: one JSON object, read and written whole, and readers for values that may have any type.

Each entry but ``prunus`` (the version that wrote the file) may be missing or null. A file is data from outside: ``section``,
``rows``, ``number`` and ``text`` return nothing where a value has another type (``facts.py`` gives the whole object its types).

Numbers in the file are finite: JSON has no NaN, so a NaN or an infinity is written, and read, as null.
"""

import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

from prunus.errors import CheckpointError, Problem

__all__ = ["FACTS_FILE", "clean", "number", "numbers", "read_json", "rows", "section", "text", "texts", "write_json"]

FACTS_FILE: Final = "prunus.json"
MAX_BYTES: Final = 64 * 2**20
MAX_DEPTH: Final = 64

# Control characters, line separators, bidirectional overrides, lone surrogates and non-characters: they make XML
# ill-formed, move a terminal's cursor, or show a name as another one.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def clean(value: object) -> str:
    """``str(value)`` with each character that is unsafe to print replaced by U+FFFD; tabs and newlines stay."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def section(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under ``key``, empty where there is none."""
    value = facts.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def rows(facts: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of the list under ``key``, empty where there is none; anything else in the list is left out."""
    value = facts.get(key)
    return [dict(row) for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def number(facts: Mapping[str, Any], key: str) -> float | None:
    """The finite number under ``key``, None where there is none (a bool is no number)."""
    value = facts.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        parsed = float(value)
    except OverflowError:
        return None
    return parsed if math.isfinite(parsed) else None


def numbers(facts: Mapping[str, Any], key: str) -> dict[str, float]:
    """The finite numbers of the object under ``key``, in its order; empty where there is none."""
    mapping = section(facts, key)
    values = {str(name): number(mapping, name) for name in mapping}
    return {name: value for name, value in values.items() if value is not None}


def text(facts: Mapping[str, Any], key: str) -> str:
    """The text under ``key``, cleaned, without outer space; empty where there is none."""
    value = facts.get(key)
    return clean(value).strip() if isinstance(value, str) else ""


def texts(facts: Mapping[str, Any], key: str) -> list[str]:
    """The texts of the list under ``key``, cleaned; empty where there is none."""
    value = facts.get(key)
    return [clean(item).strip() for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def read_json(directory: Path) -> dict[str, Any]:
    """The JSON object in ``prunus.json`` of ``directory``.

    Raises:
        CheckpointError: ``prunus.json`` is missing, larger than 64 MiB, no JSON object, nested deeper than 64 levels,
            or names no version under ``prunus``.

    """
    path = directory / FACTS_FILE
    try:
        # One byte more than is allowed: the size is judged on what was read, not on what the directory says.
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _error(path, reason, "be a readable file", "the directory that `prunus run` wrote") from error
    if len(data) > MAX_BYTES:
        raise _error(
            path, f"{len(data):,} or more", f"hold at most {MAX_BYTES:,} bytes", "the directory that `prunus run` wrote"
        )
    try:
        # parse_constant sees NaN, Infinity and -Infinity, which Python's reader accepts although JSON has none.
        facts = json.loads(data.decode("utf-8"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise _error(path, clean(error), "be JSON", "the copy of an earlier checkpoint, or the run again") from error
    if not isinstance(facts, dict):
        raise _error(path, type(facts).__name__, "be a JSON object", "the directory that `prunus run` wrote")
    if _deeper_than(facts, MAX_DEPTH):
        raise _error(
            path, "more levels", f"be nested at most {MAX_DEPTH} levels", "the directory that `prunus run` wrote"
        )
    if not text(facts, "prunus"):
        raise CheckpointError(
            Problem(f"prunus in {path}", facts.get("prunus"), "be the version that wrote it", "the run again")
        )
    return facts


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``facts`` to ``path`` so that a reader sees the old file or the new one, never a part.

    NaN and infinities become null; NumPy scalars become numbers, paths text, tuples lists.

    Raises:
        CheckpointError: the file cannot be written; the old one, if any, is unchanged.
        TypeError: a value is none of JSON's kinds.

    """
    data = json.dumps(_plain(facts), indent=1, allow_nan=False).encode("ascii") + b"\n"
    # Beside the target, for os.replace is atomic within one file system only; opened by hand, for the modules that make
    # temporary files make them unreadable to others.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _error(path, reason, "be writable", "another output directory, or free space") from error


def _error(path: Path, value: str, rule: str, fix: str) -> CheckpointError:
    return CheckpointError(Problem(str(path), value, rule, fix))


def _plain(value: object) -> object:
    """``value`` as JSON's own kinds."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"facts hold JSON values, got {type(value).__name__}")


def _deeper_than(value: object, levels: int) -> bool:
    front = [value]
    for _ in range(levels):
        next_level: list[object] = []
        for item in front:
            if isinstance(item, dict):
                next_level.extend(item.values())
            elif isinstance(item, list):
                next_level.extend(item)
        front = next_level
    return any(isinstance(item, dict | list) for item in front)
