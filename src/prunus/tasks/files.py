"""Rows out of data files, streamed, with the line of every mistake.

    .csv .tsv        a header, then one row a line; a quoted CSV field may hold line ends
    .jsonl           one object a line
    .json            a list of objects, an object with such a list under "data", or SQuAD's articles under "data"
    any of them .gz

Files are UTF-8, with or without a byte order mark; lines end in LF, CRLF, or (old spreadsheets) CR alone. A tab-separated file
has no quoting at all, as GLUE's files need it: a quotation mark is a character. Mistakes are gathered in a ``FileProblems`` and
raised together as one DataError.

Lengths are bounded, so that a wrong file (or a small ``.gz`` that grows) fails early: a line has at most
``MAX_ROW`` bytes, a CSV field as many characters, a JSON document ``MAX_JSON`` bytes.
"""

import csv
import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from prunus.errors import DataError, Problem, nearest
from prunus.tasks.lines import BOM, MAX_ROW, PEEK, FileProblems, check_text, lone_surrogate, opened, read_lines

__all__ = [
    "KINDS",
    "ColumnLayout",
    "FileProblems",
    "Row",
    "check_columns",
    "file_kind",
    "lone_surrogate",
    "read_lines",
    "read_rows",
    "select",
    "text_of",
]

MAX_JSON: Final = 2**30

_SHOWN: Final = 40
"""Columns that a message lists, and characters of each."""
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """One row: where it stands, and its values by role."""

    source: str
    line: int
    place: str
    values: Mapping[str, object]

    @property
    def where(self) -> str:
        """As an error names the row: ``data/train.tsv line 17``."""
        return f"{self.source} {self.line}{self.place}"


@dataclass(frozen=True)
class ColumnLayout:
    """Which columns fill which roles.

    ``required`` and ``optional`` map a role to the column names that may hold it, the preferred one first. A table
    whose first line names no required column is read without a header if it is as wide as ``headerless``, which then
    names the columns. ``keys`` says what ``columns`` of a recipe calls a role that has another name
    there. ``skip_short`` leaves out rows with fewer columns than the header, which one official file needs.
    """

    required: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    headerless: tuple[str, ...] = ()
    skip_short: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)


class _Record(NamedTuple):
    """One row before its roles are known: its line, its place in that line, and its columns."""

    line: int
    place: str
    values: Mapping[str, object]


def file_kind(path: Path) -> str | None:
    """``csv``, ``tsv``, ``jsonl`` or ``json``, from the name; None for other names."""
    name = path.name.lower().removesuffix(".gz")
    return kind if (kind := name.rpartition(".")[2]) in KINDS and "." in name else None


def read_rows(path: Path, layout: ColumnLayout, file_problems: FileProblems) -> Generator[Row, None, None]:
    """The rows of a file, in order. Raises DataError for a file that cannot be read or has no row."""
    kind = file_kind(path)
    if kind is None:
        file_problems.fatal(
            str(path), path.suffix, f"end in {', '.join('.' + k for k in KINDS)}, or one of these and .gz"
        )
    source, count = f"{path} line", 0
    for record in KINDS[kind](path, layout, file_problems):
        count += 1
        values = select(record.values, layout, f"{source} {record.line}{record.place}", file_problems)
        if values is not None:
            yield Row(source, record.line, record.place, values)
    if not count and not file_problems.found:
        file_problems.fatal(str(path), "no rows", "hold at least one row")


def check_columns(path: Path, layout: ColumnLayout) -> list[Problem]:
    """What is wrong with a file as far as its first row; nothing of a ``.json`` file, which has to be read whole."""
    if file_kind(path) == "json":
        return []
    file_problems = FileProblems()
    try:
        with closing(read_rows(path, layout, file_problems)) as rows:
            next(rows, None)
    except DataError as error:
        return list(error.problems)
    return file_problems.found


def select(
    values: Mapping[str, object], layout: ColumnLayout, where: str, file_problems: FileProblems
) -> dict[str, object] | None:
    """The values of a row by role, or None after a complaint about each required column that is not there."""
    columns = _columns(values, layout, where, file_problems)
    return None if columns is None else {role: values[name] for role, name in columns.items()}


