"""``PruneCallback`` in a plain ``transformers.Trainer``: the order of hooks, the best model, checkpoints, resuming."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from prunus import CheckpointError, Masker, PruneCallback, Pruning, RecipeError, Schedule, Span, TrainingError
from prunus.training.callback import STATE_FILE
from small import (
    GRADUAL,
    arguments,
    block_zeros,
    encoder_linears,
    four_by_one,
    plain_trainer,
    rows,
    same,
    tiny_model,
    weights,
    without_dropout,
)


def calm(seed: int = 0) -> Any:
    model = without_dropout(tiny_model(seed=seed))
    for module in model.modules():
        if isinstance(module, nn.Linear):  # with initial weights, attention is uniform and its gradients are noise
            module.weight.data *= 10
    return model


def zeros(model: nn.Module) -> int:
    return sum(block_zeros(weight)[0] for weight in encoder_linears(model).values())


# Hooks

LATE = Schedule("one_shot", Span(3))


STOPPED = pytest.mark.filterwarnings("ignore:training ended at step")


def scores_after_one_step(tmp_path: Path, **more: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Scores |w g| that the callback saw at the first of several optimizer steps, and the gradient's norm."""
    model = calm()
    callback = PruneCallback(four_by_one(0.5, schedule=LATE, criterion="snip_momentum"))

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            args[2].should_training_stop = True

    trainer = plain_trainer(model, arguments(tmp_path, **more), rows(32), callbacks=[callback, Stop()])
    trainer.train()
    assert callback.masker is not None
    found = {key: value for key, value in callback.masker.state_dict().items() if key.startswith("score.")}
    return found, float(trainer.state.log_history[0]["grad_norm"])


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=["gradient checkpointing", "compiled"],
)
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_scores_are_those_of_the_plain_training(more: dict[str, Any], tmp_path: Path) -> None:
    plain, norm = scores_after_one_step(tmp_path)
    found, other = scores_after_one_step(tmp_path, **more)
    assert other == pytest.approx(norm, rel=1e-4)
    assert found.keys() == plain.keys()
    for name, score in plain.items():
        torch.testing.assert_close(found[name], score, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("fp16", [True, False])
def test_a_step_that_overflows_in_fp16_is_not_seen(fp16: bool, tmp_path: Path) -> None:
    model, args = calm(), arguments(tmp_path)
    callback = PruneCallback(four_by_one(0.5, schedule=LATE, criterion="snip_momentum"))
    state, control = TrainerState(max_steps=8), TrainerControl()
    callback.on_train_begin(args, state, control, model, train_dataloader=[1] * 8)
    args.fp16 = fp16
    assert callback.masker is not None
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if step == 1:
            for name, parameter in model.named_parameters():
                if ".encoder." in name:
                    parameter.grad.fill_(torch.inf)
        callback.on_pre_optimizer_step(args, state, control, model, optimizer=None)
        if step == 2 and not fp16:
            with pytest.raises(TrainingError, match="NaN or infinite scores"):
                callback.on_optimizer_step(args, state, control, model)
            return
        callback.on_optimizer_step(args, state, control, model)
    assert callback.masker.finished
    assert zeros(model) > 0


@STOPPED
def test_scores_see_the_accumulated_gradient(tmp_path: Path) -> None:
    whole, _ = scores_after_one_step(tmp_path, per_device_train_batch_size=4)
    halves, _ = scores_after_one_step(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    half, _ = scores_after_one_step(tmp_path, per_device_train_batch_size=2)
    assert whole.keys() == halves.keys()
    assert len(whole) == 12
    for name, score in whole.items():
        torch.testing.assert_close(halves[name], score, rtol=1e-3, atol=1e-8)
    assert any(not torch.allclose(half[name], score, rtol=1e-1) for name, score in whole.items())


@STOPPED
def test_scores_see_the_clipped_gradient(tmp_path: Path) -> None:
    free, norm = scores_after_one_step(tmp_path, max_grad_norm=1e9)
    clipped, _ = scores_after_one_step(tmp_path, max_grad_norm=0.01)
    assert norm > 0.1
    for name, score in free.items():
        torch.testing.assert_close(clipped[name], score * 0.01 / (norm + 1e-6), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("revive", [False, True])
def test_zeros_are_exact_after_each_step(revive: bool, tmp_path: Path) -> None:
    # Linear from 0 after step 1 to 0.5 after step 5, in units of 4 weights, over 4,096 weights.
    seen: list[int] = []

    class Count(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
            seen.append(zeros(model))

    callbacks = [PruneCallback(four_by_one(0.5, revive=revive)), Count()]
    plain_trainer(tiny_model(), arguments(tmp_path), rows(32), callbacks=callbacks).train()
    assert seen == [0, 512, 1024, 1536, 2048, 2048, 2048, 2048]


def test_a_second_training_forgets_a_pruned_model_unless_it_is_locked(tmp_path: Path) -> None:
    model = tiny_model()
    plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[PruneCallback(four_by_one())]).train()
    dense = tiny_model()
    dense.load_state_dict(model.state_dict())
    plain_trainer(dense, arguments(tmp_path), rows(32, seed=1)).train()
    assert zeros(dense) == 0
    callback = PruneCallback(masker=Masker.lock(model))
    plain_trainer(model, arguments(tmp_path), rows(32, seed=1), callbacks=[callback]).train()
    assert zeros(model) == sum(fact.zeros for fact in callback.facts) == 2048


def test_a_stream_needs_no_length(tmp_path: Path) -> None:
    class Stream(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield from rows(40)

    model = tiny_model()
    callback = PruneCallback(four_by_one(0.5, schedule=Schedule("linear", Span(10, "%"), end=Span(50, "%"))))
    plain_trainer(model, arguments(tmp_path), Stream(), callbacks=[callback]).train()
    assert zeros(model) == 2048


# The best model

Evaluate = dict[str, Any]
BEST: Evaluate = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "load_best_model_at_end": True,
    "metric_for_best_model": "falling",
    "greater_is_better": True,
}


def falling() -> Callable[[Any], dict[str, float]]:
    """Best at the first evaluation, and worse at each later one."""
    values = iter(range(100, 0, -1))
    return lambda _: {"falling": float(next(values))}


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize(
    ("every", "best"),
    [pytest.param(1, 5, id="the first at the final sparsity"), pytest.param(3, 6, id="the first after it")],
)
def test_the_best_model_is_never_a_denser_one(every: int, best: int, revive: bool, tmp_path: Path) -> None:
    model = tiny_model()
    more = BEST | {"eval_steps": every, "save_steps": every}
    callback = PruneCallback(four_by_one(revive=revive))
    trainer = plain_trainer(
        model,
        arguments(tmp_path, **more),
        rows(32),
        eval_dataset=rows(4),
        compute_metrics=falling(),
        callbacks=[callback],
    )
    trainer.train()
    assert trainer.state.best_global_step == best
    assert zeros(model) == sum(fact.zeros for fact in callback.facts) == 2048
    on_disk = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(on_disk[name], weight) for name, weight in encoder_linears(model).items())


# Checkpoints and resuming


def train(directory: Path, *, revive: bool = False, seed: int = 0, resume: bool | str = False, **more: Any) -> Any:
    """12 steps in epochs of 5, with checkpoints after each third; a new model and a new callback at each call."""
    model = tiny_model(seed=seed)
    schedule = Schedule("polynomial", Span(2), end=Span(9), every=Span(1))
    callback = PruneCallback(four_by_one(0.7, schedule=schedule, revive=revive), seed=3)
    args = arguments(directory, max_steps=12, save_strategy="steps", save_steps=more.pop("save_steps", 3), **more)
    trainer = plain_trainer(model, args, rows(20, seed=seed), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume or None)
    return model, callback


def keep_only(directory: Path, step: int) -> Path:
    for path in directory.glob("checkpoint-*"):
        if path.name != f"checkpoint-{step}":
            shutil.rmtree(path)
    return directory / f"checkpoint-{step}"


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_resumed_training_ends_bit_for_bit_as_an_uninterrupted_one(step: int, revive: bool, tmp_path: Path) -> None:
    whole, callback = train(tmp_path, revive=revive)
    keep_only(tmp_path, step)
    resumed, other = train(tmp_path, revive=revive, resume=True)
    assert same(weights(whole), weights(resumed))
    assert same(callback.masker.state_dict(), other.masker.state_dict())
    assert callback.facts == other.facts
    assert sum(fact.zeros for fact in other.facts) == 4 * int(0.7 * 1024)


def length(directory: Path, resume: str | None = None, pruning: Pruning | None = None, **more: Any) -> PruneCallback:
    """20 steps in epochs of 5 with a checkpoint after each second, masks updated from 10 to 80 per cent of them."""
    schedule = Schedule("polynomial", Span(10, "%"), end=Span(80, "%"), every=Span(1))
    callback = PruneCallback(pruning or four_by_one(0.6, schedule=schedule))
    given = {"max_steps": 20, "save_strategy": "steps", "save_steps": 2} | more
    model = tiny_model()
    trainer = plain_trainer(model, arguments(directory, **given), rows(20), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    assert sum(fact.zeros for fact in callback.facts) == zeros(model)
    return callback


@pytest.mark.parametrize("new", [{"max_steps": 12}, {"max_steps": 40}, {"max_steps": -1, "num_train_epochs": 6}])
@pytest.mark.parametrize("step", [4, 8])
def test_a_training_of_another_length_ends_at_the_target(new: dict[str, Any], step: int, tmp_path: Path) -> None:
    length(tmp_path)
    callback = length(tmp_path / "on", str(tmp_path / f"checkpoint-{step}"), **new)
    assert sum(fact.zeros for fact in callback.facts) == 4 * int(0.6 * 1024)


@pytest.mark.parametrize(
    ("step", "steps"), [(8, 6), (8, 8), (12, 14)], ids=["fewer than done", "as many as done", "a schedule that is over"]
)
def test_a_training_that_cannot_reach_its_target_any_more_is_refused(step: int, steps: int, tmp_path: Path) -> None:
    length(tmp_path)
    with pytest.raises(CheckpointError, match=rf"schedule must update masks after step {step}, .* of 0\.6"):
        length(tmp_path / "on", str(tmp_path / f"checkpoint-{step}"), max_steps=steps)


@pytest.mark.parametrize("steps", [10, 18, 20, 30])
def test_masks_that_are_whole_stay_whatever_the_length(steps: int, tmp_path: Path) -> None:
    length(tmp_path)
    callback = length(tmp_path / "on", str(tmp_path / "checkpoint-18"), max_steps=steps)
    assert sum(fact.zeros for fact in callback.facts) == 4 * int(0.6 * 1024)


@pytest.mark.parametrize("step", [8, 20])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_another_sparsity_is_refused(step: int, sparsity: float, tmp_path: Path) -> None:
    first = length(tmp_path)
    pruning = replace(first.prunings[0], sparsity=sparsity)
    with pytest.raises(CheckpointError, match=rf"prune\[0\]\.sparsity must be 0\.6, .* got {sparsity}"):
        length(tmp_path / "on", str(tmp_path / f"checkpoint-{step}"), pruning)


def test_a_state_of_another_step_is_refused(tmp_path: Path) -> None:
    length(tmp_path)
    shutil.copy(tmp_path / "checkpoint-2" / STATE_FILE, tmp_path / "checkpoint-4" / STATE_FILE)
    with pytest.raises(CheckpointError, match="must be after the 4 steps of the checkpoint that holds it"):
        length(tmp_path / "on", str(tmp_path / "checkpoint-4"))


def test_without_its_state_a_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    (keep_only(tmp_path, 6) / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match="must be in the checkpoint that training resumes from"):
        train(tmp_path, resume=True)


def test_masks_of_other_weights_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "one")
    train(tmp_path / "two", seed=1)
    checkpoint = keep_only(tmp_path / "one", 6)
    shutil.copy(tmp_path / "two" / "checkpoint-6" / STATE_FILE, checkpoint / STATE_FILE)
    with pytest.raises(CheckpointError, match="must belong to the weights that training resumes from"):
        train(tmp_path / "one", resume=True)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    path = keep_only(tmp_path, 6) / STATE_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        train(tmp_path, resume=True)


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    path = keep_only(tmp_path, 6) / STATE_FILE
    held = load_file(path)
    name = next(name for name in held if name.startswith("masker.mask."))
    save_file(held | {name: held[name][:8].clone()}, path)
    with pytest.raises(CheckpointError, match="must have the shape"):
        train(tmp_path, resume=True)


def test_a_second_training_replaces_the_state_of_the_first(tmp_path: Path) -> None:
    train(tmp_path, save_steps=6)
    first = load_file(tmp_path / "checkpoint-6" / STATE_FILE)
    train(tmp_path, seed=1, save_steps=6)
    second = load_file(tmp_path / "checkpoint-6" / STATE_FILE)
    model = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    masks = {
        name.removeprefix("masker.mask."): mask for name, mask in second.items() if name.startswith("masker.mask.")
    }
    assert not same(first, second)
    assert len(masks) == 12
    assert all(not model[name][~mask.bool()].any() for name, mask in masks.items())


# What is refused


@pytest.mark.parametrize(
    ("pruning", "said"),
    [
        (Pruning(0.8, "2:4"), r"prune\[0\]\.sparsity must be at most 0\.5"),
        (Pruning(0.5, "4x1", schedule=Schedule("linear", Span(1), end=Span(9))), r"end must be at or before the last"),
        (Pruning(0.5, "5x1", schedule=GRADUAL), r"pattern must divide at least one"),
        (Pruning(0.5, "4x1", "snip", Schedule("one_shot", Span(0))), r"start must be at least 1 with criterion snip"),
    ],
)
def test_rules_that_cannot_run_stop_a_trainer_before_its_first_step(
    pruning: Pruning, said: str, tmp_path: Path
) -> None:
    model = tiny_model()
    before = weights(model)
    trainer = plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[PruneCallback(pruning)])
    with pytest.raises(RecipeError, match=said):
        trainer.train()
    assert trainer.state.global_step == 0
    assert same(before, weights(model))


def test_a_frozen_target_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    name = next(iter(encoder_linears(model)))
    model.get_parameter(name).requires_grad_(False)
    with pytest.raises(
        RecipeError, match=rf"see gradients of all the weights .* 1 of 12 tensors are frozen \({name}\)"
    ):
        plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[PruneCallback(four_by_one())]).train()


