"""A metric that collapses is told, or ends the training; what came before is kept."""

from pathlib import Path

import pytest

from prunus import RecipeError, TrainingError
from prunus.recipe import read_recipe
from prunus.training import run as run_module
from prunus.training.collapse_monitor import CollapseMonitor
from prunus.training.prepare import prepare
from prunus.training.run import run
from small import small_recipe


class State:
    """What of a Trainer's state is looked at."""

    def __init__(self, step: int) -> None:
        self.global_step = step


class Arguments:
    def __init__(self, place: Path) -> None:
        self.output_dir = str(place)


def seen(monitor: CollapseMonitor, place: Path, values: list[float]) -> None:
    for i, value in enumerate(values, 1):
        monitor.on_evaluate(Arguments(place), State(10 * i), None, {"eval_accuracy": value, "eval_loss": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.5, 0.6, 0.7], []),
        ([0.8, 0.41, 0.5], []),
        ([0.8, 0.39], [(0.8, 10, 0.39, 20)]),
        ([0.8, 0.39, 0.38, 0.9, 0.2], [(0.8, 10, 0.39, 20), (0.9, 40, 0.2, 50)]),
        ([0.1, 0.9, 0.44], [(0.9, 20, 0.44, 30)]),
    ],
)
def test_a_fall_below_half_of_the_best_is_told_once(
    values: list[float], found: list[tuple[float, int, float, int]], tmp_path: Path
) -> None:
    monitor = CollapseMonitor("accuracy", 0.5, "warn", None)
    seen(monitor, tmp_path, values)
    expected = [f"accuracy fell from {a:.4f} at step {i} to {b:.4f} at step {j}" for a, i, b, j in found]
    assert monitor.warnings == expected
    off = CollapseMonitor("accuracy", 0.5, "off", None)
    seen(off, tmp_path, values)
    assert off.warnings == []


def test_it_stops_and_names_the_checkpoint_from_before(tmp_path: Path) -> None:
    for name in ("checkpoint-8", "checkpoint-10", "checkpoint-20", "checkpoint-x"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        TrainingError, match=r"to 0\.1000 at step 20; checkpoint-10 is from before: accuracy must keep at least 50%"
    ):
        seen(CollapseMonitor("accuracy", 0.5, "stop", None), tmp_path, [0.8, 0.1])


def test_a_run_says_it_in_its_facts_or_stops(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    values = iter([0.9, 0.8, 0.3, 0.3, 0.9, 0.8, 0.3])  # after 8, 16 and 24 steps, and at the end
    monkeypatch.setattr(run_module, "score_model", lambda *args: {"accuracy": next(values), "f1": 0.5})
    raw = small_recipe(tiny_bert, small_data, distill=None, evaluate_dense=False) | {"dense": {"epochs": 1}}
    train = raw["train"] | {"evaluate_every": 8, "checkpoint_every": 8}
    facts = run(read_recipe(raw | {"train": train}), tmp_path / "run")
    said = (
        "accuracy fell from 0.9000 at step 8 to 0.3000 at step 24, after the mask update at step 18, at sparsity 0.5000"
    )
    assert facts.warnings == (said,)
    assert said in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(TrainingError, match=r"fell from .*; checkpoint-8 is from before"):
        run(read_recipe(raw | {"train": train | {"on_collapse": "stop"}}), tmp_path / "stop")
    assert (tmp_path / "stop" / "checkpoints" / "checkpoint-8").is_dir()


def test_reporters_that_are_not_installed_are_told(small_data: Path, tiny_bert: Path) -> None:
    raw = small_recipe(tiny_bert, small_data)
    with pytest.raises(
        RecipeError, match=r"train\.report_to must be installed, got 'comet_ml'\s+try pip install comet_ml"
    ):
        prepare(read_recipe(raw | {"train": raw["train"] | {"report_to": ["comet_ml"]}}))
    with pytest.raises(RecipeError, match=r"train\.report_to\[0\] must be one of tensorboard, wandb"):
        read_recipe(raw | {"train": raw["train"] | {"report_to": ["tensorbord"]}})
