"""Configurations of other tools, as they stand."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prunus.cli import app
from prunus.converters import convert_file
from prunus.errors import RecipeError
from prunus.recipe import load_recipe, read_recipe

CARD: dict[str, Any] = {
    "input_info": [{"sample_size": [1, 128], "type": "long", "keyword": "input_ids"}],
    "compression": [
        {
            "algorithm": "magnitude_sparsity",
            "sparsity_init": 0.0,
            "params": {
                "schedule": "polynomial",
                "power": 3,
                "sparsity_target": 0.8,
                "sparsity_target_epoch": 9,
                "sparsity_freeze_epoch": 10,
                "steps_per_epoch": 2105,
                "update_per_optimizer_step": True,
            },
            "ignored_scopes": ["{re}.*NNCFEmbedding.*", "{re}.*LayerNorm.*", "{re}.*pooler.*", "{re}.*classifier.*"],
        },
        {
            "algorithm": "quantization",
            "preset": "mixed",
            "overflow_fix": "disable",
            "initializer": {
                "range": {"num_init_samples": 300, "type": "mean_min_max"},
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
            },
            "scope_overrides": {"activations": {"{re}.*matmul_0": {"mode": "symmetric"}}},
            "ignored_scopes": [
                "{re}.*Embeddings.*",
                "{re}.*__add___[0-1]",
                "{re}.*layer_norm_0",
                "{re}.*matmul_1",
                "{re}.*__truediv__*",
            ],
        },
    ],
}


def written(place: Path, values: Any) -> Path:
    path = place / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_the_card_becomes_the_shipped_recipe(tmp_path: Path) -> None:
    found = convert_file(written(tmp_path, CARD))
    assert found.lost == []
    mine, shipped = read_recipe(found.recipe), load_recipe("sst2-int8-unstructured80")
    assert mine.quantize == shipped.quantize
    assert mine.train.steps_per_epoch == 2105
    (rule,), (own,) = mine.prune, shipped.prune
    assert rule.targets.exclude == ("pooler", "classifier")
    for name in ("sparsity", "pattern", "criterion", "schedule", "allocation", "revive"):
        assert getattr(rule, name) == getattr(own, name), name


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"compression": [{"algorithm": "filter_pruning", "params": {}}]}, "compression[0].algorithm"),
        ({"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.1}}, "compression[0].sparsity_init"),
        ({"compression": {"algorithm": "magnitude_sparsity", "extra": 1}}, "compression[0].extra"),
        (
            {"compression": {"algorithm": "magnitude_sparsity", "params": {"schedule": "sine", "patience": 2}}},
            "compression[0].params.patience",
        ),
        (
            {"compression": {"algorithm": "quantization", "initializer": {"range": {"type": "threesigma"}}}},
            "compression[0].initializer.range.type",
        ),
        ({"compression": {"algorithm": "quantization", "weights": {"bits": 4}}}, "compression[0].weights"),
        (
            {"compression": {"algorithm": "quantization", "ignored_scopes": ["BertModel[bert]/Linear[x]"]}},
            "compression[0].ignored_scopes",
        ),
        ({"compression": [], "accuracy_aware_training": {"mode": "early_exit"}}, "accuracy_aware_training"),
    ],
)
def test_what_cannot_be_said_is_named(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    lost = convert_file(written(tmp_path, change)).lost
    assert any(line.startswith(f"{key} = ") for line in lost), lost


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {"kind": "polynomial", "power": 0.9, "end": "90 epochs", "hold": "10 epochs", "every": "1 epochs"}),
        (
            {"schedule": "exponential", "sparsity_target_epoch": 5, "sparsity_freeze_epoch": 5},
            {"kind": "exponential", "end": "5 epochs"},
        ),
        ({"power": 3, "concave": False}, {"kind": "inc_cube"}),
        ({"power": 1, "concave": False}, {"kind": "linear"}),
        (
            {"schedule": "multistep", "multistep_steps": [2, 5], "multistep_sparsity_levels": [0.2, 0.4, 0.8]},
            {"kind": "multistep", "boundaries": ["2 epochs", "5 epochs"], "levels": [0.25, 0.5, 1.0]},
        ),
        (
            {"schedule": "adaptive", "sparsity_target": 0.2, "patience": 1},
            {"kind": "multistep", "boundaries": ["1 epochs", "2 epochs", "3 epochs"], "levels": [0.25, 0.5, 0.75, 1.0]},
        ),
        (
            {"schedule": "adaptive", "sparsity_target": 0.6, "step": 0.25, "patience": 2},
            {"boundaries": ["1 epochs", "3 epochs", "5 epochs"], "levels": [0, 0.25 / 0.6, 0.5 / 0.6, 1.0]},
        ),
    ],
)
def test_schedules_of_nncf(params: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    found = convert_file(written(tmp_path, {"compression": {"algorithm": "magnitude_sparsity", "params": params}}))
    schedule = found.recipe["prune"]["schedule"]
    for key, value in expected.items():
        assert schedule.get(key) == (pytest.approx(value) if key == "levels" else value), key
    assert found.lost == []
    read_recipe(found.recipe).prune[0].schedule.timetable(100_000, 100)


LANGUAGE_MODEL = {
    "scheduler": "iterative",
    "pruning_fn": "unstructured_magnitude",
    "pruning_fn_default_kwargs": {"target_sparsity": 0.85},
    "prune_layer_types": {"Linear": {"name": "weight"}},
    "not_to_prune": ["cls", "teacher"],
    "pruning_frequency": 1000,
    "begin_pruning_step": 0,
    "end_pruning_step": 80000,
    "policy_begin_step": 0,
    "policy_end_step": 50000,
}


def test_a_locked_pattern(tmp_path: Path) -> None:
    values = {
        "scheduler": "one_shot",
        "pruning_fn": "pattern_lock",
        "prune_layer_types": {"Linear": {"name": "weight"}, "QuantizedLinear": {"name": "weight"}},
        "not_to_prune": ["classifier", "teacher"],
    }
    found = convert_file(written(tmp_path, values))
    assert found.lost == []
    (rule,) = read_recipe(found.recipe).prune
    assert rule.lock
    assert rule.targets.exclude == ("classifier",)


def test_prune_once_for_alls_own_configuration(tmp_path: Path) -> None:
    found = convert_file(written(tmp_path, LANGUAGE_MODEL))
    assert found.lost == []
    (rule,) = read_recipe(found.recipe).prune
    table = rule.schedule.timetable(100_000, 1000)
    assert (table.update_steps[0], table.update_steps[-1], len(table.update_steps)) == (0, 80_000, 81)
    for step in range(0, 100_000, 7000):  # 1 - (1 - t)^3, section 3.3 of its description, at the last update
        t = min(1.0, step // 1000 * 1000 / 50_000)
        assert table.sparsity(step, 0.85) == pytest.approx(0.85 * (1 - (1 - t) ** 3))
    assert rule.targets.exclude == ("cls",)
    assert (rule.allocation.scope, rule.revive, rule.criterion) == ("tensor", True, "magnitude")


@pytest.mark.parametrize(
    ("function", "kwargs", "pattern", "scope"),
    [
        ("block_structured_magnitude", {"block_dims": [1, 4]}, "4x1", "tensor"),
        ("block_structured_magnitude", {"block_dims": [4, 1], "pooling_type": "max"}, "1x4", "tensor"),
        ("block_structured_magnitude", {"block_dims": 8}, "8x8", "tensor"),
        ("block_structured_magnitude", {"block_dims": [4]}, "4x1", "tensor"),
        ("uniform_magnitude", {"block_size": 4}, "2:4", "tensor"),
        ("global_unstructured_magnitude", {"group_target_sparsity": 0.5}, "unstructured", "global"),
    ],
)
def test_functions_of_mcr(function: str, kwargs: dict[str, Any], pattern: str, scope: str, tmp_path: Path) -> None:
    values = {"pruning_fn": function, "pruning_fn_default_kwargs": {"target_sparsity": 0.5, **kwargs}}
    values["pruning_fn_default_kwargs"] = {
        key: value
        for key, value in values["pruning_fn_default_kwargs"].items()
        if not (scope == "global" and key == "target_sparsity")
    }
    found = convert_file(written(tmp_path, {**values, "end_pruning_step": 1000}))
    (rule,) = read_recipe(found.recipe).prune
    assert (rule.pattern, rule.allocation.scope) == (pattern, scope)
    assert rule.final_sparsity() == 0.5
    assert found.lost == []


def test_from_the_terminal(tmp_path: Path) -> None:
    path, target = written(tmp_path, CARD | {"weights": 1}), tmp_path / "recipe.yaml"
    shown = CliRunner().invoke(app, ["convert", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "# not expressed: weights = 1: has no counterpart" in shown.stdout
    assert yaml.safe_load(shown.stdout)["prune"]["sparsity"] == 0.8
    assert CliRunner().invoke(app, ["convert", str(path), "-o", str(target)]).exit_code == 0
    assert load_recipe(str(target)).quantize is not None
    again = CliRunner().invoke(app, ["convert", str(path), "-o", str(target)])
    assert again.exit_code != 0
    assert "be a new file" in again.output


@pytest.mark.parametrize("values", [[], {}, {"a": 1}, 3])
def test_files_of_neither_tool(values: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"be an nncf_config\.json"):
        convert_file(written(tmp_path, values))
    with pytest.raises(RecipeError, match="be a file of JSON"):
        convert_file(tmp_path / "nothing.json")


@pytest.mark.parametrize("form", ["list", "one in a list", "one", "one under compression"])
def test_algorithms_without_the_object_around_them(form: str, tmp_path: Path) -> None:
    """As Optimum Intel took them."""
    algorithms = CARD["compression"]
    forms: dict[str, Any] = {
        "list": algorithms,
        "one in a list": algorithms[:1],
        "one": algorithms[0],
        "one under compression": {"compression": algorithms[0]},
    }
    bare, whole = tmp_path / "bare.json", tmp_path / "whole.json"
    bare.write_text(json.dumps(forms[form]))
    whole.write_text(json.dumps({"compression": algorithms if form == "list" else algorithms[:1]}))
    found, expected = convert_file(bare), convert_file(whole)
    assert found.recipe == expected.recipe
    assert found.recipe["prune"]["sparsity"] == 0.8
    if form == "list":
        assert found.recipe["quantize"]["mode"] == "mixed"
        assert found.lost == expected.lost


@pytest.mark.parametrize("values", [[], [1], [{}], {"algorithm2": "x"}, [{"algorithm": "x"}, 3], "x", None])
def test_lists_of_something_else_are_refused(values: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=r"be an nncf_config.json"):
        convert_file(tmp_path / "a.json")
