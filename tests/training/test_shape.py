"""Runs that begin with fewer layers or a narrower stream: chosen by what they do, taught, saved, loaded, measured again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from typer.testing import CliRunner

import prunus  # noqa: F401 - so that a narrow model loads
from prunus import RecipeError
from prunus.cli import app
from prunus.recipe import read_recipe
from prunus.training.prepare import prepare
from prunus.training.run import run
from small import CONFIGS, interrupt_at, save_tiny_bert, small_recipe, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def deep_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("deep"), num_hidden_layers=4)


def recipe_of(model: Path, data: Path, shape: dict[str, Any], **more: Any) -> dict[str, Any]:
    raw = small_recipe(model, data, **{"prune": [], **more})
    return raw | {
        "model": raw["model"] | shape,
        "train": raw["train"] | {"evaluate_every": None, "learning_rate": 1e-3},
    }


@pytest.mark.parametrize(
    ("shape", "layers", "width"),
    [({"layers": [0, 3]}, 2, 16), ({"depth": 3}, 3, 16), ({"hidden": 8}, 4, 8), ({"depth": 2, "hidden": 12}, 2, 12)],
    ids=str,
)
def test_what_is_left_is_what_was_asked_for(
    shape: dict[str, Any], layers: int, width: int, deep_bert: Path, small_data: Path, tmp_path: Path
) -> None:
    hidden = {"weight": 0.5, "layers": "uniform"}
    distill = {"teacher": "dense", "hard_weight": 0.5, "hidden": hidden}
    facts = run(read_recipe(recipe_of(deep_bert, small_data, shape, distill=distill)), tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert len(model.bert.encoder.layer) == layers
    assert model.bert.encoder.layer[0].output.LayerNorm.weight.shape == (width,)
    if "layers" in shape:
        assert facts.shape == {"layers": [0, 3]}
    if "depth" in shape:
        turned = facts.shape["influence"]
        assert len(turned) == 4
        lost = [turned[i] for i in range(4) if i not in facts.shape["layers"]]
        assert max(lost) <= min(turned[i] for i in facts.shape["layers"])
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"] == facts.dense.metrics


def test_heads_of_a_shallow_narrow_model_are_pruned_and_taken_out(
    deep_bert: Path, small_data: Path, tmp_path: Path
) -> None:
    schedule = {"kind": "linear", "start": 0, "end": 18, "every": 3}
    rules = [
        {"pattern": k, "sparsity": 0.5, "criterion": "first_order", "schedule": schedule} for k in ("heads", "ffn")
    ]
    raw = recipe_of(deep_bert, small_data, {"depth": 2, "hidden": 8}, prune=rules)
    run(read_recipe(raw), tmp_path / "run")
    result = CliRunner().invoke(app, ["compact", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    first, second = (AutoModelForSequenceClassification.from_pretrained(tmp_path / n) for n in ("run", "run-compact"))
    assert sum(p.numel() for p in second.parameters()) < sum(p.numel() for p in first.parameters())
    ids = torch.randint(4, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        left, right = (model.eval()(input_ids=ids).logits for model in (first, second))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_run_that_goes_on_ends_as_a_whole_one(
    deep_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = small_recipe(deep_bert, small_data)["prune"]
    recipe = read_recipe(recipe_of(deep_bert, small_data, {"depth": 2, "hidden": 8}, prune=rule))
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "halves")
    run(recipe, tmp_path / "halves", resume=True)
    first, second = (AutoModelForSequenceClassification.from_pretrained(tmp_path / n) for n in ("whole", "halves"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"layers": [0], "depth": 2}, r"model\.depth must be left out where model\.layers names"),
        ({"depth": 0}, r"model\.depth must be at least 1"),
        ({"depth": 5}, r"model\.depth must be at most the 4 of the model"),
        ({"hidden": 64}, r"model\.hidden must be at most the 16 of the model"),
        ({"layers": [0, 9]}, r"model\.layers must be one or more different numbers in 0\.\.3"),
    ],
)
def test_mistakes_are_told(shape: dict[str, Any], said: str, deep_bert: Path, small_data: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        prepare(read_recipe(recipe_of(deep_bert, small_data, shape)))


def test_depth_keeps_a_first_layer_unlike_the_others(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ModernBERT, whose layers turn the more the deeper they are: the first stays all the same."""
    config = CONFIGS["modernbert"]()
    config.num_hidden_layers, config.layer_types = 4, ["full_attention"] * 4
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("prunus.training.shape.influence", lambda model, batches: [0.1, 0.2, 0.3, 0.4])
    raw = recipe_of(tmp_path / "model", small_data, {"depth": 2}, distill=None)
    facts = run(read_recipe(raw), tmp_path / "run")
    assert facts.shape["layers"] == [0, 3]
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--json"])
    assert json.loads(result.stdout)["metrics"] == facts.dense.metrics
    raw = recipe_of(tmp_path / "model", small_data, {"layers": [1, 2]}, distill=None)
    said = r"model\.layers must leave layer 0 in its place: layer 1 differs from it in attn_norm"
    with pytest.raises(RecipeError, match=said):
        prepare(read_recipe(raw))
