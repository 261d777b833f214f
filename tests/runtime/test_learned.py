"""Ranges of quantization-aware training in the packed model: the same grids, the same bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prunus.checkpoint.tensor_io import write_tensors
from prunus.errors import EngineError
from prunus.quantization import Quantization, quantize, to_float
from prunus.quantization.layers import RANGES
from prunus.runtime.convert import calibrate, convert
from prunus.runtime.engine import Engine
from prunus.runtime.families import read_checkpoint
from prunus.runtime.learned import read_learned
from prunus.runtime.pack import unpack
from small import CONFIGS, TOKENS

HEAD = ("pooler|classifier|embedding_hidden_mapping_in",)
"""The engine's head is float32, and so is its projection of the embeddings."""
IDS = torch.randint(5, TOKENS, (6, 12), generator=torch.Generator().manual_seed(0))


def trained(place: Path, architecture: str, spec: Quantization) -> np.ndarray:
    """Saves a model with learned ranges (moved away from the calibrated ones) and returns its own logits."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    config.num_labels = 3
    if architecture in ("electra", "albert"):
        config.embedding_size = 16
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
    quantize(model, spec, [{"input_ids": IDS}])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(RANGES):
                parameter.mul_(0.6)
        logits = model(input_ids=IDS).logits.numpy()
    write_tensors(place / "ranges.safetensors", to_float(model))
    model.save_pretrained(place)
    return np.asarray(logits)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "mpnet", "albert"])
@pytest.mark.parametrize(
    "spec", [Quantization(exclude=HEAD), Quantization(mode="symmetric", overflow_fix=True, exclude=HEAD)]
)
def test_the_packed_model_uses_the_learned_grids(architecture: str, spec: Quantization, tmp_path: Path) -> None:
    expected = trained(tmp_path, architecture, spec)
    dense = read_checkpoint(tmp_path)
    learned = read_learned(tmp_path, dense.shape)
    assert learned is not None
    rows = [row.numpy() for row in IDS]
    model = convert(dense, calibrate(dense, rows), learned=learned)
    for i, layer in enumerate(model.layers):
        for role, packed in layer.items():
            name = f"layers.{i}.{role}"
            back = unpack(packed) * learned.weights[name][:, None]
            assert np.abs(back - dense.tensors[f"{name}.weight"]).max() <= 1e-6  # weights were on the grid: none moves
        assert model.tensors[f"layers.{i}.middle.zero"][0] == learned.inputs[f"layers.{i}.middle"][1]
    errors = {}
    for name, other in (("learned", model), ("calibrated", convert(dense, calibrate(dense, rows), smooth=0.0))):
        with Engine(other, threads=1) as engine:
            errors[name] = np.linalg.norm(engine(IDS.numpy()).logits - expected) / np.linalg.norm(expected)
    assert errors["learned"] < 0.05
    assert errors["learned"] < errors["calibrated"]


def test_without_a_file_nothing_was_learned(tmp_path: Path) -> None:
    trained(tmp_path, "bert", Quantization())
    (tmp_path / "ranges.safetensors").unlink()
    assert read_learned(tmp_path, read_checkpoint(tmp_path).shape) is None


def test_damaged_ranges_are_named(tmp_path: Path) -> None:
    trained(tmp_path, "bert", Quantization(exclude=("intermediate",)))
    shape = read_checkpoint(tmp_path).shape
    with pytest.raises(EngineError, match=r"intermediate\.dense\.weight_range"):
        read_learned(tmp_path, shape)
    whole = (tmp_path / "ranges.safetensors").read_bytes()
    (tmp_path / "ranges.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="whole safetensors"):
        read_learned(tmp_path, shape)
