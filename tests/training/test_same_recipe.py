"""A run goes on with its own recipe alone: every other key, data and weights included, is named before anything is trained."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import CheckpointError
from prunus.recipe import load_recipe as load
from prunus.recipe import read_recipe, shipped_recipes
from prunus.report.facts import FACTS_FILE, RunFacts, read_facts, write_facts
from prunus.training.inputs import input_digests
from prunus.training.prepare import prepare
from prunus.training.run import run
from prunus.training.run_facts import recipe_facts
from prunus.training.same_recipe import check_inputs, check_recipe
from small import TEXT_FILE, small_recipe, write_texts

RECIPE: dict[str, Any] = {
    "model": {"name": "bert"},
    "task": {"name": "classification", "train": "a.tsv", "validation": "b.tsv", "max_length": 32},
    "train": {"epochs": 3, "learning_rate": 1e-3},
    "prune": {"pattern": "4x1", "sparsity": 0.5},
    "distill": {"teacher": "dense", "weight": 1.0},
}


def changed(raw: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``raw`` with one dotted key set."""
    block, _, rest = key.partition(".")
    if not rest:
        return {**raw, key: value}
    return {**raw, block: changed(raw.get(block, {}), rest, value)}


def facts(raw: Mapping[str, Any]) -> RunFacts:
    """As they are read back from prunus.json."""
    written = RunFacts("1", status="running", recipe=recipe_facts(read_recipe(raw)))
    return RunFacts.of_json(json.loads(json.dumps(written.to_json())))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("train.seed", 1, "train.seed must be 42, .* got 1"),
        ("train.learning_rate", 1e-4, "train.learning_rate must be 0.001, .* got 0.0001"),
        ("train.epochs", 2, "train.epochs must be 3.0, .* got 2.0"),
        ("train.max_steps", 7, "train.max_steps must be None, .* got 7"),
        ("train.batch_size", 8, "train.batch_size must be 32, .* got 8"),
        ("train.lr_scheduler", "cosine", "train.lr_scheduler must be 'linear'"),
        ("train.evaluate_every", 5, "train.evaluate_every must be None"),
        ("train.trainer", {"neftune_noise_alpha": 5.0}, "train.trainer.neftune_noise_alpha must be None"),
        ("dense", {"epochs": 1}, "dense.* must be "),
        ("prune.sparsity", 0.6, r"prune\[0\].sparsity must be 0.5, .* got 0.6"),
        ("prune.criterion", "magnitude", r"prune\[0\].criterion must be 'snip_momentum'"),
        ("prune.schedule", {"end": "50%"}, r"prune\[0\].schedule.end must be None, .* got '50%'"),
        ("prune.targets", {"exclude": ["x"]}, r"prune\[0\].targets.exclude must be"),
        ("prune", [], r"prune.* must be "),
        ("distill", None, "distill.* must be"),
        ("distill.weight", 0.5, "distill.weight must be 1.0, .* got 0.5"),
        ("distill.others", [{"teacher": "start"}], "distill.others"),
        ("quantize", {}, "quantize"),
        ("model.name", "roberta", "model.name must be 'bert', .* got 'roberta'"),
        ("task.train", "c.tsv", "task.train must be 'a.tsv', .* got 'c.tsv'"),
        ("task.max_length", 64, "task.max_length must be 32, .* got 64"),
        ("budget", {"params": 0.5}, "budget must be none, .* got params: 0.5 for 128 tokens"),
    ],
)
@pytest.mark.parametrize("resolved", [False, True])
def test_each_key_that_differs_is_named(key: str, value: Any, shown: str, resolved: bool, tmp_path: Path) -> None:
    raw = changed(RECIPE, key, value)
    if key == "budget":
        raw["prune"] = [{"pattern": "ffn"}]
        resolved = False
    with pytest.raises(CheckpointError, match=shown) as caught:
        check_recipe(read_recipe(raw), facts(RECIPE), tmp_path, resolved)
    assert all("--overwrite" in problem.fix for problem in caught.value.problems)
    check_recipe(read_recipe(raw), facts(raw), tmp_path, resolved=key != "budget") if key != "budget" else None


def test_all_keys_come_at_once(tmp_path: Path) -> None:
    raw = changed(changed(RECIPE, "train.seed", 1), "prune.sparsity", 0.7)
    with pytest.raises(CheckpointError) as caught:
        check_recipe(read_recipe(raw), facts(RECIPE), tmp_path, resolved=True)
    assert [problem.key for problem in caught.value.problems] == ["train.seed", "prune[0].sparsity"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output", "elsewhere"),
        ("evaluate_dense", False),
        ("train.log_every", 1),
        ("train.threads", 3),
        ("train.checkpoint_every", 2),
        ("train.eval_batch_size", 2),
        ("train.report_to", ["tensorboard"]),
        ("train.trainer", {"dataloader_num_workers": 2}),
    ],
)
def test_what_changes_no_weights_may_differ(key: str, value: Any, tmp_path: Path) -> None:
    check_recipe(read_recipe(changed(RECIPE, key, value)), facts(RECIPE), tmp_path, resolved=True)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_itself(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    written = RunFacts("1", recipe=json.loads(json.dumps(recipe_facts(recipe))))
    if recipe.budget is None:
        check_recipe(recipe, written, tmp_path, resolved=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.checkpoint_every", None),
        ("train.trainer", {}),
        ("prune.targets", {"exclude": []}),
        ("dense", {"max_steps": None, "evaluate_every": None}),
        ("dense", {"checkpoint_every": None}),
    ],
)
def test_what_is_empty_on_purpose_is_written_down(key: str, value: Any, tmp_path: Path) -> None:
    raw = changed(changed(changed(RECIPE, "train.max_steps", 9), "train.evaluate_every", 3), key, value)
    recipe = read_recipe(raw)
    assert read_recipe(json.loads(json.dumps(recipe_facts(recipe)))) == recipe
    check_recipe(recipe, facts(raw), tmp_path, resolved=True)


