import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from prunus.bench import compare, timed
from prunus.bench.command import mixed_batch, padded_batch
from prunus.bench.engines import ENGINES, Subject, make_engines, missing_packages
from prunus.cli import app
from prunus.cli_runtime import read_case
from prunus.errors import RecipeError


def test_a_ratio_is_taken_inside_a_round() -> None:
    found = compare(
        {"one": timed(lambda: time.sleep(0.002)), "three": timed(lambda: time.sleep(0.006))}, "one", 3, 0.01
    )
    assert found["one"].ratio == 1
    assert 2.0 < found["three"].ratio < 4.5
    assert found["three"].quartiles[0] <= found["three"].ratio <= found["three"].quartiles[1]


def test_engines_take_turns_in_an_order_that_rotates() -> None:
    order: list[str] = []

    def turn(name: str, repeats: int) -> list[float]:
        order.append(name)
        return [0.01] * repeats

    compare({name: lambda n, name=name: turn(name, n) for name in "abc"}, "a", 3, 0.01)
    turns = order[6:]  # after the calls that choose the number of repeats
    assert "".join(turns[::2]) == "abcbcacab"


def test_every_installed_engine_computes_the_same() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    model = BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes)).eval()
    rows = [np.arange(5, 5 + n) for n in (3, 9, 17)]
    batch = padded_batch(rows)
    names = [name for name in ENGINES if "onnx" not in name and "openvino" not in name and not missing_packages(name)]
    calls = make_engines(Subject(model, [batch], 1), names)
    assert {"prunus int8", "prunus float32", "torch float32"} <= set(calls)
    expected, kept = calls["torch float32"](batch), batch["attention_mask"] != 0
    for name, call in calls.items():
        error = np.linalg.norm((call(batch) - expected)[kept]) / np.linalg.norm(expected[kept])
        assert error < (1e-5 if "float32" in name else 0.1), name


def test_mixed_lengths_keep_every_row_once() -> None:
    rows = [np.arange(1, 1 + n) for n in (9, 2, 5, 30, 7, 7, 1, 12, 3, 20)]
    for batches in (mixed_batch(lambda batch: batch["input_ids"], rows),):
        held = sorted(
            tuple(ids[mask != 0])
            for b in batches
            for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        )
        assert held == sorted(tuple(row) for row in rows)


def test_a_case_is_sequences_x_tokens() -> None:
    assert read_case("8x128") == (8, 128)
    for text in ("8", "x128", "0x5", "8x", "8*128", "5000x1"):
        with pytest.raises(RecipeError, match="be sequences x tokens"):
            read_case(text)


def test_the_command_writes_a_plot_into_the_report_of_a_run(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "prunus.json").write_text(json.dumps({"prunus": "1", "seed": 3, "not_measured": ["speed: none", "x"]}))
    words = ["bench", str(tmp_path), "--case", "2x8", "--rounds", "3", "--threads", "1", "--json"]
    engines = ["--engine", "prunus int8", "--engine", "torch float32"]
    result = CliRunner().invoke(app, [*words, *engines])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["cases"]["2 x 8"]
    held = json.loads((tmp_path / "prunus.json").read_text())
    assert held["seed"] == 3
    assert held["not_measured"] == ["x"]
    assert held["speed"]["cases"]["2 x 8"] == found
    assert {"prunus int8", "torch float32"} == set(found)
    assert f"{found['torch float32']['ms']:.3g} ms" in (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert CliRunner().invoke(app, [*words, *engines, "--no-report"]).exit_code == 0
    assert not (tmp_path / "report.html").exists()
