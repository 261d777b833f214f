"""Archives: every tensor back to the last bit, at the size that counting predicts, and damage told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from prunus.checkpoint.tensor_io import RANGES_FILE, write_tensors
from prunus.cli import app
from prunus.errors import CheckpointError
from prunus.export.archive import ARCHIVE, read_archive, restore_archive, write_archive
from prunus.quantization import Quantization, quantize, to_float
from small import HEADS, save_tiny_bert

PATTERNS = {"dense": (1, 1), "unstructured": (1, 1), "4x1": (4, 1), "1x4": (1, 4), "2:4": (1, 1)}


def weights(pattern: str, outputs: int, inputs: int, sparsity: float = 0.8) -> Tensor:
    """Random weights, zero as a pattern says."""
    draw = torch.Generator().manual_seed(outputs * 1000 + inputs)
    weight = torch.randn(outputs, inputs, generator=draw)
    rows, columns = PATTERNS[pattern]
    if pattern == "dense":
        return weight
    if pattern == "2:4":
        lowest = weight.view(outputs, -1, 4).abs().argsort(-1)[..., :2]
        return weight.view(outputs, -1, 4).scatter(-1, lowest, 0.0).view(outputs, inputs)
    gone = torch.rand(outputs // rows, inputs // columns, generator=draw) < sparsity
    return weight * ~gone.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """But for the sign of zeros."""
    return first.dtype == second.dtype and (first + 0).numpy().tobytes() == (second + 0).numpy().tobytes()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(16, 32), (4, 4), (64, 12), (8, 256)])
@pytest.mark.parametrize("bits", [0, 7, 8])
def test_every_weight_comes_back_and_no_byte_is_wasted(
    pattern: str, shape: tuple[int, int], bits: int, tmp_path: Path
) -> None:
    weight = weights(pattern, *shape)
    ranges: dict[str, Tensor] = {}
    if bits:
        bound = weight.abs().amax(1, keepdim=True).clamp_min(0.1)
        most = 2 ** (bits - 1) - 1
        weight = (weight / (bound / most)).round().clamp(-most, most) * (bound / most) + 0.0
        ranges = {"a.weight_range": bound, "a.bits": torch.tensor(bits)}
    held = {"a.weight": weight, "a.bias": torch.randn(shape[0]), "ids": torch.arange(7), "none": torch.tensor(2.5)}
    forms = write_archive(tmp_path / "x.safetensors", held, ranges)
    back = read_archive(tmp_path / "x.safetensors")
    assert set(back) == set(held)
    assert all(same_bits(back[name], tensor) for name, tensor in held.items())
    # The size, counted in another way: bits of the blocks plus values of the kept ones, or all values.
    size = 1 if bits else 4
    kept = {}
    for rows, columns in ((1, 1), (4, 1), (1, 4)):
        blocks = [
            weight[i : i + rows, j : j + columns].any().item()
            for i in range(0, shape[0], rows)
            for j in range(0, shape[1], columns)
        ]
        kept[rows, columns] = -(-len(blocks) // 8) + sum(blocks) * rows * columns * size
    expected = min(weight.numel() * size, *kept.values()) + (4 * shape[0] if bits else 0)
    stored = load_file(tmp_path / "x.safetensors")
    assert sum(t.numel() * t.element_size() for name, t in stored.items() if name.startswith("a.weight")) == expected
    if forms["a.weight"].kind.startswith("kept"):
        assert kept[forms["a.weight"].block] == min(kept.values())


def test_values_that_are_on_no_grid_stay_float(tmp_path: Path) -> None:
    weight = weights("unstructured", 16, 16)
    forms = write_archive(tmp_path / "x", {"a.weight": weight}, {"a.weight_range": torch.ones(16, 1)})
    assert forms["a.weight"].kind == "kept"
    assert same_bits(read_archive(tmp_path / "x")["a.weight"], weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_other_types_are_kept_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = (weights("4x1", 8, 8) * 10).to(dtype)
    assert write_archive(tmp_path / "x", {"a.weight": weight}, {})["a.weight"].kind == "plain"
    assert torch.equal(read_archive(tmp_path / "x")["a.weight"], weight)


def test_a_quantized_model_goes_through_the_command_line_and_back(tmp_path: Path) -> None:
    place = save_tiny_bert(tmp_path / "model")
    model = HEADS["classification"].from_pretrained(place)
    with torch.no_grad():
        for parameter in model.base_model.encoder.parameters():
            if parameter.ndim == 2:
                parameter[:, ::2] = 0
    ids = torch.randint(5, 20, (4, 12), generator=torch.Generator().manual_seed(0))
    quantize(model, Quantization(), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    write_tensors(place / RANGES_FILE, to_float(model))
    model.save_pretrained(place)
    call = CliRunner().invoke
    result = call(app, ["export", str(place), "--to", "archive", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    pruned = facts["bytes"]["pruned"]
    assert pruned["archive"][0] < pruned["int8"][0] < pruned["float32"][0]
    forms = [form["form"] for form in facts["forms"].values()]
    assert forms.count("kept8") == 2 * 6  # the encoder's; pooler and classifier are whole
    assert forms.count("whole") == 2
    archive = tmp_path / "model-archive"
    result = call(app, ["export", str(archive), "--to", "transformers", "-o", str(tmp_path / "back")])
    assert result.exit_code == 0, result.output
    first, second = (load_file(at / "model.safetensors") for at in (place, tmp_path / "back"))
    assert set(first) == set(second)
    assert all(same_bits(first[name], second[name]) for name in first)
    again = HEADS["classification"].from_pretrained(tmp_path / "back")
    assert torch.equal(
        again(input_ids=ids).logits, HEADS["classification"].from_pretrained(place)(input_ids=ids).logits
    )
    assert (tmp_path / "back" / RANGES_FILE).is_file()
    result = call(app, ["export", str(place), "--to", "archive"])
    assert result.exit_code == 2
    assert "not hold an archive yet" in result.output


def rewritten(path: Path, change: Any) -> None:
    """The file again, after a change of its arrays or of its list."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    arrays = load_file(path)
    listed = json.loads(metadata["tensors"])
    change(arrays, listed, metadata)
    metadata["tensors"] = json.dumps(listed)
    save_file(arrays, path, metadata)


