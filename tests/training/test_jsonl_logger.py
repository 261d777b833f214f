"""log.jsonl: what Trainer logs, line by line, also of a run that was stopped; the report of a run that is still going."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunus.cli import app
from prunus.recipe import read_recipe
from prunus.training.jsonl_logger import LOG_FILE, JsonlLogger, read_log
from prunus.training.run import run
from small import interrupt_at, small_recipe


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


def test_lines_are_the_history(small_data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    facts = run(read_recipe(small_recipe(tiny_bert, small_data)), tmp_path / "run")
    lines = read_log(tmp_path / "run" / LOG_FILE)
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [point["step"] for point in facts.history.loss]
    for line, point in zip(losses, facts.history.loss, strict=True):
        assert {name: line[name] for name in point} == pytest.approx(point)
        assert {"sparsity", "sparsity_due", "grad_norm"} <= set(line)
    assert any("eval_accuracy" in line for line in lines)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_a_run_that_goes_on_has_each_step_once(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(small_recipe(tiny_bert, small_data))
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(9, patch)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "halves")
    going = CliRunner().invoke(app, ["report", str(tmp_path / "halves")])
    assert going.exit_code == 0, going.output
    assert "interrupted: step " in going.output
    assert "<svg" in (tmp_path / "halves" / "report.html").read_text()
    run(recipe, tmp_path / "halves", resume=True)
    first, second = (
        [{k: v for k, v in line.items() if k != "time"} for line in read_log(tmp_path / name / LOG_FILE)]
        for name in ("whole", "halves")
    )
    assert [line["step"] for line in second if "loss" in line] == [line["step"] for line in first if "loss" in line]


def test_a_full_disk_ends_the_file_and_not_the_training(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JsonlLogger._write

    def full(self: JsonlLogger, text: str, mode: str) -> None:
        if '"step": 6' in text:
            monkeypatch.setattr(Path, "open", refuse)
        write(self, text, mode)
        monkeypatch.setattr(Path, "open", plain)

    plain = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonlLogger, "_write", full)
    facts = run(read_recipe(small_recipe(tiny_bert, small_data)), tmp_path / "run")
    assert facts.status == "finished"
    assert facts.warnings == ("log.jsonl ends early: [Errno 28] No space left on device",)
    assert max(line["step"] for line in read_log(tmp_path / "run" / LOG_FILE)) == 4


@pytest.mark.parametrize(
    "text", ["", "{", '{"step": 1}\n{"step": 2, "lo', "[1]\n7\nnull\n", '{"step": "3"}', "\x00\xff" * 9, "[" * 5000]
)
def test_what_is_no_line_is_left_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / LOG_FILE
    path.write_text(text, encoding="utf-8")
    assert [line["step"] for line in read_log(path)] == ([1] if '"step": 1' in text else [])
    assert read_log(tmp_path / "none") == []


def test_numbers_that_json_does_not_know_are_text(tmp_path: Path) -> None:
    class State:
        global_step, is_world_process_zero = 3, True

    JsonlLogger(tmp_path / LOG_FILE).on_log(None, State(), None, {"loss": float("nan"), "learning_rate": 1e-3})  # type: ignore[arg-type]
    (line,) = json.loads(f"[{(tmp_path / LOG_FILE).read_text()}]")
    assert line["loss"] == "nan"
    assert line["learning_rate"] == 1e-3