@pytest.mark.parametrize("moved", ["copied", "renamed", "in place"])
@pytest.mark.parametrize("revive", [False, True])
def test_the_state_comes_from_the_checkpoint_that_was_named(moved: str, revive: bool, tmp_path: Path) -> None:
    """Also where the directory of this training holds another checkpoint of that step."""
    whole, _ = train(tmp_path / "whole", revive=revive)
    place, directory = tmp_path / "whole" / "checkpoint-6", tmp_path / "whole"
    if moved != "in place":
        directory = tmp_path / "other"
        train(directory, revive=revive, seed=3)  # leaves a checkpoint-6 of its own
        named = directory / ("checkpoint-6-best" if moved == "renamed" else "elsewhere/checkpoint-6")
        place = Path(shutil.copytree(place, named))
        shutil.rmtree(tmp_path / "whole")
    resumed, _ = train(directory, revive=revive, resume=str(place))
    assert same(weights(whole), weights(resumed))


def test_a_training_that_stops_before_its_masks_are_whole_says_so(tmp_path: Path) -> None:
    late = Schedule("linear", Span(1), end=Span(30), every=Span(1))
    args = {
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "learning_rate": 1.0,
    }
    callback = PruneCallback(four_by_one(schedule=late))
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = plain_trainer(
        tiny_model(), arguments(tmp_path, **args), rows(32), callbacks=[callback, stop], eval_dataset=rows(8)
    )
    with pytest.warns(
        UserWarning, match=r"before the last mask update at step 30: the sparsity is 0\.\d+, and 0\.5000"
    ):
        trainer.train()
    assert trainer.state.global_step < 30
    assert 0 < sum(fact.zeros for fact in callback.facts) < 2048


def test_a_training_that_stops_after_its_masks_are_whole_is_counted(tmp_path: Path) -> None:
    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    callback = PruneCallback(four_by_one())
    plain_trainer(tiny_model(), arguments(tmp_path), rows(32), callbacks=[callback, Stop()]).train()
    assert sum(fact.zeros for fact in callback.facts) == 2048


def test_nan_in_weights_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    name = next(iter(encoder_linears(model)))
    model.get_parameter(name).data[0, 0] = float("nan")
    callback = PruneCallback(four_by_one(criterion="magnitude"))
    with pytest.raises(TrainingError, match=f"{name} must have finite weights and gradients"):
        plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[callback]).train()
