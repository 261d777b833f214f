"""Budgets in recipes: what is left is what was asked for, counted in the compacted model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from prunus import RecipeError, TargetError
from prunus.cli import app
from prunus.errors import Problem
from prunus.models import latency
from prunus.recipe import read_recipe
from prunus.training import budgeted
from prunus.training.plan import plan_facts
from prunus.training.prepare import prepare
from prunus.training.run import run
from small import interrupt_at, small_recipe

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
    assert share == pytest.approx(facts.budget["predicted"])
    assert facts.recipe["prune"][0]["sparsity"] == facts.budget["sparsity"]


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

    def times(config: Any, head: Any, tokens: int, *_: Any) -> Any:
        asked.append(tokens)
        return {"heads": {1: 6.0, 2: 10.0}, "ffn": {8: 7.0 - len(asked), 32: 10.0}}

    monkeypatch.setattr(budgeted, "layer_times", times)
    monkeypatch.setattr(budgeted, "seconds_of", by_size)
    recipe = read_recipe(with_budget(tiny_bert, small_data, {"latency": 0.5, "tokens": 24}))
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run")
    held = json.loads((tmp_path / "run" / "prunus.json").read_text())["budget"]
    facts = run(recipe, tmp_path / "run", resume=True)
    assert asked == [24]
    result = facts.budget["result"]
    assert facts.budget == held | {"result": result}
    assert held["predicted"] <= 0.5
    assert 0.48 <= held["measured"] <= 0.5
    assert held["tried"][-1] == [held["sparsity"], held["measured"]]
    assert facts.status == "finished"
    left = result["seconds"] / result["dense_seconds"]
    compacted = CliRunner().invoke(app, ["compact", str(tmp_path / "run"), "--json"])
    assert compacted.exit_code == 0, compacted.output
    assert left == pytest.approx(layers(tmp_path / "run-compact") / layers(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "time of 24 tokens, compacted (ms)" in page
    assert not any(line.startswith("speed:") for line in facts.missing)


def test_a_result_that_cannot_be_compacted_is_there_all_the_same(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise TargetError(Problem("heads of layer 0", 0, "keep a head in each layer of a decoder"))

    monkeypatch.setattr(budgeted, "layer_times", lambda *_: {"heads": {1: 6.0, 2: 10.0}, "ffn": {8: 6.0, 32: 10.0}})
    monkeypatch.setattr(budgeted, "seconds_of", by_size)
    monkeypatch.setattr(budgeted, "compact", refused)
    facts = run(read_recipe(with_budget(tiny_bert, small_data, {"latency": 0.5})), tmp_path / "run")
    assert facts.status == "finished"
    assert "result" not in facts.budget
    assert any("could not be compacted and timed: heads of layer 0" in line for line in facts.warnings)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def by_size(models: list[Any], *_: Any) -> list[float]:
    """A machine on which a weight of a layer takes a second."""
    return [
        float(sum(t.numel() for n, t in model.state_dict().items() if ".layer." in n and "LayerNorm" not in n))
        for model in models
    ]


@pytest.mark.parametrize("first", [0.3, 0.5, 0.62, 0.9, 0.98])
@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        (lambda s: 1 - 0.8 * s, 2),  # a line is met at once
        (lambda s: 1 - 0.8 * s**2, 6),
        (lambda s: 1 - 0.8 * s**0.5, 6),
        (lambda s: 1 - 0.8 * round(s * 24) / 24, 3),
    ],
    ids=["line", "late", "early", "stairs"],
)
def test_what_the_table_says_is_measured_and_corrected(
    curve: Callable[[float], float], steps: int, first: float
) -> None:
    tried = budgeted._tried(curve, first, 0.5, 0.98)
    assert next(iter(tried)) == first
    assert len(tried) <= steps + 1
    assert 0.48 <= list(tried.values())[-1] <= 0.5
    assert all(curve(s) == value for s, value in tried.items())


def test_a_time_that_no_size_meets_is_refused_with_the_nearest_that_was_measured() -> None:
    with pytest.raises(RecipeError, match=r"0\.98 of the heads and neurons gone 0\.608 was measured.*\s+try 0\.62"):
        budgeted._tried(lambda s: 1 - 0.4 * s, 0.9, 0.5, 0.98)
    with pytest.raises(RecipeError, match="try a model with larger layers"):
        budgeted._tried(lambda _: 1.01, 0.9, 0.5, 0.98)


def test_a_machine_whose_times_mean_nothing_ends_the_search() -> None:
    noise = iter([0.9, 0.2, 1.3, 0.7, 0.3, 0.8])
    assert len(budgeted._tried(lambda _: next(noise), 0.5, 0.5, 0.98)) <= 6


def test_times_of_a_real_model_fall_with_what_is_left(tiny_bert: Path, small_data: Path) -> None:
    prepared = prepare(read_recipe(small_recipe(tiny_bert, small_data)))
    found = latency.layer_times(prepared.config, "classification", 16, 1)
    assert set(found["heads"]) == {1, 2}
    assert set(found["ffn"]) == {3, 8, 16, 24, 32}
    for table in found.values():
        seconds = [table[left] for left in sorted(table)]
        assert seconds == sorted(seconds)
        assert 1e-5 < seconds[0] < 1.0


def test_the_plan_says_what_was_measured(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"heads": {1: 8.0, 2: 10.0}, "ffn": {3: 5.0, 32: 10.0}}
    monkeypatch.setattr(budgeted, "layer_times", lambda *_: table)
    monkeypatch.setattr(budgeted, "seconds_of", by_size)
    (tmp_path / "r.yaml").write_text(json.dumps(with_budget(tiny_bert, small_data, {"params": 0.9})))
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "r.yaml"), "--latency", "0.7", "--json"])
    assert result.exit_code == 0, result.output
    own = json.loads(result.stdout)["budget"]
    said = CliRunner().invoke(app, ["plan", str(tmp_path / "r.yaml"), "--latency", "0.7"]).output
    assert own["measured"] <= 0.7  # a model of two heads comes in large steps
    assert f"{own['measured']:.4f} was measured (by the table of layers 0." in " ".join(said.split())


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
