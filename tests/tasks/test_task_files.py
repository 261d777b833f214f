"""Every layout that can be read, and every mistake with its line."""

import csv
import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prunus.errors import DataError
from prunus.tasks import check_task, files, lines
from prunus.tasks.files import ColumnLayout, FileProblems, check_columns, read_rows, text_of
from prunus.tasks.spec import TaskSpec

LAYOUT = ColumnLayout({"text": ("sentence", "text"), "target": ("label",)}, {"pair": ("other",)})
BOM = b"\xef\xbb\xbf"


def rows_of(path: Path, layout: ColumnLayout = LAYOUT) -> list[tuple[int, dict[str, object]]]:
    file_problems = FileProblems()
    rows = [(row.line, dict(row.values)) for row in read_rows(path, layout, file_problems)]
    file_problems.close()
    return rows


def plain(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zipped(path: Path, data: bytes) -> Path:
    path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(data, mtime=0))
    return path


@pytest.mark.parametrize("write", [plain, zipped])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize(
    ("name", "data", "lines", "texts"),
    [
        ("a.tsv", b"sentence\tlabel\nx y\t1\nz\t0\n", [2, 3], ["x y", "z"]),
        ("crlf.tsv", b"sentence\tlabel\r\nx y\t1\r\n\r\nz\t0", [2, 4], ["x y", "z"]),
        ("quotes.tsv", b'label\tsentence\n1\t"x\n0\ta "b" c\n', [2, 3], ['"x', 'a "b" c']),
        ("separators.tsv", "text\tlabel\nx\u2028y\x85z\t1\n".encode(), [2], ["x\u2028y\x85z"]),
        ("a.csv", b'sentence,label,idx\n"x, ""y""",1,7\nz,0,8\n', [2, 3], ['x, "y"', "z"]),
        ("lines.csv", b'sentence,label\n"x\ny",1\n\nz,0\n', [2, 5], ["x\ny", "z"]),
        ("a.jsonl", b'{"sentence": "x", "label": 1}\n\n{"label": 0, "text": "y"}\n', [1, 3], ["x", "y"]),
        ("a.json", b'[{"sentence": "x", "label": 1},\n\n {"sentence": "y", "label": 2}]\n', [1, 3], ["x", "y"]),
        (
            "data.json",
            b'{"version": {"data": []},\n "data": [\n{"text": "x", "label": 1}\n, {"text": "y", "label": 1}], "z": 1}',
            [3, 4],
            ["x", "y"],
        ),
    ],
)
def test_layouts(
    tmp_path: Path,
    write: Callable[[Path, bytes], Path],
    mark: bytes,
    name: str,
    data: bytes,
    lines: list[int],
    texts: list[str],
) -> None:
    rows = rows_of(write(tmp_path / name, mark + data))
    assert [line for line, _ in rows] == lines
    assert [row["text"] for _, row in rows] == texts
    assert all(set(row) == {"text", "target"} for _, row in rows)


def test_optional_role(tmp_path: Path) -> None:
    rows = rows_of(plain(tmp_path / "a.csv", b"sentence,other,label\nx,y,1\n"))
    assert rows == [(2, {"text": "x", "pair": "y", "target": "1"})]


def test_squad_layout(tmp_path: Path) -> None:
    question = {"id": "q", "question": "who?", "answers": [{"text": "me", "answer_start": 0}]}
    paragraphs = [
        {"context": "me", "qas": [question, {**question, "id": "r"}]},
        {"context": "me too", "qas": [question]},
    ]
    document = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    file_problems = FileProblems()
    layout = ColumnLayout({"context": ("context",), "answer": ("answers",)})
    found = list(read_rows(plain(tmp_path / "a.json", json.dumps(document).encode()), layout, file_problems))
    assert [row.values["context"] for row in found] == ["me", "me", "me too"]
    assert found[2].where == f"{tmp_path / 'a.json'} line 1 data[0].paragraphs[1].qas[0]"
    assert not file_problems.found


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"gj\t1\t\tSailors rode.\ngj\t0\t*\tRode sailors.\n", ["Sailors rode.", "Rode sailors."]),
        (b"sentence\tlabel\nSailors rode.\t1\n", ["Sailors rode."]),
        (b"a\tlabel\tb\tsentence\nx\t1\ty\tSailors rode.\n", ["Sailors rode."]),
    ],
)
def test_headerless(tmp_path: Path, data: bytes, texts: list[str]) -> None:
    layout = ColumnLayout(
        {"text": ("sentence",), "target": ("label",)}, headerless=("source", "label", "mark", "sentence")
    )
    assert [row["text"] for _, row in rows_of(plain(tmp_path / "a.tsv", data), layout)] == texts


