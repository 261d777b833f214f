"""Paths, caches and what goes wrong at the command line: a reason in one line, and nothing that was there is lost."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import prunus.converters
from prunus import CheckpointError, RecipeError
from prunus.cache import cache_directory, cache_or_temporary
from prunus.cli import app
from prunus.paths import expanded, readable, writable
from prunus.recipe import read_recipe
from prunus.training.run import check_output, run
from small import save_tiny_bert, small_recipe

ROOT = hasattr(os, "getuid") and os.getuid() == 0


def called(*args: object) -> tuple[int, str]:
    ran = CliRunner().invoke(app, [str(arg) for arg in args])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), repr(ran.exception)
    return ran.exit_code, ran.output


def dangling(place: Path) -> Path:
    (place / "link").symlink_to(place / "nowhere")
    return place / "link"


def below_a_file(place: Path) -> Path:
    (place / "file").write_text("x")
    return place / "file" / "below" / "deeper"


def circle(place: Path) -> Path:
    (place / "a").symlink_to(place / "b")
    (place / "b").symlink_to(place / "a")
    return place / "a"


OUTPUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "dangling link": (dangling, "not be a link to what is not there"),
    "below a file": (below_a_file, "lie in directories: .*file is a file"),
    "a circle of links": (circle, "not be a link to what is not there|be a path that this system takes"),
    "a name too long": (lambda place: place / ("x" * 300), "be a path that this system takes"),
    "not UTF-8": (lambda place: Path(os.fsdecode(os.fsencode(place) + b"/latin\xe9")), "be a path in UTF-8"),
    "nobody's home": (lambda _: Path("~nosuchuser/x"), "begin with the home of a user"),
    "not a place for files": (lambda _: Path("/proc/nowhere"), "lie where we may write|be a path|read-only"),
}


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "not a place for files" or not ROOT])
def test_outputs_that_cannot_be(name: str, tmp_path: Path) -> None:
    make, told = OUTPUTS[name]
    path = make(tmp_path)
    with pytest.raises((CheckpointError, RecipeError), match=told):
        writable(path)


@pytest.mark.parametrize("verb", ["run", "export", "compact", "convert", "report", "recipes"])
@pytest.mark.parametrize("name", ["dangling link", "below a file", "a name too long", "not UTF-8"])
def test_every_verb_says_why(verb: str, name: str, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
    place = OUTPUTS[name][0](tmp_path)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(tiny_bert, small_data)))
    facts = tmp_path / "facts"
    facts.mkdir()
    (facts / "prunus.json").write_text('{"prunus": "1", "status": "finished"}')
    calls: dict[str, list[object]] = {
        "run": ["run", recipe, "--output", place],
        "export": ["export", tiny_bert, "--output", place],
        "compact": ["compact", tiny_bert, "--output", place],
        "convert": ["convert", recipe, "--output", place],
        "report": ["report", facts, "--html", place],
        "recipes": ["recipes", "cp", "quickstart", place],
    }
    code, said = called(*calls[verb])
    assert code == 2, said
    assert " must " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", ["compact", "export", "eval", "report", "bench", "serve"])
@pytest.mark.parametrize("given", [".", ".."])
def test_the_directory_where_we_are(
    verb: str, given: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing in it; what matters is that its name is found and its lack is told."""
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" if given == "." else tmp_path / "here" / "below")
    code, said = called(verb, given)
    assert code == 2, said
    assert "Traceback" not in said


@pytest.mark.parametrize("given", [".", ".."])
def test_what_is_made_of_it_lies_beside_it(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_bert(tmp_path / "model")
    (tmp_path / "model" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "model" if given == "." else tmp_path / "model" / "below")
    code, said = called("export", given, "--precision", "float32", "--to", "archive")
    assert (tmp_path / "model-archive").is_dir() == (code == 0), said
    assert readable(Path(given), "directory") == (tmp_path / "model").resolve()


def test_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x", "task.train") == tmp_path / "x"
    with pytest.raises(RecipeError, match=r"task.train must begin with the home of a user"):
        expanded("~nosuchuser/x", "task.train")


@pytest.mark.parametrize("key", ["train", "validation", "data"])
@pytest.mark.parametrize("task", ["classification", "mlm"])
def test_homes_of_nobody_in_a_task(key: str, task: str, tiny_bert: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        yaml.safe_dump({"model": {"name": str(tiny_bert)}, "task": {"name": task, key: "~nosuchuser/x.jsonl"}})
    )
    code, said = called("plan", recipe)
    assert code == 2
    assert f"task.{key} must begin with the home of a user" in said


def test_a_link_stays_when_its_directory_is_overwritten(
    tiny_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    raw = small_recipe(tiny_bert, small_data, distill=None, dense=None, prune=[])
    raw["task"]["max_train_samples"] = 8
    raw["train"] |= {"epochs": 1, "evaluate_every": None}
    recipe = read_recipe({key: value for key, value in raw.items() if value is not None})
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(recipe, tmp_path / "link")
    (tmp_path / "real" / "old").write_text("x")
    run(recipe, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()
    assert not (tmp_path / "real" / "old").exists()


def test_check_output_tells_what_mkdir_would(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lie in directories"):
        check_output(below_a_file(tmp_path), overwrite=False, resume=False)


# Caches


def test_a_cache_that_cannot_be_written_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with caplog.at_level(logging.WARNING):
        place = cache_or_temporary("dense", "abc")
    assert place.parent.is_dir()
    assert place.is_relative_to(tmp_path / "tmp")
    assert place.parent.stat().st_mode & 0o077 == 0
    assert [record.message for record in caplog.records] == [
        f"cache: {cache_directory('dense')} cannot be written; {place.parent} is used instead"
    ]


def test_what_is_kept_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    (tmp_path / "dense" / "abc").mkdir(parents=True)
    monkeypatch.setattr("prunus.cache._can_write", lambda _: False)
    assert cache_or_temporary("dense", "abc") == tmp_path / "dense" / "abc"
    assert not caplog.records
    with pytest.raises(CheckpointError, match="PRUNUS_CACHE must be a place that can be written"):
        cache_or_temporary("dense", "other")


# What nobody expected


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def test_a_fault_of_ours_is_one_line_and_its_traceback_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(prunus.converters, "convert_file", raising(KeyError("odd \ud83d")))
    monkeypatch.delenv("PRUNUS_DEBUG", raising=False)
    code, said = called("convert", tmp_path / "a.json")
    assert code == 1
    (file,) = tmp_path.glob("prunus-*.txt")
    assert "internal error: KeyError:" in said
    assert f"this is a fault of prunus, please report it with {file}" in said.replace("\n", " ")
    assert "Traceback" in file.read_text()
    monkeypatch.setenv("PRUNUS_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["convert", str(tmp_path / "a.json")]).exception, KeyError)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/some/file"), "/some/file: Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ConnectionError("no network\nat all"), "no network"),
        (FileExistsError(17, "File exists", b"/latin\xe9"), "File exists"),
    ],
)
def test_what_the_system_refuses_is_told(
    error: OSError, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prunus.converters, "convert_file", raising(error))
    code, said = called("convert", tmp_path / "a.json")
    assert code == 2
    assert told in said
    assert not list(tmp_path.glob("prunus-*.txt"))