def test_keys_that_an_older_run_did_not_write_have_their_defaults(tmp_path: Path) -> None:
    """And what it left out because it was empty may be empty."""
    old = facts(RECIPE)
    less = {block: dict(value) if isinstance(value, dict) else value for block, value in old.recipe.items()}
    for key in ("adam_beta1", "collapse", "checkpoint_every"):
        del less["train"][key]
    check_recipe(read_recipe(RECIPE), replace(old, recipe=less), tmp_path, resolved=True)
    never = read_recipe(changed(RECIPE, "train.checkpoint_every", None))
    check_recipe(never, replace(old, recipe=less), tmp_path, resolved=True)
    other = read_recipe(changed(RECIPE, "train.adam_beta1", 0.8))
    with pytest.raises(CheckpointError, match=r"train\.adam_beta1 must be 0\.9, .* got 0\.8"):
        check_recipe(other, replace(old, recipe=less), tmp_path, resolved=True)


@pytest.mark.parametrize("recipe", [{"train": {"no such key": 1}}, {"prune": [{"pattern": "none"}]}])
def test_a_recipe_that_cannot_be_read_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must hold a recipe that this prunus reads"):
        check_recipe(read_recipe(RECIPE), RunFacts("1", recipe=recipe), tmp_path, resolved=True)


def test_a_path_may_be_written_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tsv").touch()
    check_recipe(
        read_recipe(changed(RECIPE, "task.train", str(tmp_path / "a.tsv"))), facts(RECIPE), tmp_path, resolved=True
    )


def test_what_a_budget_came_to_is_the_runs_own(tmp_path: Path) -> None:
    raw = {**RECIPE, "prune": [{"pattern": "ffn", "criterion": "first_order"}], "budget": {"params": 0.5}}
    recipe = read_recipe(raw)
    spent = {"measure": "params", "share": 0.5, "tokens": 128, "sparsity": 0.53}
    ran = replace(recipe, budget=None, prune=(replace(recipe.prune[0], sparsity=0.53),))
    earlier = RunFacts("1", recipe=recipe_facts(ran), budget=spent)
    check_recipe(recipe, earlier, tmp_path, resolved=False)
    check_recipe(ran, earlier, tmp_path, resolved=True)
    for budget in ({"params": 0.4}, {"flops": 0.5}, {"params": 0.5, "tokens": 64}):
        with pytest.raises(CheckpointError, match=r"budget must be params: 0\.5 for 128 tokens"):
            check_recipe(read_recipe({**raw, "budget": budget}), earlier, tmp_path, resolved=False)


# A run


def test_a_run_with_another_recipe_or_other_data_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """Whether it is finished or not; and what was there stays."""
    write_texts(tmp_path / TEXT_FILE, 24)
    raw = small_recipe(tiny_bert, tmp_path, prune={"pattern": "4x1", "sparsity": 0.5, "criterion": "magnitude"})
    del raw["distill"], raw["dense"]
    raw["train"] |= {"epochs": 1, "evaluate_every": None}
    recipe, output = read_recipe(raw), tmp_path / "out"
    run(recipe, output)
    done = read_facts(output)
    assert done.inputs == input_digests(prepare(recipe))
    assert run(recipe, output, resume=True) == done
    other = replace(recipe, train=replace(recipe.train, seed=1))
    for status in ("finished", "running"):
        write_facts(output / FACTS_FILE, replace(done, status=status))
        before = (output / FACTS_FILE).read_bytes()
        with pytest.raises(CheckpointError, match=r"train\.seed must be 42, as in .*prunus\.json .* got 1"):
            run(other, output, resume=True)
        assert (output / FACTS_FILE).read_bytes() == before
    text = (tmp_path / TEXT_FILE).read_text()
    (tmp_path / TEXT_FILE).write_text(text.replace("good", "bad", 1))
    with pytest.raises(CheckpointError, match=r"task\.train must be what .*out began with, got other rows"):
        run(recipe, output, resume=True)
    (tmp_path / TEXT_FILE).write_text(text)
    inputs = done.inputs | {"model.name": "0"}
    with pytest.raises(CheckpointError, match=r"model\.name must be what .* got other weights"):
        check_inputs(done.inputs, replace(done, inputs=inputs), output)
    check_inputs(done.inputs, replace(done, inputs={}), output)  # an older prunus recorded none
