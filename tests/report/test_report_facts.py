import json
import math
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_facts import example_facts

from prunus.errors import CheckpointError
from prunus.report import facts_file as module
from prunus.report.facts import ModelResults, RunFacts, read_facts, write_facts
from prunus.report.facts_file import clean, number, numbers, read_json, rows, section, text, texts, write_json


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.int64(7), 7),
        (2**80, 2**80),
        ((1, [math.nan]), [1, [None]]),
        (Path("a/b"), "a/b"),
        ({3: True}, {"3": True}),
        ("é\u2028\ud800", "é\u2028\ud800"),
        (0.1 + 0.2, 0.1 + 0.2),
    ],
)
def test_facts_survive_the_file(tmp_path: Path, written: Any, read: Any) -> None:
    write_json(tmp_path / "prunus.json", {"prunus": "0", "x": written})
    assert read_json(tmp_path) == {"prunus": "0", "x": read}
    # Strict JSON: no NaN, plain ASCII.
    data = (tmp_path / "prunus.json").read_bytes()
    assert data.isascii()
    json.loads(data, parse_constant=pytest.fail)


def test_an_unknown_kind_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "prunus.json"
    write_json(path, {"prunus": "old"})
    with pytest.raises(TypeError, match="set"):
        write_json(path, {"prunus": "new", "x": {1}})
    assert read_json(tmp_path)["prunus"] == "old"


def test_a_failed_replace_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prunus.json"
    write_json(path, {"prunus": "old"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_json(path, {"prunus": "new"})
    assert read_json(tmp_path)["prunus"] == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["prunus.json"]


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_json(tmp_path / "prunus.json", {"prunus": "0"})
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("prunus.json", "other")]
    assert modes[0] == modes[1]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "prunus.json"
    write_json(path, {"prunus": "0", "x": [0] * 2000})
    stop = threading.Event()
    lengths: set[int] = set()
    errors: list[Exception] = []

    def reader() -> None:
        while not stop.is_set():
            try:
                found = read_json(tmp_path)["x"]
                lengths.add(len(found) if set(found) == {found[0]} else -1)
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=reader)
    thread.start()
    for i in range(60):
        write_json(path, {"prunus": "0", "x": [i] * (2000 + i % 2)})
    stop.set()
    thread.join()
    assert not errors
    assert lengths <= {2000, 2001}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "prunus.json must be a readable file, got No such file"),
        (b"", "must be JSON"),
        (b"{", "line 1 column 2"),
        (b"\xff\xfe", "must be JSON"),
        (b"[1]", "must be a JSON object, got 'list'"),
        (b"null", "must be a JSON object, got 'NoneType'"),
        (b"{}", "must be the version that wrote it, got None"),
        (b'{"prunus": 3}', "must be the version that wrote it, got 3"),
        (b'{"prunus": "0", "x": ' + b"[" * 65 + b"]" * 65 + b"}", "nested at most 64 levels"),
        (b'{"prunus": "0", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "must be"),
        (b'{"prunus": "0", "x": ' + b"1" * 5000 + b"}", "must be JSON"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / "prunus.json").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_json(tmp_path)
    assert words in str(caught.value)
    assert "prunus.json" in str(caught.value)
    assert "\n    try " in str(caught.value)


def test_the_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 20)
    (tmp_path / "prunus.json").write_bytes(b'{"prunus": "012345"}')
    assert read_json(tmp_path) == {"prunus": "012345"}
    (tmp_path / "prunus.json").write_bytes(b'{"prunus": "0123456"}')
    with pytest.raises(CheckpointError, match="at most 20 bytes"):
        read_json(tmp_path)


def test_nan_of_other_writers_reads_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "prunus.json").write_text('{"prunus": "0", "x": [NaN, -Infinity, 1]}')
    assert read_json(tmp_path)["x"] == [None, None, 1]


