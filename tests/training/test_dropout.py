"""``train.dropout``: of every architecture, for the time of a training, without a word in the configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunus import RecipeError
from prunus.recipe import read_recipe
from prunus.training.dropout import dropout
from prunus.training.run import run
from small import CONFIGS, batch, rows, save_tiny_bert, small_recipe, tiny_model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_none_of_it_within_and_the_same_as_before_after(architecture: str) -> None:
    model = tiny_model(architecture)
    inputs = {name: value for name, value in batch(rows(4)).items() if name in ("input_ids", "attention_mask")}

    def difference() -> float:
        """Between training and evaluation."""
        with torch.no_grad():
            return float((model.train()(**inputs).logits - model.eval()(**inputs).logits).abs().max())

    own = difference()
    with dropout(model, 0.9):
        assert difference() > 0
    with dropout(model, 0.0):
        assert difference() == 0
    assert (difference() > 0) == (own > 0)


def test_the_end_is_that_of_a_model_without_dropout(small_data: Path, tmp_path: Path) -> None:
    own = save_tiny_bert(tmp_path / "own")
    none = save_tiny_bert(tmp_path / "none")
    config = json.loads((none / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (none / "config.json").write_text(json.dumps(config | off))

    def ended(model: Path, more: dict[str, Any]) -> dict[str, torch.Tensor]:
        raw = small_recipe(model, small_data, dense=None, distill=None)
        recipe = read_recipe(raw | {"train": raw["train"] | more})
        run(recipe, tmp_path / "out", command="", overwrite=True)
        saved = json.loads((tmp_path / "out" / "config.json").read_text())
        assert saved["hidden_dropout_prob"] == (0.0 if model == none else 0.1)
        return load_file(tmp_path / "out" / "model.safetensors")

    reference, found, usual = ended(none, {}), ended(own, {"dropout": 0.0}), ended(own, {})
    assert all(torch.equal(found[name], value) for name, value in reference.items())
    assert any(not torch.equal(usual[name], value) for name, value in reference.items())


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_what_is_no_probability_is_refused(value: float, small_data: Path, tmp_path: Path) -> None:
    raw = small_recipe(save_tiny_bert(tmp_path / "model"), small_data)
    with pytest.raises(RecipeError, match=r"train\.dropout must be in \[0, 1\)"):
        read_recipe(raw | {"train": raw["train"] | {"dropout": value}})