def _columns(
    names: Collection[str], layout: ColumnLayout, where: str, file_problems: FileProblems
) -> dict[str, str] | None:
    columns = {}
    for role, accepted in {**layout.required, **layout.optional}.items():
        for name in accepted:
            if name in names:
                columns[role] = name
                break
    for role in (missing := [role for role in layout.required if role not in columns]):
        wanted = " or ".join(layout.required[role])
        key = layout.keys.get(role, role)
        near = nearest(layout.required[role][0], [name[:_SHOWN] for name in names][:_SHOWN])
        fix = f"{near} (columns: {{{key}: NAME}} names a column of own files)"
        file_problems.add(where, "columns " + ", ".join(names), f"have a column {wanted}", fix if names else "")
    return None if missing else columns


def text_of(row: Row, role: str, file_problems: FileProblems) -> str | None:
    """The value of a role if it is a string; otherwise None, after a complaint."""
    value = row.values.get(role)
    if not isinstance(value, str):
        file_problems.add(row.where, value, f"hold a string as {role}")
        return None
    half = lone_surrogate(value)
    if half is not None:
        file_problems.add(
            row.where, half, f"hold whole characters as {role}", "the text before it was cut, or without it"
        )
        return None
    return value


def _tsv(path: Path, layout: ColumnLayout, file_problems: FileProblems) -> Iterator[_Record]:
    lines = ((number, text.rstrip("\r\n")) for number, text in read_lines(path, file_problems))
    return _table(path, ((number, text.split("\t")) for number, text in lines if text), layout, file_problems)


def _csv(path: Path, layout: ColumnLayout, file_problems: FileProblems) -> Iterator[_Record]:
    return _table(path, _csv_cells(path, file_problems), layout, file_problems)


def _csv_cells(path: Path, file_problems: FileProblems) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((text for _, text in read_lines(path, file_problems)), strict=True)
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(MAX_ROW)  # 131,072 by default, for the whole process
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where, message = f"{path} line {line}", str(error)
            if "field limit" in message:
                got = f"a field of more than {MAX_ROW:,} characters"
                file_problems.fatal(where, got, "have shorter fields", "closing a quotation mark, or shorter texts")
            file_problems.fatal(where, message, "be a well-formed CSV row", "an even number of quotation marks")
        finally:
            csv.field_size_limit(limit)
        if cells:
            yield line, cells


def _table(
    path: Path, lines: Iterator[tuple[int, list[str]]], layout: ColumnLayout, file_problems: FileProblems
) -> Iterator[_Record]:
    names: tuple[str, ...] | None = None
    for number, cells in lines:
        where = f"{path} line {number}"
        if names is None:
            names = _header(cells, layout, where, file_problems)
            if names is not layout.headerless:
                continue
        if len(cells) == len(names):
            yield _Record(number, "", dict(zip(names, cells, strict=True)))
        elif layout.skip_short and len(cells) < len(names):
            file_problems.skipped += 1
        else:
            file_problems.add(where, f"{len(cells)} columns", f"have {len(names)} columns, as the first row")


def _header(cells: list[str], layout: ColumnLayout, where: str, file_problems: FileProblems) -> tuple[str, ...]:
    known = {name for accepted in layout.required.values() for name in accepted}
    if len(cells) == len(layout.headerless) and not known & set(cells):
        return layout.headerless
    names = tuple(cell.strip() for cell in cells)
    twice = sorted({name for name in names if names.count(name) > 1 and name in known})
    if twice:
        file_problems.fatal(where, ", ".join(names), f"name the column {twice[0]} once")
    if _columns(names, layout, where, file_problems) is None:
        file_problems.close()
    return names


def _jsonl(path: Path, _: ColumnLayout, file_problems: FileProblems) -> Iterator[_Record]:
    for number, text in read_lines(path, file_problems):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            file_problems.add(f"{path} line {number}", text.strip(), f"be a JSON object ({error})")
            continue
        if isinstance(value, dict):
            yield _Record(number, "", value)
        else:
            file_problems.add(f"{path} line {number}", text.strip(), "be a JSON object")