@pytest.mark.parametrize(
    ("value", "as_number", "as_text", "as_rows", "as_section"),
    [
        (None, None, "", [], {}),
        (True, None, "", [], {}),
        (3, 3.0, "", [], {}),
        (10**400, None, "", [], {}),
        (math.nan, None, "", [], {}),
        (" a\x1b[2J ", None, "a\ufffd[2J", [], {}),
        ([1, {"a": 1}, None], None, "", [{"a": 1}], {}),
        ({"a": 1}, None, "", [], {"a": 1}),
    ],
)
def test_accessors_answer_with_nothing_for_other_types(
    value: object, as_number: float | None, as_text: str, as_rows: list[Any], as_section: dict[str, Any]
) -> None:
    facts = {"k": value}
    assert (number(facts, "k"), text(facts, "k")) == (as_number, as_text)
    assert (rows(facts, "k"), section(facts, "k")) == (as_rows, as_section)
    assert number({}, "k") is None


def test_lists_and_objects_keep_what_has_the_type() -> None:
    assert texts({"k": ["a", 1, None, "b\x00"]}, "k") == ["a", "b\ufffd"]
    assert numbers({"k": {"a": 1, "b": None, "c": math.inf, "d": True, "e": 2.5}}, "k") == {"a": 1.0, "e": 2.5}


def test_clean_keeps_all_else() -> None:
    kept = "".join(chr(code) for code in (*range(32, 127), 0xE9, 0x4E2D, 0x1F600)) + "\n\t"
    assert clean(kept) == kept
    assert clean("\r\x85\u202e\ufeff\udfff\x7f") == "\ufffd" * 6


def facts_of(place: Path, raw: dict[str, Any]) -> RunFacts:
    write_json(place / "prunus.json", raw)
    return read_facts(place)


def test_run_facts_survive_the_file(tmp_path: Path) -> None:
    facts = RunFacts.of_json(example_facts())
    assert facts.sparse == ModelResults({"f1": 0.90423, "accuracy": 0.90145}, 0.79997, 0.37412, 81868376, 7512.0)
    assert facts.dense is not None
    assert facts.dense.cached
    assert len(facts.tensors) == 12
    write_facts(tmp_path / "prunus.json", facts)
    assert read_facts(tmp_path) == facts
    assert facts.notices == ("the loss was scaled",)
    assert facts.missing == facts.not_measured  # it has times of engines


def test_what_has_another_type_reads_as_missing(tmp_path: Path) -> None:
    raw = {"format": 1, "prunus": "0", "dense": 3, "sparse": {"metrics": {"a": "b", "c": 1}, "bytes": "x", "cached": 1}}
    facts = facts_of(tmp_path, raw | {"seed": True, "status": "odd", "tensors": [1, {"a": 1}], "warnings": "no list"})
    assert facts == RunFacts("0", sparse=ModelResults({"c": 1.0}), tensors=({"a": 1},))


def test_an_older_file_says_so_and_keeps_no_marker_lines(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, {"prunus": "0", "not_measured": ["speed: this run measured none", "x"]})
    assert facts.not_measured == ("x",)
    assert [line.split(":")[0] for line in facts.missing] == ["speed", "x"]
    assert facts.notices == (
        "prunus.json has format 0 of an older prunus; what that did not record reads as not measured",
    )
    write_facts(tmp_path / "prunus.json", facts)
    assert read_json(tmp_path)["format"] == 1


@pytest.mark.parametrize(
    ("more", "speed"), [({"speed": {"cases": {}}}, False), ({"budget": {"result": {"s": 1}}}, False), ({}, True)]
)
def test_speed_is_missing_where_there_are_no_times(more: dict[str, Any], speed: bool) -> None:
    facts = RunFacts.of_json({"format": 1, "prunus": "0"} | more)
    assert any(line.startswith("speed: this run measured none") for line in facts.missing) is speed


def test_a_file_of_a_later_prunus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be at most 1, which this prunus reads, got 2\n    try the prunus"):
        facts_of(tmp_path, {"prunus": "9", "format": 2})
