"""Checks of a plan: functions of its parts, which return problems and change nothing."""

import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch

from prunus.recipe import read_recipe
from prunus.recipe_blocks import TrainSpec
from prunus.training import plan_checks
from prunus.training.plan_checks import plan_problems, teaching_problems, training_problems
from prunus.training.prepare import prepare
from prunus.training.run_plan import Length, length_of
from small import small_recipe


@pytest.mark.parametrize(
    ("rows", "train", "expected"),
    [
        (100, TrainSpec(batch_size=10, epochs=2), Length(10, 20)),
        (101, TrainSpec(batch_size=10, epochs=2, gradient_accumulation_steps=4), Length(3, 6)),
        (5, TrainSpec(batch_size=10, epochs=0.5), Length(1, 1)),
        (100, TrainSpec(batch_size=10, max_steps=7), Length(10, 7)),
    ],
)
def test_lengths_are_the_optimizer_steps_of_the_trainer(rows: int, train: TrainSpec, expected: Length) -> None:
    assert length_of(rows, train) == expected


def test_each_training_is_checked_under_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_checks, "process_count", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    trainings = {"train": TrainSpec(batch_size=9), "dense": TrainSpec(batch_size=10, precision="fp16")}
    keys = [problem.key for problem in training_problems(trainings, None)]
    assert keys == ["dense.batch_size", "dense.precision"]


def test_a_plan_is_frozen_and_its_checks_are_pure(tiny_bert: Path, small_data: Path) -> None:
    recipe = read_recipe(small_recipe(tiny_bert, small_data))
    plan = prepare(recipe)
    assert plan_problems(plan) == plan_problems(plan) == []
    assert teaching_problems(plan.recipe.distill, plan.task.head) == []
    with pytest.raises(FrozenInstanceError):
        plan.source = "another"  # type: ignore[misc]
    train = replace(plan.recipe.train, steps_per_epoch=5, freeze=("nowhere", "query", "["))
    problems = plan_problems(replace(plan, recipe=replace(plan.recipe, train=train)))
    assert [problem.key for problem in problems] == [
        "train.steps_per_epoch",
        "train.freeze[0]",
        "train.freeze[1]",
        "train.freeze[2]",
    ]
    assert re.search("leave .*query.* trainable, whose gradient criterion", problems[2].rule)
    assert plan.parameters == sum(p.numel() for p in plan.skeleton.parameters())
