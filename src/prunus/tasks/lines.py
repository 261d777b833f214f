"""Bytes of a data file -> lines of text, streamed, with every mistake noted where it stands.

Files are UTF-8, with or without a byte order mark, plain or compressed by gzip. Lines end in LF, CRLF, or (spreadsheets of old)
CR alone, and have at most ``MAX_ROW`` bytes.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Final, NoReturn

from prunus.errors import DataError, Problem, nearest

__all__ = ["BOM", "MAX_ROW", "FileProblems", "lone_surrogate", "opened", "read_lines"]

MAX_ROW: Final = 4 * 2**20
MAX_PROBLEMS: Final = 10
BOM: Final = b"\xef\xbb\xbf"
_PEEK: Final = 2**13


class FileProblems:
    """Mistakes found so far, and the number of rows that were left out; raises at the tenth mistake."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.skipped = 0

    def add(self, where: str, value: object, rule: str, fix: str = "") -> None:
        """Note a mistake and go on reading."""
        shown = value if not isinstance(value, str) or len(value) <= 80 else value[:77] + "..."
        self.found.append(Problem(where, shown, rule, fix))
        if len(self.found) >= MAX_PROBLEMS:
            self.close()

    def fatal(self, where: str, value: object, rule: str, fix: str = "") -> NoReturn:
        """Note a mistake after which reading makes no sense, and raise all of them."""
        self.add(where, value, rule, fix)
        raise DataError(*self.found)

    def close(self) -> None:
        """Raise what was found, if anything was."""
        if self.found:
            raise DataError(*self.found)


def lone_surrogate(text: str) -> str | None:
    """Half of a character (one of a pair of surrogates), with its place; None where the text can be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a character, U+{ord(text[error.start]):04X}, at {error.start}"
    return None


@contextmanager
def opened(path: Path, file_problems: FileProblems) -> Iterator[gzip.GzipFile | BufferedReader]:
    """The (decompressed) bytes of a file; everything that can fail while reading becomes a complaint."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file
    except FileNotFoundError:
        file_problems.fatal(str(path), "no such file", "be an existing file", _neighbour(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        file_problems.fatal(str(path), str(error), "be a whole gzip file", "gzip -t, and fetch the file again")
    except (OSError, ValueError) as error:
        file_problems.fatal(str(path), str(error), "be a readable file")


def _neighbour(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    except OSError:
        return f"a path that exists: there is no directory {path.parent}"
    return nearest(path.name, names[:20]) if names else f"another directory: {path.parent} holds no files"


def read_lines(path: Path, file_problems: FileProblems) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its line end."""
    with opened(path, file_problems) as file:
        next_line = partial(file.readline, MAX_ROW + 1)
        lines = _by_carriage_return(file) if _has_bare_returns(file) else iter(next_line, b"")
        for number, line in enumerate(lines, start=1):
            where = f"{path} line {number}"
            if len(line) > MAX_ROW:
                file_problems.fatal(where, f"{MAX_ROW:,} bytes and more", f"have at most {MAX_ROW:,} bytes")
            data = line.removeprefix(BOM) if number == 1 else line
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                text = data.decode("utf-8", errors="replace")
                file_problems.add(where, f"byte 0x{data[error.start]:02x} in {text.strip()[:40]}", "be UTF-8", "iconv")
            yield number, text


def _has_bare_returns(file: gzip.GzipFile | BufferedReader) -> bool:
    """Whether the lines at the beginning of a file end in CR alone."""
    head = file.peek(_PEEK)[:-1]  # the last byte may be the first half of a CRLF
    return b"\r" in head and b"\n" not in head


def _by_carriage_return(file: gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """Lines that end in CR, with LF in its place; at most ``MAX_ROW + 1`` bytes at once."""
    rest = b""
    while more := file.read(_PEEK):
        *lines, rest = (rest + more).split(b"\r")
        yield from (line + b"\n" for line in lines)
        if len(rest) > MAX_ROW:
            yield rest
            rest = b""
    if rest:
        yield rest
