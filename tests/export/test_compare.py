"""One table of several engines: each on the same rows, damage and absence told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunus.cli import app
from prunus.export.archive import export_archive, restore_archive
from prunus.recipe import read_recipe
from prunus.training.run import run
from small import TEXT_FILE, save_tiny_bert, small_recipe, write_texts

TARGETS = {"openvino": "openvino", "onnxruntime": "onnx", "prunus": "prunus"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized run and its three exports beside it."""
    place = tmp_path_factory.mktemp("compare")
    model, texts = save_tiny_bert(place / "model"), write_texts(place / TEXT_FILE, 64).parent
    recipe = small_recipe(model, texts, quantize={"samples": 16}, distill=None, dense=None)
    recipe["train"] |= {"evaluate_every": None, "learning_rate": 1e-3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(place / "cache"))
        run(read_recipe({k: v for k, v in recipe.items() if v is not None}), place / "run", command="prunus run x")
        for to in TARGETS.values():
            result = CliRunner().invoke(app, ["export", str(place / "run"), "--to", to])
            assert result.exit_code == 0, result.output
    return place


def evaluated(directory: Path, *backends: str) -> Any:
    given = [word for name in backends for word in ("--backend", name)]
    return CliRunner().invoke(app, ["eval", str(directory), *given, "--json"])


def test_all_engines_in_one_table(exported: Path) -> None:
    result = evaluated(exported / "run", "torch", *TARGETS)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["examples"] == 64
    assert list(facts["backends"]) == ["torch", *TARGETS]
    plain = json.loads(CliRunner().invoke(app, ["eval", str(exported / "run"), "--json"]).stdout)
    assert facts["backends"]["torch"]["metrics"] == plain["metrics"]
    for name, to in TARGETS.items():
        place = exported / ("run-packed" if to == "prunus" else f"run-{to}")
        held = json.loads((place / ("packed.json" if to == "prunus" else "export.json")).read_text())
        own = held["metrics"]["packed" if to == "prunus" else "file"]
        assert facts["backends"][name]["metrics"] == pytest.approx(own), name
        assert facts["backends"][name]["same_answers"] >= 0.9, name
        assert facts["backends"][name]["bytes"] > 1000
    assert facts["backends"]["torch"]["same_answers"] == 1.0


def test_an_exported_directory_is_measured_by_itself(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "run-onnx", tmp_path / "alone")
    result = evaluated(tmp_path / "alone", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["backends"]["onnxruntime"]["file"] == str(tmp_path / "alone" / "model.onnx")


@pytest.mark.parametrize("backend", TARGETS)
def test_an_export_without_its_backend_is_told_how(backend: str, exported: Path, tmp_path: Path) -> None:
    place, to = tmp_path / "alone", TARGETS[backend]
    shutil.copytree(exported / ("run-packed" if to == "prunus" else f"run-{to}"), place)
    result = evaluated(place)
    assert result.exit_code == 2
    assert f"got an export to {to} (" in result.output
    assert f"try prunus eval {place} --backend {backend}, or" in result.output
    result = evaluated(place, backend)  # the advice
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["backends"]) == [backend]


def test_an_archive_is_told_how_it_is_measured(exported: Path, tmp_path: Path) -> None:
    export_archive(exported / "run", tmp_path / "archive")
    result = evaluated(tmp_path / "archive")
    assert result.exit_code == 2
    assert f"try prunus export {tmp_path / 'archive'} --to transformers" in result.output
    restore_archive(tmp_path / "archive", tmp_path / "again")
    assert evaluated(tmp_path / "again").exit_code == 0


def test_what_is_not_there_is_told_at_once(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "run", tmp_path / "run")
    result = evaluated(tmp_path / "run", "openvino", "onnxruntime", "tensorrt")
    assert result.exit_code == 2
    for told in ("3 problems", f"prunus export {tmp_path / 'run'} --to onnx", "--to openvino", "must be one of torch"):
        assert told in result.output, told


@pytest.mark.parametrize(
    ("to", "file"), [("onnx", "model.onnx"), ("openvino", "openvino_model.xml"), ("openvino", "openvino_model.bin")]
)
@pytest.mark.parametrize("damage", ["half", "noise"])
def test_a_damaged_file_is_told(to: str, file: str, damage: str, exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(exported / f"run-{to}", place)
    whole = (place / file).read_bytes()
    if damage == "noise" and file.endswith(".bin"):
        pytest.skip("constants are data: noise among them is a model of other weights")
    (place / file).write_bytes(whole[: len(whole) // 2] if damage == "half" else b"\x07" * len(whole))
    result = evaluated(place, "onnxruntime" if to == "onnx" else to)
    assert result.exit_code == 2, result.output
    assert "damaged, or of another kind" in result.output
    assert "exporting it again" in result.output


def test_a_file_of_another_task_is_told(exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(exported / "run-onnx", place)
    import onnx

    graph = onnx.load(place / "model.onnx")
    graph.graph.output[0].name = "other"
    for node in graph.graph.node:
        node.output[:] = ["other" if name == "logits" else name for name in node.output]
    onnx.save(graph, place / "model.onnx")
    result = evaluated(place, "onnxruntime")
    assert result.exit_code == 2
    assert "its outputs are other, not logits" in result.output
