"""Compacted models load again in another process: shapes, outputs, training, saving once more."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
)

import prunus
from prunus import Allocation, CheckpointError, Masker, Pruning, PrunusError, Schedule, Span
from prunus.checkpoint.huggingface import PrunusLayout, narrow, shorten
from prunus.models.loading import from_config, meta_model
from prunus.sparsity.structures import structures
from prunus.sparsity.width import stream_width
from prunus.tasks.base import HeadKind
from small import CONFIGS, arguments, batch, rows, tiny_model

LOAD = """
import sys, torch
{first}
{second}
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
held = torch.load(sys.argv[2], weights_only=True)
got = model(**held["inputs"]).logits
print(float((got - held["logits"]).abs().max()))
"""


def small(architecture: str = "bert") -> Any:
    model = tiny_model(architecture)
    schedule, whole = Schedule("one_shot", Span(0)), Allocation("global", "normed", 1.0)
    Masker(model, [Pruning(0.5, kind, "magnitude", schedule, whole) for kind in ("heads", "ffn")], 1)
    prunus.compact(model)
    return model


def inputs() -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch(rows(3)).items() if name != "labels"}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_was_saved_is_loaded_trained_and_saved_again(architecture: str, tmp_path: Path) -> None:
    model = small(architecture)
    with torch.no_grad():
        expected = model(**inputs()).logits
    model.save_pretrained(tmp_path / "small")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs()).logits, expected)
    trainer = Trainer(again, arguments(tmp_path / "t", max_steps=2), train_dataset=rows(8), data_collator=batch)
    trainer.train()
    again.eval().save_pretrained(tmp_path / "trained")
    third = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained").eval()
    with torch.no_grad():
        after = third(**inputs()).logits
        assert torch.equal(after, again(**inputs()).logits)
    assert not torch.equal(after, expected)
    body = AutoModel.from_pretrained(tmp_path / "small")
    shapes = {name: p.shape for name, p in model.base_model.named_parameters()}
    assert all(shapes.get(name, p.shape) == p.shape for name, p in body.named_parameters())


@pytest.mark.parametrize(
    "order",
    [("import prunus", "USE"), ("USE", "import prunus"), ("from prunus.checkpoint.huggingface import narrow", "USE")],
    ids=["first", "last", "by its module"],
)
def test_a_fresh_process_needs_import_prunus_and_no_more(order: tuple[str, str], tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "small")
    with torch.no_grad():
        torch.save({"inputs": inputs(), "logits": model(**inputs()).logits}, tmp_path / "held.pt")
    use = "from transformers import AutoModelForSequenceClassification"
    first, second = (use if each == "USE" else each for each in order)
    command = [sys.executable, "-c", LOAD.format(first=first, second=second)]
    ran = subprocess.run(
        [*command, str(tmp_path / "small"), str(tmp_path / "held.pt")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout.strip()) == 0.0


def test_without_prunus_transformers_says_what_does_not_fit(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "small")
    use = "from transformers import AutoModelForSequenceClassification"
    command = [sys.executable, "-c", LOAD.format(first=use, second=""), str(tmp_path / "small"), "held"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "prunus" in ran.stderr
    assert "ismatch" in ran.stderr


def without(model: Any, kind: str, units: list[int], layers: slice = slice(None)) -> None:
    """Columns that read these heads or neurons become zero."""
    for structure in [each for each in structures(model) if each.kind == kind][layers]:
        columns = [unit * structure.width + i for unit in units for i in range(structure.width)]
        with torch.no_grad():
            model.get_submodule(structure.reader).weight[:, columns] = 0


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    return LlamaForSequenceClassification(
        LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4, num_labels=3, pad_token_id=0)
    ).eval()


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [*((architecture, ["ffn"]) for architecture in CONFIGS), ("llama", ["heads"]), ("llama", ["heads", "ffn"])],
)
def test_as_many_in_every_layer_need_no_prunus(architecture: str, kinds: list[str], tmp_path: Path) -> None:
    model = llama() if architecture == "llama" else tiny_model(architecture).eval()
    for kind in kinds:
        without(model, kind, [0, 2])
    with torch.no_grad():
        expected = model(**inputs()).logits
    prunus.compact(model)
    model.save_pretrained(tmp_path / "small")
    assert "quantization_config" not in json.loads((tmp_path / "small" / "config.json").read_text())
    again = type(model).from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs()).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_fresh_process_loads_them_without_prunus(tmp_path: Path) -> None:
    model = tiny_model("bert").eval()
    without(model, "ffn", [1])
    prunus.compact(model)
    model.save_pretrained(tmp_path / "small")
    with torch.no_grad():
        torch.save({"inputs": inputs(), "logits": model(**inputs()).logits}, tmp_path / "held.pt")
    use = "from transformers import AutoModelForSequenceClassification"
    command = [sys.executable, "-c", LOAD.format(first=use, second=""), str(tmp_path / "small")]
    ran = subprocess.run([*command, str(tmp_path / "held.pt")], capture_output=True, text=True, check=False)
    assert float(ran.stdout.strip()) == 0.0, ran.stderr[-2000:]


def test_a_layout_goes_when_the_last_layer_has_as_many(tmp_path: Path) -> None:
    model = tiny_model("bert").eval()
    without(model, "ffn", [1], slice(0, 1))
    prunus.compact(model)
    model.save_pretrained(tmp_path / "once")
    assert model.config.quantization_config.layout
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "once").eval()
    without(again, "ffn", [3], slice(1, None))
    with torch.no_grad():
        expected = again(**inputs()).logits
    prunus.compact(again)
    again.save_pretrained(tmp_path / "twice")
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["intermediate_size"] == 31
    third = AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice").eval()
    with torch.no_grad():
        torch.testing.assert_close(third(**inputs()).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["heads", "ffn"])
def test_others_keep_their_layout(kind: str) -> None:
    model = tiny_model("bert")
    without(model, kind, [0], slice(None) if kind == "heads" else slice(0, 1))
    prunus.compact(model)
    assert len(model.config.quantization_config.layout) == (model.config.num_hidden_layers if kind == "heads" else 1)


def test_compacting_twice_counts_from_the_whole_model(tmp_path: Path) -> None:
    model = tiny_model("bert")
    reader = "bert.encoder.layer.0.output.dense"
    with torch.no_grad():
        model.get_parameter(f"{reader}.weight")[:, [0, 5, 6]] = 0
    prunus.compact(model)
    with torch.no_grad():
        model.get_parameter(f"{reader}.weight")[:, 1] = 0  # which was number 2
        expected = model.eval()(**inputs()).logits
    prunus.compact(model)
    assert model.config.quantization_config.layout == {reader: [1, 3, 4, *range(7, 32)]}
    model.save_pretrained(tmp_path / "small")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs()).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_dense_model_is_saved_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("bert")
    assert prunus.compact(model) == {}
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize(
    "layout",
    [
        [1, 2],
        {"bert.encoder.layer.0.output.dense": "all"},
        {"bert.encoder.layer.0.output.dense": [0.5]},
        {"bert.encoder.layer.0.output.dense": [True]},
        {"bert.encoder.layer.0.output.dense": [0, 999]},
        {"os.system": [0]},
    ],
)
def test_layouts_from_outside_are_checked(layout: Any, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layout"] = layout
    path.write_text(json.dumps(config))
    with pytest.raises(PrunusError, match="layout"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")


def test_another_method_is_not_overwritten() -> None:
    model = tiny_model("bert")
    model.config.quantization_config = {"quant_method": "other"}
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.0.output.dense.weight")[:, 0] = 0
    with pytest.raises(CheckpointError, match="cannot stand beside another method"):
        prunus.compact(model)
    assert PrunusLayout().layout == {}


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("made", [meta_model, from_config])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_models_made_of_a_configuration_have_the_sizes_of_its_layout(
    made: Callable[[Any, HeadKind], Any], architecture: str, tmp_path: Path
) -> None:
    small(architecture).save_pretrained(tmp_path / "small")
    config = AutoConfig.from_pretrained(tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert shapes(made(config, "classification")) == shapes(loaded)
    assert isinstance(config.quantization_config, dict)  # the configuration that was given is not changed


def test_a_layout_that_does_not_fit_is_told_before_anything_is_made() -> None:
    config = CONFIGS["bert"]()
    config.quantization_config = {"quant_method": "prunus", "layout": {"encoder.layer.9.output.dense": [0]}}
    with pytest.raises(CheckpointError, match="name a layer that reads heads or neurons"):
        meta_model(config, "classification")


@pytest.mark.parametrize(
    ("architecture", "kept"),
    # ModernBERT builds its first layer without a norm, so that another one cannot take its place.
    [(name, kept) for name in CONFIGS for kept in ([1], [0], [1, 0]) if name != "modernbert" or 0 in kept],
)
def test_a_layout_follows_the_layers_that_are_kept(architecture: str, kept: list[int], tmp_path: Path) -> None:
    model = small(architecture)
    shorten(model, kept)
    with torch.no_grad():
        expected = model(**inputs()).logits
    model.save_pretrained(tmp_path / "short")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "short").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs()).logits, expected)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "distilbert"])
def test_narrowed_compacted_and_narrowed_again(architecture: str, tmp_path: Path) -> None:
    model = small(architecture)
    for left in (12, 8):
        narrow(model, range(left))
        assert stream_width(model) == left
    with torch.no_grad():
        expected = model(**inputs()).logits
    model.save_pretrained(tmp_path / "narrow")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "narrow").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs()).logits, expected)
    config = AutoConfig.from_pretrained(tmp_path / "narrow")
    assert shapes(meta_model(config, "classification")) == shapes(again)


@pytest.mark.parametrize("pattern", ["heads", "ffn", "4x1", "2:4", "1x1", "rows"])
def test_layers_of_different_sizes_are_pruned_again(pattern: str) -> None:
    """Whatever fits is pruned, what does not is named; a layer that lost everything is no target."""
    model = tiny_model()
    without(model, "heads", [0, 1], slice(0, 1))
    without(model, "heads", [1], slice(1, 2))
    without(model, "ffn", list(range(9)), slice(0, 1))
    without(model, "ffn", list(range(16, 32)), slice(1, 2))
    prunus.compact(model)
    rule = Pruning(0.5, pattern, "magnitude", Schedule("one_shot", Span(0)))
    masker = Masker(model, rule, 1)
    (selection,) = masker.selections
    assert all(0 not in shape for shape in selection.taken.values())
    empty = [reason for shape, reason in selection.skipped.values() if 0 in shape and "divide" in reason]
    assert all("no weights are left" in reason for reason in empty)
    with torch.no_grad():
        assert bool(torch.isfinite(model(**inputs()).logits).all())