def test_skip_short_rows(tmp_path: Path) -> None:
    data = b"sentence\tlabel\textra\nx\t1\t\ncut in\ntwo\t1\ny\t0\t\n"
    file_problems = FileProblems()
    layout = ColumnLayout(LAYOUT.required, skip_short=True)
    rows = list(read_rows(plain(tmp_path / "a.tsv", data), layout, file_problems))
    assert [row.values["text"] for row in rows] == ["x", "y"]
    assert file_problems.skipped == 2
    assert not file_problems.found


@pytest.mark.parametrize(
    ("name", "data", "where", "words"),
    [
        ("empty.tsv", b"", "", "hold at least one row"),
        ("empty.csv", b"", "", "hold at least one row"),
        ("empty.jsonl", b"\n\n", "", "hold at least one row"),
        ("empty.json", b" ", "", "hold at least one row"),
        ("none.json", b"[]", "", "hold at least one row"),
        ("header.tsv", b"sentence\tlabel\n", "", "hold at least one row"),
        ("columns.tsv", b"sentense\tlabel\nx\t1\n", " line 1", "have a column sentence or text"),
        ("nearest.tsv", b"sentense\tlabel\nx\t1\n", " line 1", "try sentense"),
        ("twice.csv", b"label,sentence,label\n1,x,1\n", " line 1", "name the column label once"),
        ("wide.tsv", b"sentence\tlabel\nx\t1\nx\ty\t1\n", " line 3", "have 2 columns, as the first row, got 3 columns"),
        ("narrow.csv", b"sentence,label\nx\n", " line 2", "have 2 columns, as the first row, got 1 columns"),
        ("quote.csv", b'sentence,label\nx,1\n"y,1\nz,0\n', " line 3", "be a well-formed CSV row"),
        ("after.csv", b'sentence,label\n"y"z,1\n', " line 2", "be a well-formed CSV row"),
        ("latin.tsv", b"sentence\tlabel\nx\t1\ncaf\xe9\t0\n", " line 3", "be UTF-8, got byte 0xe9 in caf"),
        ("latin.json", b'[\n{"text": "caf\xe9", "label": 1}]', " line 2", "be UTF-8"),
        ("utf16.csv", "sentence,label\nx,1\n".encode("utf-16"), "", "be UTF-8 text, got UTF-16, by its first bytes"),
        ("utf16le.jsonl", '{"text": "x"}'.encode("utf-16-le"), "", "try iconv -f UTF-16LE -t UTF-8"),
        ("utf16be.json", '[{"text": "x"}]'.encode("utf-16-be"), "", "try iconv -f UTF-16BE -t UTF-8"),
        ("utf32.tsv", "sentence\tlabel\n".encode("utf-32"), "", "be UTF-8 text, got UTF-32, by its first bytes"),
        ("zipped.csv", gzip.compress(b"sentence,label\nx,1\n", mtime=0), "", "be UTF-8 text, got gzip, by its first"),
        ("twice.tsv.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "", "be UTF-8 text, got gzip"),
        ("sheet.csv", b"PK\x03\x04\x14\x00", "", "saving the spreadsheet as CSV"),
        ("table.json", b"PAR1\x15\x04", "", "got Parquet, by its first bytes"),
        ("bytes.csv", bytes(range(256)) * 40, "", "be UTF-8 text, got binary data"),
        ("broken.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', " line 2", "be a JSON object"),
        ("list.jsonl", b"[1, 2]\n", " line 1", "be a JSON object, got [1, 2]"),
        ("missing.jsonl", b'{"text": "x"}\n', " line 1", "have a column label"),
        (
            "broken.json",
            b'[{"text": "x", "label": 1},\n{"text" "y"}]',
            " line 2",
            "be JSON, got Expecting ':' delimiter",
        ),
        ("cut.json", b'[{"text": "x", "label": 1}\n', " line 2", "be JSON"),
        ("ends.json", b'{"data":', "", "be a list of objects"),
        ("comma.json", b'[{"text": "x", "label": 1}\n{"text": "x", "label": 1}]', " line 2", "be JSON"),
        ("items.json", b'[{"text": "x", "label": 1},\n7]', " line 2 item 1", "be a JSON object, got '7'"),
        ("number.json", b"7", "", "be a list of objects"),
        ("nodata.json", b'{"rows": []}', "", 'or an object with such a list under "data"'),
        ("notlist.json", b'{"data": 3}', "", 'or an object with such a list under "data"'),
        ("open.json", b'{"rows": 1', " line 1", "be JSON"),
        ("deep.json", b"[" * 100_000, "", "be JSON"),
        ("deep.jsonl", b"[" * 100_000, " line 1", "be a JSON object"),
        ("digits.jsonl", b'{"text": "x", "label": ' + b"9" * 5000 + b"}", " line 1", "be a JSON object"),
        ("squad.json", b'[{"paragraphs": 3}]', " line 1 data[0]", "hold a list of objects as paragraphs"),
        (
            "qas.json",
            b'[{"paragraphs": [{"qas": [1]}]}]',
            " line 1 data[0].paragraphs[0]",
            "hold a list of objects as qas",
        ),
        ("kind.parquet", b"PAR1", "", "end in .tsv, .json, .jsonl, .csv"),
        ("noending", b"x", "", "end in .tsv"),
        ("bad.tsv.gz", b"sentence\tlabel\nx\t1\n", "", "be a whole gzip file"),
        ("cut.tsv.gz", gzip.compress(b"sentence\tlabel\n" + b"x\t1\n" * 99, mtime=0)[:-12], "", "be a whole gzip file"),
        ("damaged.json.gz", gzip.compress(b"[1]" * 99, mtime=0)[:12] + b"\xff" * 30, "", "be a whole gzip file"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, data: bytes, where: str, words: str) -> None:
    path = plain(tmp_path / name, data)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    first = caught.value.problems[0]
    assert first.key == f"{path}{where}"
    assert words in str(caught.value)


def test_a_message_about_columns_stays_short_and_printable(tmp_path: Path) -> None:
    for name, head in (
        ("wide.csv", b",".join(b"c%d" % i for i in range(9000))),
        ("steer.csv", b"\x1b[2J" + b"y" * 5000),
    ):
        with pytest.raises(DataError) as caught:
            rows_of(plain(tmp_path / name, head + b"\n1\n"))
        assert len(str(caught.value)) < 1500
        assert "\x1b" not in str(caught.value)


def test_a_mistake_of_a_file_that_is_read_twice_is_told_once(tmp_path: Path) -> None:
    path, file_problems = plain(tmp_path / "a.tsv", b"text\tlabel\nx\n"), FileProblems()
    for _ in range(2):
        assert list(read_rows(path, LAYOUT, file_problems)) == []
    assert len(file_problems.found) == 1


@pytest.mark.parametrize(("columns", "key"), [({"text": "text"}, "label"), ({"score": "mark"}, "score")])
def test_the_role_of_a_missing_column_is_a_key_of_the_recipe(tmp_path: Path, columns: dict[str, str], key: str) -> None:
    path = plain(tmp_path / "a.tsv", b"text\tkind\nx\t1\n")
    spec = TaskSpec(name="classification", train=str(path), validation=str(path), columns=columns)
    problems = check_task(spec)
    assert len(problems) == 1
    assert f"(columns: {{{key}: NAME}} names a column of own files)" in problems[0].fix
    assert check_task(replace(spec, columns=columns | {key: "kind"})) == []


@pytest.mark.parametrize(("name", "kind"), [("task", "a directory"), ("pipe", "a device, a pipe or a socket")])
@pytest.mark.parametrize("task", ["classification", "mlm"])
def test_what_is_there_and_no_regular_file_is_called_so(tmp_path: Path, name: str, kind: str, task: str) -> None:
    path = tmp_path / name
    path.mkdir() if kind == "a directory" else os.mkfifo(path)
    problems = check_task(TaskSpec(name=task, train=str(path)), ("train",))
    assert [str(problem).splitlines()[0] for problem in problems] == [
        f"task.train must be a regular file, got {path}, {kind}"
    ]


def test_all_mistakes_at_once_up_to_ten(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.tsv", b"sentence\tlabel\n" + b"x\t1\nonly one\n" * 4)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert [problem.key for problem in caught.value.problems] == [f"{path} line {n}" for n in (3, 5, 7, 9)]
    path = plain(tmp_path / "b.tsv", b"sentence\tlabel\n" + b"only one\n" * 1000)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert [problem.key for problem in caught.value.problems] == [f"{path} line {n}" for n in range(2, 12)]


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    plain(tmp_path / "train.tsv", b"x")
    with pytest.raises(DataError, match=r"be an existing file, got no such file\n    try train\.tsv"):
        rows_of(tmp_path / "trian.tsv")
    with pytest.raises(DataError, match="there is no directory"):
        rows_of(tmp_path / "nowhere" / "train.tsv")


def test_directory_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(DataError, match="be a readable file"):
        rows_of(tmp_path / "a.tsv")


@pytest.mark.parametrize("name", ["long.tsv", "long.csv", "long.jsonl", "long.tsv.gz"])
def test_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lines, "MAX_ROW", 1000)
    data = b"sentence\tlabel\nx\t1\n" if "tsv" in name else b""
    data += b"x" * 5000
    path = plain(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match="have at most 1,000 bytes"):
        rows_of(path)


def test_json_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON", 1000)
    path = plain(tmp_path / "a.json.gz", gzip.compress(b" " * 100_000, mtime=0))
    with pytest.raises(DataError, match="have at most 1,000 bytes"):
        rows_of(path)


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("good.tsv", b"sentence\tlabel\nx\t1\n" + b"bad\n", 0),
        ("bad.tsv", b"x\ty\nx\t1\n", 2),
        ("bad.jsonl", b'{"text": "x"}\n' + b'{"text": "x", "label": 1}\n', 1),
        ("unread.json", b"[", 0),
    ],
)
def test_check_columns_reads_the_first_row(tmp_path: Path, name: str, data: bytes, found: int) -> None:
    assert len(check_columns(plain(tmp_path / name, data), LAYOUT)) == found


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.csv.gz"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(tmp_path: Path, name: str, end: bytes, last: bool) -> None:
    mark = b"\t" if "tsv" in name else b","
    rows = [b"sentence" + mark + b"label", b"a good film" + mark + b"1", b"a bad one" + mark + b"0"]
    if "jsonl" in name:
        rows = [b'{"sentence": "a good film", "label": 1}', b'{"sentence": "a bad one", "label": 0}']
    data = end.join(rows) + (end if last else b"")
    path = plain(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert [(values["text"], line) for line, values in rows_of(path)] == [
        ("a good film", 1 if "jsonl" in name else 2),
        ("a bad one", 2 if "jsonl" in name else 3),
    ]


def test_carriage_returns_inside_lines_stay(tmp_path: Path) -> None:
    rows = rows_of(plain(tmp_path / "a.tsv", b"sentence\tlabel\na\rb\t1\n"))
    assert [values["text"] for _, values in rows] == ["a\rb"]


def test_many_lines_that_end_in_cr(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.csv", b"sentence,label\r" + b"".join(b"%d words,1\r" % i for i in range(3000)))
    assert [values["text"] for _, values in rows_of(path)] == [f"{i} words" for i in range(3000)]


@pytest.mark.parametrize("size", [131_072, 131_073, 1_000_000])
def test_long_fields(tmp_path: Path, size: int) -> None:
    before = csv.field_size_limit()
    rows = rows_of(plain(tmp_path / "a.csv", b'sentence,label\n"' + b"x" * size + b'",1\n'))
    assert [len(str(values["text"])) for _, values in rows] == [size]
    assert csv.field_size_limit() == before  # it belongs to the process


def test_a_field_without_an_end_is_told_by_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW", 1000)
    path = plain(tmp_path / "a.csv", b'sentence,label\n"' + b"many words\n" * 200)
    with pytest.raises(
        DataError, match=r"line \d+ must have shorter fields, got a field of more than 1,000 characters"
    ):
        rows_of(path)


@pytest.mark.parametrize("role", ["sentence", "text_pair"])
def test_half_a_character_is_told_with_its_line(tmp_path: Path, role: str) -> None:
    good = {"sentence": "a", "text_pair": "b", "label": 1}
    rows = [good, good | {role: "cut \ud83d"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    file_problems = FileProblems()
    layout = ColumnLayout({"text": ("sentence",), "text_pair": ("text_pair",), "target": ("label",)})
    texts = [
        text_of(row, "text" if role == "sentence" else role, file_problems)
        for row in read_rows(path, layout, file_problems)
    ]
    assert texts == ["a" if role == "sentence" else "b", None]
    (problem,) = file_problems.found
    assert problem.key == f"{path} line 2"
    assert problem.value == "half a character, U+D83D, at 4"
