"""A run that prunes heads and neurons, made smaller: reloaded, measured again, exported, on every engine."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from prunus import CheckpointError, Masker, Pruning, Schedule, Span
from prunus.cli import app
from prunus.export.packed import run_task
from prunus.export.smaller import compact_directory
from prunus.progress import Bars
from prunus.recipe import read_recipe
from prunus.training.rescore import rescore
from prunus.training.run import run
from small import TEXT_FILE, save_tiny_bert, small_recipe, write_texts

RULE = {"criterion": "first_order", "schedule": {"kind": "linear", "start": 0, "end": 18, "every": 3}}


def call(*words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--json"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run`` and ``run-compact``."""
    place = tmp_path_factory.mktemp("smaller")
    model, texts = save_tiny_bert(place / "model", num_attention_heads=4), write_texts(place / TEXT_FILE, 64).parent
    rules = [{"pattern": kind, "sparsity": 0.5, **RULE} for kind in ("heads", "ffn")]
    recipe = small_recipe(model, texts, prune=rules)
    recipe["train"] |= {"evaluate_every": None, "learning_rate": 1e-3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(place / "cache"))
        run(read_recipe(recipe), place / "run", command="prunus run x")
    return place


@pytest.fixture(scope="module")
def facts(place: Path) -> dict[str, Any]:
    result = call("compact", str(place / "run"))
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_what_is_told_was_counted(place: Path, facts: dict[str, Any]) -> None:
    layers = {kind: [layer for layer in facts["layers"] if layer["kind"] == kind] for kind in ("heads", "ffn")}
    assert [sum(layer["before"] for layer in found) for found in layers.values()] == [8, 64]
    assert [sum(layer["after"] for layer in found) for found in layers.values()] == [4, 32]
    sizes = [
        sum(t.numel() for t in load_file(place / name / "model.safetensors").values())
        for name in ("run", "run-compact")
    ]
    assert facts["parameters"] == {"before": sizes[0], "after": sizes[1]}
    # 4 heads of 4: 4 rows of 16 and a bias in three layers, 16 columns of 4 in one; 32 neurons: a row, a bias, a column.
    assert sizes[0] - sizes[1] == 4 * (3 * 4 * 17 + 16 * 4) + 32 * (16 + 1 + 16)
    assert 0 <= facts["largest_difference"] < 1e-5


def test_it_is_measured_again_and_is_the_same(place: Path, facts: dict[str, Any]) -> None:
    found = [json.loads(call("eval", str(place / name)).stdout)["metrics"] for name in ("run", "run-compact")]
    assert found[0] == found[1]
    readme = (place / "run-compact" / "README.md").read_text()
    assert "import prunus" in readme
    assert f"{facts['parameters']['after']:,} parameters" in readme


@pytest.mark.parametrize(("to", "backend"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("prunus", "prunus")])
def test_every_engine_gives_the_same(to: str, backend: str, place: Path, facts: dict[str, Any]) -> None:
    small = place / "run-compact"
    result = call("export", str(small), "--to", to, *(["--precision", "float32"] if to == "prunus" else []))
    assert result.exit_code == 0, result.output
    result = call("eval", str(small), "--backend", "torch", "--backend", backend)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["backends"]
    assert found[backend]["same_answers"] == 1.0
    assert found[backend]["metrics"] == found["torch"]["metrics"]


def test_a_layer_without_heads_or_neurons_runs_on_every_engine(place: Path, tmp_path: Path) -> None:
    copytree(place / "run", tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    tensors = load_file(path)
    for name in ("layer.0.attention.output.dense", "layer.1.output.dense"):
        tensors[f"bert.encoder.{name}.weight"].zero_()
    save_file(tensors, path, {"format": "pt"})
    result = call("compact", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    left = {layer["reader"]: layer["after"] for layer in json.loads(result.stdout)["layers"]}
    assert left["bert.encoder.layer.0.attention.output.dense"] == left["bert.encoder.layer.1.output.dense"] == 0
    small = tmp_path / "run-compact"
    for to in ("onnx", "openvino"):
        result = call("export", str(small), "--to", to)
        assert result.exit_code == 0, result.output


def test_what_cannot_be_made_smaller_is_told(place: Path, facts: dict[str, Any], tmp_path: Path) -> None:
    again = call("compact", str(place / "run"))
    assert again.exit_code == 2
    assert "be a new directory" in again.output
    dense = call("compact", str(place / "run-compact"), "--output", str(tmp_path / "x"))
    assert dense.exit_code == 2
    assert "hold heads or neurons whose columns" in dense.output
    assert not (tmp_path / "x").exists()
    (tmp_path / "empty").mkdir()
    empty = call("compact", str(tmp_path / "empty"))
    assert empty.exit_code == 2
    assert "be a model that can be read" in empty.output


def test_the_plain_words(place: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compact", str(place / "run"), "--output", str(tmp_path / "small")])
    assert result.exit_code == 0, result.output
    assert "bert.encoder.layer.0.output.dense" in result.output
    assert "AutoModel loads it after `import prunus`" in result.output
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters() if torch.is_tensor(p)) > 0


def test_a_model_that_no_run_made_has_no_task(tiny_bert: Path, tmp_path: Path) -> None:
    """What is measured is in a run's recipe; without one, no other task takes its place."""
    model = AutoModel.from_pretrained(tiny_bert)
    Masker(model, Pruning(0.5, "ffn", "magnitude", Schedule("one_shot", Span(0))), 1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    compact_directory(tmp_path / "model", tmp_path / "small")
    with Bars(None) as bars:
        assert run_task(tmp_path / "small", {}, bars) == (None, "no recipe in prunus.json")
    with pytest.raises(CheckpointError, match="hold the recipe of the run"):
        rescore(tmp_path / "small", {})
