"""The Trainer's arguments of a recipe: which can be set, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from prunus.errors import RecipeError
from prunus.recipe import read_recipe
from prunus.recipe_blocks import TrainSpec
from prunus.training.arguments import _ELSEWHERE, _RECIPE_KEYS, argument_problems, training_arguments
from prunus.training.prepare import prepare
from prunus.training.run_plan import Length
from small import small_recipe


def test_further_arguments_reach_the_trainer(tmp_path: Path) -> None:
    own: dict[str, Any] = {"label_smoothing_factor": 0.1, "optim_args": "momentum=0.9", "logging_first_step": True}
    train = read_recipe({"train": {"optimizer": "sgd", "trainer": own}}).train
    assert argument_problems(train, "train") == []
    arguments = training_arguments(train, Length(4, 8), tmp_path, True)
    assert str(arguments.optim.value) == "sgd"
    assert {name: getattr(arguments, name) for name in own} == own
    plain = training_arguments(TrainSpec(), Length(4, 8), tmp_path, True)
    assert plain.optim == TrainingArguments(str(tmp_path), use_cpu=True).optim


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (
            {"learning_rate": 1e-3},
            "trainer.learning_rate must be left out: prunus sets it, got 0.001\n    try train.learning_rate",
        ),
        ({"optim": "sgd"}, "prunus sets it, got 'sgd'\n    try train.optimizer"),
        ({"gradient_checkpointing": True}, "prunus sets it, got True\n    try train.gradient_checkpointing"),
        ({"output_dir": "x"}, "prunus sets it, got 'x'\n    try --output"),
        ({"hub_token": "x"}, "try HF_TOKEN in the environment"),
        ({"label_smoothing": 0.1}, "must be an argument of TrainingArguments, got 0.1\n    try label_smoothing_factor"),
        ({"dataloader_num_workers": "two"}, "must be a whole number, got 'two'\n    try 0"),
        ({"dataloader_num_workers": True}, "must be a whole number, got True"),
        ({"logging_first_step": 1}, "must be true or false, got 1"),
        ({"label_smoothing_factor": "0.1"}, "must be a number, got '0.1'"),
        ({"debug": "everything"}, "be taken by TrainingArguments"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_key_that_can(trainer: dict[str, Any], words: str) -> None:
    problems = argument_problems(TrainSpec(trainer=trainer), "train")
    assert len(problems) == 1
    assert words in str(RecipeError(*problems))


def test_every_key_that_is_named_exists() -> None:
    names = set(TrainSpec.__dataclass_fields__)
    assert set(_RECIPE_KEYS.values()) <= names
    assert not set(_RECIPE_KEYS) & set(_ELSEWHERE)


def test_plan_tells_it_for_both_trainings(tiny_bert: Path, small_data: Path) -> None:
    raw = small_recipe(tiny_bert, small_data)
    raw["train"]["trainer"] = {"seed": 3}
    raw["dense"] = {"epochs": 1, "trainer": {"nothing_at_all": 3}}
    with pytest.raises(RecipeError) as caught:
        prepare(read_recipe(raw))
    assert {problem.key for problem in caught.value.problems} == {
        "train.trainer.seed",
        "dense.trainer.nothing_at_all",
    }
    with pytest.raises(RecipeError, match=r"train\.optimizer must be one of adamw_torch, .*, got 'sgdd'\n    try sgd"):
        read_recipe({"train": {"optimizer": "sgdd"}})
