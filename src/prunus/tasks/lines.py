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
from typing import Any, Final, NoReturn

from prunus.errors import DataError, Problem, nearest

__all__ = [
    "BOM",
    "MAX_ROW",
    "PEEK",
    "FileProblems",
    "check_text",
    "lone_surrogate",
    "no_file",
    "opened",
    "read_lines",
]

MAX_ROW: Final = 4 * 2**20
MAX_PROBLEMS: Final = 10
BOM: Final = b"\xef\xbb\xbf"
PEEK: Final = 2**13
_TO_UTF8: Final = "iconv -f {} -t UTF-8"
_MARKS: Final = {
    b"\xff\xfe\0\0": ("UTF-32", _TO_UTF8.format("UTF-32")),
    b"\0\0\xfe\xff": ("UTF-32", _TO_UTF8.format("UTF-32")),
    b"\xff\xfe": ("UTF-16", _TO_UTF8.format("UTF-16")),
    b"\xfe\xff": ("UTF-16", _TO_UTF8.format("UTF-16")),
    b"\x1f\x8b": ("gzip", "gunzip, or .gz at the end of its name"),
    b"PK\x03\x04": ("a zip archive, as spreadsheets are", "unzip, or saving the spreadsheet as CSV"),
    b"PAR1": ("Parquet", "saving it as JSONL or CSV"),
}
"""How files begin that are no UTF-8 -> what they are, and what makes text of them. Longer beginnings stand first."""


class FileProblems:
    """Mistakes found so far, and the number of rows that were left out; raises at the tenth mistake."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.skipped = 0

    def add(self, where: str, value: object, rule: str, fix: str = "") -> None:
        """Note a mistake and go on reading. A mistake of a file that is read twice counts once."""
        shown = value if not isinstance(value, str) or len(value) <= 80 else value[:77] + "..."
        problem = Problem(where, _printable(shown), rule, _printable(fix))
        if problem in self.found:
            return
        self.found.append(problem)
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


def _printable(value: Any) -> Any:
    """A text without characters that would steer the terminal; other values as they are."""
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\t\n" else "\ufffd" for c in value)


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


def no_file(key: str, path: Path, fix: str) -> Problem | None:
    """What keeps a path from being a file of data; None for a regular file. ``fix`` is for a path where nothing is."""
    if path.is_file():
        return None
    if not path.exists():
        return Problem(key, str(path), "be an existing file", fix)
    kind = "a directory" if path.is_dir() else "a device, a pipe or a socket"
    return Problem(key, f"{path}, {kind}", "be a regular file", "a file, which can be read more than once")


def check_text(path: Path, head: bytes, file_problems: FileProblems) -> None:
    """Raises ``DataError`` for a file that is no UTF-8 text, as its first bytes show: another encoding, or no text."""
    got, fix = next((what for mark, what in _MARKS.items() if head.startswith(mark)), ("", ""))
    if not got and b"\0" in head:
        got, fix = "binary data", "a text file"
        for order, low, high in (("LE", head[::2], head[1::2]), ("BE", head[1::2], head[::2])):
            if b"\0" not in low and 2 * high.count(0) > len(high):  # in UTF-16 every other byte of Latin text is 0
                got, fix = f"UTF-16{order}", _TO_UTF8.format(f"UTF-16{order}")
    if got:
        file_problems.fatal(str(path), f"{got}, by its first bytes", "be UTF-8 text", fix)


def _neighbour(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    except OSError:
        return f"a path that exists: there is no directory {path.parent}"
    return nearest(path.name, names[:20]) if names else f"another directory: {path.parent} holds no files"


def read_lines(path: Path, file_problems: FileProblems) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its line end."""
    with opened(path, file_problems) as file:
        check_text(path, file.peek(PEEK)[:PEEK], file_problems)
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
    head = file.peek(PEEK)[:-1]  # the last byte may be the first half of a CRLF
    return b"\r" in head and b"\n" not in head


def _by_carriage_return(file: gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """Lines that end in CR, with LF in its place; at most ``MAX_ROW + 1`` bytes at once."""
    rest = b""
    while more := file.read(PEEK):
        *lines, rest = (rest + more).split(b"\r")
        yield from (line + b"\n" for line in lines)
        if len(rest) > MAX_ROW:
            yield rest
            rest = b""
    if rest:
        yield rest