def no_mask(arrays: Any, listed: Any, metadata: Any) -> None:
    del arrays["a.weight.mask"]


def one_bit(arrays: Any, listed: Any, metadata: Any) -> None:
    arrays["a.weight.mask"][0] ^= 1


def huge(arrays: Any, listed: Any, metadata: Any) -> None:
    listed["a.weight"]["shape"] = [2**39, 2**39]


def negative(arrays: Any, listed: Any, metadata: Any) -> None:
    listed["a.weight"]["shape"] = [-16, 16]


def other_form(arrays: Any, listed: Any, metadata: Any) -> None:
    listed["a.weight"]["form"] = "pickle"


def other_block(arrays: Any, listed: Any, metadata: Any) -> None:
    listed["a.weight"]["block"] = [3, 0]


def no_list(arrays: Any, listed: Any, metadata: Any) -> None:
    listed["a.weight"] = None


def later(arrays: Any, listed: Any, metadata: Any) -> None:
    metadata["version"] = "2"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_mask, "a.weight.mask must be torch.uint8"),
        (one_bit, "a.weight.values must be torch.float32"),
        (huge, "a.weight must be a form"),
        (negative, "a.weight must be a form"),
        (other_form, "a.weight must be a form"),
        (other_block, "a.weight must be a form"),
        (no_list, "a.weight must be a form"),
        (later, "must be prunus-archive 1"),
    ],
)
def test_a_damaged_archive_is_refused(change: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    write_archive(path, {"a.weight": weights("unstructured", 16, 16)}, {})
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=told):
        restore_archive(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_a_file_and_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    write_archive(path, {"a.weight": weights("unstructured", 16, 16)}, {})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="be a whole safetensors file"):
        read_archive(path)
    save_file({"a": torch.from_numpy(np.ones(3))}, path)
    with pytest.raises(CheckpointError, match="must be prunus-archive 1"):
        read_archive(path)
