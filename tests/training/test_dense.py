"""The dense model: a training that was stopped or killed goes on; one process trains it while others wait."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunus.checkpoint import locked as locked_module
from prunus.checkpoint.locked import locked
from prunus.errors import CheckpointError
from prunus.progress import Bars
from prunus.recipe import read_recipe
from prunus.report.facts_file import FACTS_FILE
from prunus.tasks.collate import Collate
from prunus.training import dense as dense_module
from prunus.training.callback import SessionCallback
from prunus.training.dense import DenseModel, dense_model
from prunus.training.fit import Interrupted, last_checkpoint
from prunus.training.inputs import input_digests
from prunus.training.prepare import prepare
from prunus.training.run_plan import RunPlan
from small import save_tiny_bert, small_recipe


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> RunPlan:
    """8 steps, a checkpoint after each second."""
    raw = small_recipe(save_tiny_bert(tmp_path_factory.mktemp("dense") / "bert"), small_data)
    return prepare(read_recipe(raw | {"dense": {"epochs": 1, "checkpoint_every": 2, "evaluate_every": None}}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dense"


def trained(plan: RunPlan, said: list[str] | None = None) -> DenseModel:
    with Bars(None) as bars:
        return dense_model(
            plan, input_digests(plan), Collate(plan.tokenizer), bars, (said if said is not None else []).append
        )


def at_step(step: int, then: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does something after an optimizer step."""
    whole = SessionCallback.on_optimizer_step

    def stopping(self: Any, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        whole(self, args, state, control, model, **kwargs)
        if state.global_step + 1 == step:
            then()

    monkeypatch.setattr(SessionCallback, "on_optimizer_step", stopping)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    (kept,) = (path for path in directory.iterdir() if not path.name.startswith("."))
    return load_file(kept / "model.safetensors")


class Killed(BaseException):
    """Stands for the end of a process: what is done about errors is not done about it."""


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_a_training_that_was_stopped_goes_on(
    how: str, plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        if how == "kill":
            raise Killed
        os.kill(os.getpid(), signal.SIGINT)

    steps: list[int] = []
    for name in ("whole", "halves"):
        monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / name))
        if name == "halves":
            with monkeypatch.context() as patch:
                at_step(5, end, patch)
                with pytest.raises(Interrupted if how == "signal" else Killed):
                    trained(plan)
            (place,) = (tmp_path / name / "dense").iterdir()
            assert place.suffix == ".partial"
            start = last_checkpoint(place / "checkpoints")
            assert start is not None
            assert start.name == ("checkpoint-5" if how == "signal" else "checkpoint-4")
            for step in (3, 6):
                at_step(step, partial(steps.append, step), monkeypatch)
        assert not trained(plan).cached
    assert steps == [6]  # and not the third again
    first, second = (weights(tmp_path / name / "dense") for name in ("whole", "halves"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [path.suffix for path in (tmp_path / "halves" / "dense").iterdir()] == [""]
    assert trained(plan).cached


def test_a_checkpoint_that_cannot_be_read_is_dropped_once(
    plan: RunPlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
        with pytest.raises(Interrupted):
            trained(plan)
    torch.save({}, next(cache.glob("*/checkpoints/checkpoint-5")) / "scheduler.pt")
    with pytest.raises(CheckpointError, match=r"must hold what was saved there, unchanged \(KeyError"):
        trained(plan)
    assert list(cache.iterdir()) == []
    assert not trained(plan).cached


def test_others_wait_for_the_one_that_trains(plan: RunPlan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_module, "_WAIT", 0.01)
    kept, said, found = cache / dense_module._digest(plan, input_digests(plan)), list[str](), list[DenseModel]()
    with locked(kept):
        thread = Thread(target=lambda: found.append(trained(plan, said)))
        thread.start()
        while not said:
            time.sleep(0.01)
        assert said == [f"dense model: waits for the process that trains it (process {os.getpid()} is at work on it)"]
        assert found == []
    thread.join()
    assert not found[0].cached


def test_without_locks_each_trains_in_a_place_of_its_own(
    plan: RunPlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(locked_module.fcntl, "flock", refuse)
    with monkeypatch.context() as patch:
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(KeyboardInterrupt) as caught:
            trained(plan)
    assert not isinstance(caught.value, Interrupted)  # there is nothing to go on with
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert not trained(plan).cached
    assert trained(plan).cached


def test_what_nobody_went_on_with_for_a_week_is_removed(plan: RunPlan, cache: Path) -> None:
    for name in ("old.partial", "old.12ab34cd.partial", "young.partial", "busy.partial"):
        (cache / name / "checkpoints" / "checkpoint-3").mkdir(parents=True)
        if not name.startswith("young"):
            for path in (cache / name, cache / name / "checkpoints", cache / name / "checkpoints" / "checkpoint-3"):
                os.utime(path, (0, time.time() - 8 * 24 * 3600))
    with locked(cache / "busy"):
        trained(plan)
    left = {path.name for path in cache.iterdir()}
    assert left == {dense_module._digest(plan, input_digests(plan)), "young.partial", "busy.partial"}
    assert (cache / dense_module._digest(plan, input_digests(plan)) / FACTS_FILE).is_file()
