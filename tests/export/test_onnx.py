"""ONNX of quantized models: the same grids in the file, the same answers from ONNX Runtime and OpenVINO."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from prunus.checkpoint.tensor_io import RANGES_FILE, read_tensors, write_tensors
from prunus.cli import app
from prunus.errors import EngineError
from prunus.export import graph
from prunus.export import onnx as onnx_module
from prunus.export.graph import FILES
from prunus.export.onnx import export_onnx
from prunus.export.running import Running
from prunus.quantization import Quantization, QuantLinear, quantize, restore, to_float
from prunus.quantization.fake import symmetric
from prunus.runtime.isa import choose
from small import CONFIGS, HEADS, TOKENS, save_tiny_bert

# Byte products of ONNX Runtime and OpenVINO saturate at 16 bits without VNNI, unless weights have 7 bits.
SATURATES = choose().product != "vnni"
GRID = Quantization(overflow_fix=SATURATES)
DRAW = torch.Generator().manual_seed(0)
BATCH = {
    "input_ids": torch.randint(5, TOKENS, (4, 12), generator=DRAW),
    "attention_mask": torch.tensor([[1] * n + [0] * (12 - n) for n in (12, 7, 3, 1)]),
}


def small(architecture: str, head: str) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    config._attn_implementation = "eager"
    model = HEADS[head].from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
        for module in model.modules():
            if type(module) is nn.Linear and module.in_features > 8:
                module.weight[:, ::2] = 0
    return model


def outputs_of(head: str) -> list[str]:
    return ["logits"] if head == "classification" else ["start_logits", "end_logits"]


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "mpnet", "albert"])
@pytest.mark.parametrize("head", ["classification", "question-answering"])
def test_onnxruntime_answers_as_torch(architecture: str, head: str, tmp_path: Path) -> None:
    model = small(architecture, head)
    quantize(model, GRID, [BATCH])
    names = outputs_of(head)
    export_onnx(model, BATCH, names, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for rows, tokens in ((4, 12), (1, 5), (3, 12), (1, 1)):
        batch = {name: value[:rows, :tokens] for name, value in BATCH.items()}
        with torch.no_grad():
            expected = model(**batch)
        found = session.run(names, {name: value.numpy() for name, value in batch.items()})
        for name, got in zip(names, found, strict=True):
            exact = expected[name].numpy()
            assert got.shape == exact.shape
            # one rounding that falls the other way moves a byte by a step, and later layers with it
            assert np.linalg.norm(got - exact) <= 0.03 * np.linalg.norm(exact)


def test_weights_in_the_file_are_those_of_torch(tmp_path: Path) -> None:
    model = small("bert", "classification")
    quantize(model, Quantization(), [BATCH])
    export_onnx(model, BATCH, ["logits"], tmp_path / "model.onnx")
    held = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    weights = [one for one in held if one.dtype == np.int8 and one.ndim == 2]
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert len(weights) == len(layers)
    for layer in layers:
        grid = symmetric(layer.weight, layer.weight_range, narrow=True) / layer.weight_range * 127
        whole = grid.detach().round().numpy().astype(np.int8)
        assert any(np.array_equal(whole, one) or np.array_equal(whole.T, one) for one in weights)
        assert np.mean(whole == 0) >= 0.5


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_command_proves_what_it_wrote(to: str, tmp_path: Path) -> None:
    place = save_tiny_bert(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)
    quantize(model, GRID, [BATCH])
    write_tensors(place / RANGES_FILE, to_float(model))
    model.save_pretrained(place)
    result = CliRunner().invoke(app, ["export", str(place), "--to", to, "--output", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["ranges"] == "learned in training"
    assert facts["products"]["int8"] >= 2 * 6
    assert facts["products"]["quantized layers"] == facts["weights"]["compared"] == 2 * 6 + 2
    assert json.loads((tmp_path / "out" / "export.json").read_text())["products"] == facts["products"]
    restore(model, read_tensors(place / RANGES_FILE))
    running = Running(tmp_path / "out" / FILES[to], to, ["logits"])
    with torch.no_grad():
        expected, got = model(**BATCH).logits, running(**BATCH)["logits"]
    assert (got - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize(("product", "bits", "told"), [("pairs", 8, True), ("pairs", 7, False), ("vnni", 8, False)])
def test_products_that_saturate_are_told(product: str, bits: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "choose", lambda: SimpleNamespace(product=product))
    assert bool(graph.saturation([QuantLinear(nn.Linear(4, 4), bits)], "onnx")) is told


def test_a_kernel_that_fell_back_to_float_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save_tiny_bert(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)
    quantize(model, Quantization(), [BATCH])
    write_tensors(place / RANGES_FILE, to_float(model))
    model.save_pretrained(place)
    monkeypatch.setattr(onnx_module, "twin_of", float_twin)
    with pytest.raises(EngineError, match="run on bytes in all 12 quantized layers"):
        graph.export_graph(place, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def float_twin(model: Any) -> nn.Module:
    twin = copy.deepcopy(model)
    to_float(twin)
    return twin


def test_mistakes_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    place = save_tiny_bert(tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(place, num_labels=3).save_pretrained(place)
    for words, match in (
        (["--to", "openvno"], "openvino"),
        (["--to", "onnx"], "name texts to calibrate"),
        (["--to", "onnx", "--precision", "int4", "--samples", "0"], "be int8 or float32"),
    ):
        result = CliRunner().invoke(app, ["export", str(place), *words, "--output", str(tmp_path / "out")])
        assert result.exit_code != 0
        assert match in result.output
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda place: (place / "config.json").unlink(), "be a file"),
        (lambda place: (place / "config.json").write_text("{"), "not a valid JSON file"),
        (
            lambda place: (place / "config.json").write_text('{"architectures": ["XForSequenceClassification"]}'),
            "Unrecognized model",
        ),
        (lambda place: (place / "model.safetensors").write_bytes(b"123"), "hold whole files of weights"),
        (lambda place: (place / "ranges.safetensors").write_bytes(b"123"), "whole safetensors file"),
    ],
)
def test_a_damaged_directory_is_told(damage: Any, match: str, tmp_path: Path) -> None:
    place = save_tiny_bert(tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(place, num_labels=3).save_pretrained(place)
    damage(place)
    result = CliRunner().invoke(app, ["export", str(place), "--to", "onnx", "--output", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert not isinstance(result.exception, OSError | ValueError)
    assert match in " ".join(result.output.split())
