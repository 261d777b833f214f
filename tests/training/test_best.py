"""The best model counts only at full sparsity, and after a given step."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunus import CheckpointError
from prunus.errors import RecipeError
from prunus.recipe import read_recipe
from prunus.training import run as run_module
from prunus.training.best import KeepBest
from prunus.training.run import run
from prunus.training.trainer import PrunusTrainer
from small import small_recipe


@pytest.mark.parametrize(
    ("values", "finished_at", "after", "expected"),
    [
        ([0.9, 0.5, 0.6, 0.6, 0.4], 0, 0, 0),
        ([0.9, 0.5, 0.6, 0.6, 0.4], 1, 0, 2),
        ([0.9, 0.5, 0.6, 0.6, 0.4], 0, 3, 3),
        ([0.9, 0.5, 0.6, 0.6, 0.4], 9, 0, None),
    ],
)
def test_which_one_is_kept(
    values: list[float], finished_at: int, after: int, expected: int | None, tmp_path: Path
) -> None:
    model = nn.Linear(2, 2)
    best = KeepBest(tmp_path, "accuracy", after)
    masker = SimpleNamespace(finished=False)
    best.session = SimpleNamespace(masker=masker)  # type: ignore[assignment]
    for step, value in enumerate(values):
        masker.finished = step >= finished_at
        nn.init.constant_(model.weight, step)
        best.see(model, step, value)
    nn.init.constant_(model.weight, -1)
    assert best.restore(model) == (expected is not None)
    assert model.weight[0, 0].item() == (-1 if expected is None else expected)
    again = KeepBest(tmp_path, "accuracy", after)
    again.begin(best.state_dict(), 10)
    assert again.value == (None if expected is None else values[expected])
    if expected:
        again.begin(None, expected - 1)  # what was found later than where training goes on from did not happen
        assert again.value is None
        again.path.unlink()
        with pytest.raises(CheckpointError, match=f"must hold the best weights so far, of step {expected}, got 'none'"):
            again.begin(best.state_dict(), 10)


def test_best_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    best = KeepBest(tmp_path, "accuracy", 0)
    best.see(nn.Linear(2, 2), 1, 0.5)
    with pytest.raises(CheckpointError, match="must hold the weights of this model"):
        best.restore(nn.Linear(3, 2))


def test_a_run_ends_with_its_best_weights(
    tiny_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    recipe = read_recipe(small_recipe(tiny_bert, small_data))
    recipe = replace(
        recipe, train=replace(recipe.train, keep="best", evaluate_every=replace(recipe.train.log_every, value=3))
    )
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.1, 0.99, 0.2, 0.3, 0.4, 0.5, 0.8, 0.7, 0.6, 0.6, 0.6])

    def score(model: Any, *rest: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"accuracy": next(scores), "f1_macro": 0.0}

    monkeypatch.setattr(run_module, "score_model", score)
    facts = run(recipe, tmp_path / "out")
    assert (
        facts.best_step == 18
    )  # 24 steps, looks at 3, 6, ...; the first score is the dense model's; pruning ends at 18
    assert facts.sparse.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all(torch.equal(value, seen[6][name]) for name, value in seen[-1].items())


def test_best_needs_evaluations() -> None:
    with pytest.raises(RecipeError, match="come with evaluate_every"):
        read_recipe({"task": {"name": "classification", "train": "x.csv"}, "train": {"keep": "best"}})


def test_with_autocast_in_training_everything_is_scored_in_float32(
    tiny_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    raw = small_recipe(tiny_bert, small_data)
    raw["train"] |= {"precision": "bf16", "epochs": 1}
    raw["prune"]["schedule"]["end"] = 6
    seen: list[torch.dtype] = []
    score = run_module.score_model

    def watched(model: Any, *rest: Any) -> Any:
        hook = model.get_submodule("bert.encoder.layer.0.output.dense").register_forward_hook(
            lambda module, inputs, output: seen.append(output.dtype)
        )
        try:
            return score(model, *rest)
        finally:
            hook.remove()

    trained: list[torch.dtype] = []
    loss = PrunusTrainer.compute_loss

    def trained_in(self: Any, model: Any, *rest: Any, **more: Any) -> Any:
        hook = model.get_submodule("bert.encoder.layer.0.output.dense").register_forward_hook(
            lambda module, inputs, output: trained.append(output.dtype)
        )
        try:
            return loss(self, model, *rest, **more)
        finally:
            hook.remove()

    monkeypatch.setattr(run_module, "score_model", watched)
    monkeypatch.setattr(PrunusTrainer, "compute_loss", trained_in)
    recipe = read_recipe(raw)
    run(
        replace(recipe, train=replace(recipe.train, evaluate_every=replace(recipe.train.log_every, value=3))),
        tmp_path / "out",
    )
    assert len(seen) > 3
    assert set(seen) == {torch.float32}
    assert (
        len(trained) == 16
    )  # an epoch of the dense model, and one of the sparse model, which begins where that one ended
    assert set(trained) == {torch.bfloat16}