def _json(path: Path, _: ColumnLayout, file_problems: FileProblems) -> Iterator[_Record]:
    with opened(path, file_problems) as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        file_problems.fatal(str(path), f"more than {MAX_JSON:,} bytes", f"have at most {MAX_JSON:,} bytes", "JSONL")
    check_text(path, data[:PEEK], file_problems)
    try:
        text = data.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.removeprefix(BOM).count(b"\n", 0, error.start) + 1
        file_problems.fatal(f"{path} line {line}", f"byte 0x{error.object[error.start]:02x}", "be UTF-8", "iconv")
    if not text.strip():
        file_problems.fatal(str(path), "an empty file", "hold at least one row")
    try:
        yield from _items(path, text, file_problems)
    except json.JSONDecodeError as error:
        file_problems.fatal(f"{path} line {error.lineno}", f"{error.msg} at column {error.colno}", "be JSON")
    except (ValueError, RecursionError) as error:
        file_problems.fatal(str(path), str(error), "be JSON")


def _items(path: Path, text: str, file_problems: FileProblems) -> Iterator[_Record]:
    """The objects of the list, SQuAD's articles cut into questions."""
    for line, index, item in _elements(path, text, file_problems):
        place = f" item {index}"
        if not isinstance(item, dict):
            file_problems.add(f"{path} line {line}{place}", str(item), "be a JSON object")
        elif "paragraphs" in item:
            for inner, question in _questions(item, f"{path} line {line} data[{index}]", file_problems):
                yield _Record(line, f" data[{index}]{inner}", question)
        else:
            yield _Record(line, place, item)


def _elements(path: Path, text: str, file_problems: FileProblems) -> Iterator[tuple[int, int, object]]:
    """Line, index and value of each element of the outer list, or of the list under "data" of the outer object."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int, expected: str) -> int:
        """The position after one of the expected characters and the white space around it."""
        at = _past_space(text, at)
        if text[at : at + 1] not in [*expected]:
            raise json.JSONDecodeError(f"Expecting one of {expected}", text, at)
        return _past_space(text, at + 1)

    at = _past_space(text, 0)
    if text[at : at + 1] == "{":
        at = _find_data(text, skip(at, "{"), skip)
    if at < 0 or text[at : at + 1] != "[":
        rule = 'be a list of objects, or an object with such a list under "data"'
        file_problems.fatal(str(path), text[:40].strip(), rule)
    at = skip(at, "[")
    line, counted, index = 1, 0, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = decode(text, at)
        yield line, index, value
        index += 1
        at = _past_space(text, at)
        if text[at : at + 1] != "]":
            at = skip(at, ",")


def _past_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _find_data(text: str, at: int, skip: Callable[[int, str], int]) -> int:
    """Where the value of the key "data" of the outer object starts; -1 if there is none."""
    decode = json.JSONDecoder().raw_decode
    while text[at : at + 1] != "}":
        key, at = decode(text, at)
        at = skip(at, ":")
        if key == "data":
            return at
        _, at = decode(text, at)
        at = _past_space(text, at)
        if text[at : at + 1] != "}":
            at = skip(at, ",")
    return -1


def _questions(
    article: Mapping[str, object], where: str, file_problems: FileProblems
) -> Iterator[tuple[str, dict[str, object]]]:
    """Place and columns of each question of one article in SQuAD's layout."""
    for i, paragraph in enumerate(_objects(article, "paragraphs", where, file_problems)):
        inner = f".paragraphs[{i}]"
        for j, qa in enumerate(_objects(paragraph, "qas", where + inner, file_problems)):
            columns = {
                "context": paragraph.get("context"),
                "question": qa.get("question"),
                "answers": qa.get("answers"),
            }
            yield f"{inner}.qas[{j}]", columns | ({"id": qa["id"]} if "id" in qa else {})


def _objects(
    parent: Mapping[str, object], key: str, where: str, file_problems: FileProblems
) -> list[Mapping[str, object]]:
    value = parent.get(key)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    file_problems.add(where, str(value), f"hold a list of objects as {key}")
    return []


KINDS: Final[Mapping[str, Callable[[Path, ColumnLayout, FileProblems], Iterator[_Record]]]] = {
    "tsv": _tsv,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}
"""Endings that can be read -> how; in the order in which a directory is searched."""
