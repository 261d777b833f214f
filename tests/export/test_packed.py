import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner

import prunus.runtime
from prunus.cli import app
from prunus.errors import CheckpointError, DataError, EngineError
from prunus.export import Calibration, export_packed
from prunus.export.scoring import agreement
from prunus.runtime.transformers_backend import PrunusConfig, as_model, register_exporter
from small import WORDS, save_tiny_bert

TEXTS = [" ".join(WORDS[i % len(WORDS)] for i in range(n, n + 1 + n % 7)) for n in range(40)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier, its encoder's layers 75 % zero in blocks of four outputs."""
    place = save_tiny_bert(tmp_path_factory.mktemp("model") / "bert")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder" in name and weight.ndim == 2:
                weight.mul_(3 * (torch.arange(weight.shape[1]) % 4 == 0))
    model.save_pretrained(place)
    return place


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def dense_logits(place: Path) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForSequenceClassification.from_pretrained(place)
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8", 0.05)])
def test_a_packed_model_answers_like_the_dense_one(
    classifier: Path, texts: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    facts = export_packed(classifier, tmp_path / "packed", precision, Calibration(texts, 32), threads=1)
    engine, tokenizer = prunus.runtime.load(tmp_path / "packed", 2), AutoTokenizer.from_pretrained(tmp_path / "packed")
    found = engine(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    expected = dense_logits(classifier)
    assert np.abs(found.numpy() - expected).max() <= tolerance * np.abs(expected).max()
    assert {layer["sparsity"] for layer in facts["layers"]} == {0.75}
    assert {layer["weight_format"] for layer in facts["layers"]} == {"group_sparse_" + precision}
    assert facts["bytes"]["packed"] == (tmp_path / "packed" / "packed.safetensors").stat().st_size
    assert json.loads((tmp_path / "packed" / "packed.json").read_text()) == facts
    engine.close()


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (CheckpointError, {"precision": "int4"}, "precision must be int8 or float32"),
        (CheckpointError, {"calibration": Calibration(Path("nowhere.txt"))}, "texts must be a file"),
        (CheckpointError, {"calibration": Calibration(samples=0)}, "samples must be 1 to 100000"),
        (DataError, {}, "texts must name texts to calibrate int8 with"),
    ],
)
def test_what_cannot_be_packed_is_said_before_anything_is_written(
    classifier: Path, tmp_path: Path, kind: type[Exception], options: dict, words: str
) -> None:
    with pytest.raises(kind, match=words):
        export_packed(classifier, tmp_path / "packed", **options)
    assert not (tmp_path / "packed").exists()


def test_a_model_without_a_fused_engine_is_named(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match="be a family with a fused engine"):
        export_packed(tmp_path, tmp_path / "packed", "int8", Calibration(texts))


def test_the_command_line_packs_and_says_how(classifier: Path, texts: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    arguments = ["export", str(classifier), "--to", "prunus", "--texts", str(texts), "-o", str(target)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "12 layers as group_sparse_int8 (4x1 blocks, zeros skipped), 75% to 75% zeros" in ran.stdout
    assert CliRunner().invoke(app, arguments).exit_code == 2
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--json"])
    assert json.loads(again.stdout)["calibration"]["sequences"] == len(TEXTS)
    assert CliRunner().invoke(app, ["export", str(classifier), "--to", "tflite"]).exit_code == 2


def test_a_run_is_packed_with_its_own_data_and_measured(tmp_path: Path, tiny_bert: Path, small_data: Path) -> None:
    import yaml

    from small import small_recipe

    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(tiny_bert, small_data)))
    ran = CliRunner().invoke(app, ["run", str(recipe), "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    facts = export_packed(tmp_path / "out", tmp_path / "packed", threads=1)
    held = json.loads((tmp_path / "out" / "prunus.json").read_text())
    assert facts["metrics"]["float32"] == pytest.approx(held["sparse"]["metrics"])
    assert 0 <= facts["metrics"]["agreement"] <= 1


def test_agreement_counts_rows_whose_highest_outputs_are_the_same() -> None:
    first = [np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0]])]
    second = [np.array([[0.0, 9.0], [1.0, 2.0], [0.0, 3.0]])]
    assert agreement(first, second) == pytest.approx(2 / 3)


def test_a_pipeline_takes_an_engine(classifier: Path, texts: Path, tmp_path: Path) -> None:
    export_packed(classifier, tmp_path / "packed", "float32")
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    dense = pipeline("text-classification", model=str(classifier), tokenizer=tokenizer, device="cpu")
    with prunus.runtime.load(tmp_path / "packed", 1) as engine:
        packed = pipeline("text-classification", model=as_model(engine), tokenizer=tokenizer)
        for ours, theirs in zip(packed(TEXTS[:9], batch_size=4), dense(TEXTS[:9]), strict=True):
            assert ours["label"] == theirs["label"]
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_prunus_is_a_backend_of_the_exporters(classifier: Path, tmp_path: Path, precision: str) -> None:
    from transformers.exporters import AutoHfExporter
    from transformers.exporters.base import ExportedModel

    register_exporter()
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    inputs = dict(AutoTokenizer.from_pretrained(classifier)(TEXTS[:8], padding=True, return_tensors="pt"))
    config = PrunusConfig(precision=precision)
    exported = AutoHfExporter.from_config(config).export(model, inputs, config)
    exported.save_pretrained(tmp_path / "exported")
    with torch.no_grad():
        expected = model(**inputs).logits
    for one in (exported, ExportedModel.from_pretrained(tmp_path / "exported", device="cpu")):
        found = one(**inputs)
        assert type(found).__name__ == "SequenceClassifierOutput"
        limit = (1e-5 if precision == "float32" else 0.05) * float(expected.abs().max())
        assert float((found.logits - expected).abs().max()) <= limit
