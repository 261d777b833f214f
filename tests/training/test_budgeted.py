"""Budgets in recipes: what is left is what was asked for, counted in the compacted model."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from prunus import RecipeError
from prunus.cli import app
from prunus.recipe import read_recipe
from prunus.training import budgeted, latency
from prunus.training.plan import plan_facts
from prunus.training.prepare import prepare
from prunus.training.run import run
from small import interrupt_at, small_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEDULE = {"kind": "linear", "start": 0, "end": 18, "every": 3}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


def with_budget(model: Path, data: Path, budget: dict[str, Any], **more: Any) -> dict[str, Any]:
    rules = [{"pattern": k, "criterion": "first_order", "schedule": SCHEDULE} for k in ("heads", "ffn")]
    return small_recipe(model, data, prune=rules, budget=budget, distill=None, **more) | {"dense": {"epochs": 1}}


def layers(directory: Path) -> int:
    held = load_file(directory / "model.safetensors")
    return sum(t.numel() for name, t in held.items() if ".encoder.layer." in name and "LayerNorm" not in name)


def test_half_of_the_parameters_are_left(small_data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    recipe = read_recipe(with_budget(tiny_bert, small_data, {"params": 0.5}))
    facts = run(recipe, tmp_path / "run")
    result = CliRunner().invoke(app, ["compact", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    share = layers(tmp_path / "run-compact") / layers(tmp_path / "run")
    assert share <= 0.5
    assert share == pytest.approx(facts["budget"]["predicted"])
    assert facts["recipe"]["prune"][0]["sparsity"] == facts["budget"]["sparsity"]


def test_the_plan_and_the_flags_say_it(small_data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    raw = with_budget(tiny_bert, small_data, {"params": 0.9})  # which the flag replaces
    (tmp_path / "r.yaml").write_text(json.dumps(raw))
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "r.yaml"), "--flops", "0.6"])
    assert result.exit_code == 0, result.output
    assert "budget   0.6 of the flops: 0." in result.output
    facts = plan_facts(prepare(read_recipe(raw | {"budget": {"flops": 0.6}})))
    assert facts["budget"]["predicted"] <= 0.6
    assert {rule["sparsity"] for rule in facts["rules"]} == {facts["budget"]["sparsity"]}


def test_latency_is_measured_here_and_a_run_that_goes_on_keeps_what_was_found(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def times(config: Any, head: Any, tokens: int, threads: int | None) -> Any:
        asked.append(tokens)
        return {"heads": {1: 6.0, 2: 10.0}, "ffn": {8: 7.0 - len(asked), 32: 10.0}}

    monkeypatch.setattr(budgeted, "layer_times", times)
    recipe = read_recipe(with_budget(tiny_bert, small_data, {"latency": 0.5, "tokens": 24}))
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run")
    held = json.loads((tmp_path / "run" / "prunus.json").read_text())["budget"]
    facts = run(recipe, tmp_path / "run", resume=True)
    assert asked == [24]
    assert facts["budget"] == held
    assert facts["budget"]["predicted"] <= 0.5
    assert facts["status"] == "finished"


def test_times_of_a_real_model_fall_with_what_is_left(tiny_bert: Path, small_data: Path) -> None:
    prepared = prepare(read_recipe(small_recipe(tiny_bert, small_data)))
    found = latency.layer_times(prepared.config, "classification", 16, 1)
    assert set(found["heads"]) == {1, 2}
    assert set(found["ffn"]) == {3, 8, 16, 24, 32}
    for table in found.values():
        seconds = [table[left] for left in sorted(table)]
        assert seconds == sorted(seconds)
        assert 1e-5 < seconds[0] < 1.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"budget": {"params": 0.5, "flops": 0.5}}, "budget must be one of params, flops and latency"),
        ({"budget": {"params": 50}}, r"budget\.params must be a share of the dense model"),
        (
            {"budget": {"params": 0.5}, "prune": {"pattern": "4x1", "sparsity": 0.5}},
            "budget must come with a rule of prune",
        ),
        (
            {"budget": {"params": 0.5}, "prune": [{"pattern": "ffn", "sparsity": 0.5}]},
            r"prune\[0\]\.sparsity must be left out where a budget says",
        ),
        ({"budget": {"parms": 0.5}}, r"budget\.parms must be a known key.*\s+try budget\.params"),
    ],
)
def test_mistakes_are_told(more: dict[str, Any], said: str, small_data: Path, tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(with_budget(tiny_bert, small_data, {}) | more)


def test_a_budget_out_of_reach_is_told_before_training(small_data: Path, tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match=r"budget\.params must leave room for what cannot go"):
        prepare(read_recipe(with_budget(tiny_bert, small_data, {"params": 0.01})))
