"""Recipes: read strictly, all mistakes at once, nothing but ``RecipeError`` whatever the mapping holds."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunus import Allocation, Pruning, RecipeError, Schedule, Span
from prunus.recipe import SHIPPED, DistillSpec, load_recipe, read_recipe, shipped_recipes
from prunus.recipe_blocks import TrainSpec
from prunus.training.run_facts import recipe_facts
from prunus.yaml_text import parse_yaml


def problems(raw: Any) -> list[tuple[str, str]]:
    """(key, fix) of each problem."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(raw)
    return [(problem.key, problem.fix) for problem in caught.value.problems]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# What a recipe says

FULL = """
model: {name: somewhere, start: pretrained}
task: {name: sst2, data: glue}
train: {epochs: 2, batch_size: 8, learning_rate: 5e-5, warmup: 10%, log_every: 7, checkpoint_every: 2 epochs, freeze: embed}
dense: {epochs: 4}
prune:
  - pattern: 2:4
    targets: {include: [attention]}
    schedule: {kind: linear, start: 100, end: 90%, every: 3 steps}
  - sparsity: 0.75
    pattern: 4x1
    targets: {include: [intermediate], exclude: []}
    allocation: {scope: tensor, per_tensor: {"layer.0": 0.5}}
distill: {teacher: dense, weight: 4.5, hard_weight: 0}
"""


def test_a_full_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, FULL))
    assert recipe.model.start == "pretrained"
    assert recipe.train.learning_rate == 0.00005
    assert recipe.train.warmup == Span(10, "%")
    assert recipe.train.checkpoint_every == Span(2, "epochs")
    assert recipe.train.log_every == Span(7)
    assert recipe.train.freeze == ("embed",)
    first, second = recipe.prune
    assert (first.pattern, first.sparsity, first.final_sparsity()) == ("2:4", None, 0.5)
    assert first.schedule == Schedule("linear", Span(100), Span(90, "%"), Span(3))
    assert first.targets.include == ("attention",)
    assert first.targets.exclude is None
    assert second.targets.exclude == ()
    assert second.allocation == Allocation("tensor", per_tensor={"layer.0": 0.5})
    assert recipe.distill == DistillSpec(4.5, 0.0, 2.0, teacher="dense")
    assert recipe.needs_dense


def test_what_ran_is_read_back_as_it_was(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, FULL))
    assert recipe_facts(recipe)["prune"][0]["schedule"]["end"] == "90%"
    again = read_recipe(recipe_facts(recipe))
    assert recipe_facts(again) == recipe_facts(recipe)
    assert again.train == recipe.train
    assert again.dense == recipe.dense


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, ()),
        ({"prune": []}, ()),
        ({"prune": {"sparsity": 0.5}}, (Pruning(0.5),)),
        ({"prune": [{"sparsity": 0.5}]}, (Pruning(0.5),)),
        (
            {"prune": [{"sparsity": 0.5}, {"sparsity": 0.25, "pattern": "rows"}]},
            (Pruning(0.5), Pruning(0.25, "rows")),
        ),
    ],
)
def test_prune_is_a_mapping_or_a_list(raw: dict[str, Any], expected: tuple[Pruning, ...]) -> None:
    assert read_recipe(raw).prune == expected


@pytest.mark.parametrize(
    ("raw", "dense"),
    [
        ({"train": {"epochs": 2}}, TrainSpec(epochs=2)),
        ({"train": {"epochs": 2, "batch_size": 8}, "dense": {"epochs": 5}}, TrainSpec(epochs=5, batch_size=8)),
        ({"train": {"seed": 3}, "dense": {}}, TrainSpec(seed=3)),
        ({"dense": {"epochs": 5}}, TrainSpec(epochs=5)),
    ],
)
def test_dense_inherits_what_it_does_not_say(raw: dict[str, Any], dense: TrainSpec) -> None:
    assert read_recipe(raw).dense_training == dense


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("1:30", "1:30"),
        ("5e-5", 5e-5),
        ("5.0e-5", 5e-5),
        ("1e3", 1000.0),
        ("012", 12),
        ("089", 89),
        ("-3", -3),
        ("+3", 3),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2024-13-45", "2024-13-45"),
        ("2024-01-02", "2024-01-02"),
        (".5", 0.5),
        ("4x1", "4x1"),
        ("10%", "10%"),
        ("2 epochs", "2 epochs"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2:4]", [1, "2:4"]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse_yaml(text, "text")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("way", ["file", "set", "flag"])
def test_two_of_four_is_text(way: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"prune: {{pattern: {'2:4' if way == 'file' else '4x1'}}}")
    setting = ["prune.pattern=2:4"] if way == "set" else []
    recipe = load_recipe(path, setting, {"prune.pattern": "2:4"} if way == "flag" else None)
    assert recipe.prune[0].pattern == "2:4"


# Settings and flags

ONE, LIST = "prune: {sparsity: 0.1}", "prune: [{sparsity: 0.1}]"
TWO = "prune: [{sparsity: 0.1}, {sparsity: 0.2}]"


@pytest.mark.parametrize(
    ("text", "settings_", "expected"),
    [
        (ONE, ["prune.sparsity=0.5"], [0.5]),
        (ONE, ["prune[0].sparsity=0.5"], [0.5]),
        (ONE, ["prune.0.sparsity=0.5"], [0.5]),
        (LIST, ["prune.sparsity=0.5"], [0.5]),
        (LIST, ["prune[0].sparsity=0.5"], [0.5]),
        (LIST, ["prune.0.sparsity=0.5"], [0.5]),
        (TWO, ["prune[1].sparsity=0.5"], [0.1, 0.5]),
        (TWO, ["prune.0.sparsity=0.5", "prune.1.sparsity=0.6"], [0.5, 0.6]),
        (ONE, ["prune.sparsity=0.5", "prune.sparsity=0.6"], [0.6]),
        (ONE, ["prune[0]={sparsity: 0.5}"], [0.5]),
        (TWO, ["prune[1]={sparsity: 0.5}"], [0.1, 0.5]),
        (TWO, ["prune={sparsity: 0.5}"], [0.5]),
        (ONE, ["prune=[{sparsity: 0.5}, {sparsity: 0.6}]"], [0.5, 0.6]),
        ("", ["prune.sparsity=0.5"], [0.5]),
        ("", ["prune[0].sparsity=0.5"], [0.5]),
        ("prune: 3", ["prune.sparsity=0.5"], [0.5]),
        ("prune: [3]", ["prune[0].sparsity=0.5"], [0.5]),
    ],
)
def test_forms_of_set(text: str, settings_: list[str], expected: list[float], tmp_path: Path) -> None:
    assert [rule.sparsity for rule in load_recipe(written(tmp_path, text), settings_).prune] == expected


@pytest.mark.parametrize(
    ("text", "settings_", "said"),
    [
        (TWO, ["prune.sparsity=0.5"], "prune.sparsity must name one of the 2 entries of prune by its number"),
        (
            TWO,
            ["prune.schedule.every=5"],
            r"--set prune\[0\].schedule.every=... or --set prune\[1\].schedule.every=...",
        ),
        (TWO, ["prune[2].sparsity=0.5"], "--set must name one of the 2 entries"),
        (ONE, ["prune.sparsity"], "--set must be key=value, got 'prune.sparsity'"),
        (ONE, ["prune.sparsity=[0.5"], "--set prune.sparsity, line 1 must be valid YAML"),
        (ONE, ["prune.sparsty=0.5"], r"prune\[0\].sparsty must be a known key[^\n]*\n\s+try prune\[0\].sparsity"),
        (ONE, ["0=3"], "recipe must be a mapping|must be a known key|mapping"),
        (ONE, ["=3"], "must be a known key"),
        (ONE, ["train.epochs.x=3"], "train.epochs must be a number"),
        ("prune: [3]", ["prune.sparsity=0.5"], "prune.sparsity must name one of the 1 entries"),
    ],
)
def test_settings_that_cannot_be(text: str, settings_: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(written(tmp_path, text), settings_)


def test_flags_over_settings_over_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {epochs: 1, batch_size: 1, seed: 1}")
    train = load_recipe(
        path, ["train.epochs=2", "train.batch_size=2"], {"train.epochs": 3.0, "model.name": "here"}
    ).train
    assert (train.epochs, train.batch_size, train.seed) == (3.0, 2, 1)


def test_a_flag_that_fits_no_single_rule_joins_the_other_problems(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, TWO + "\ntrian: {}"), ["x"], {"prune.sparsity": 0.5})
    assert [problem.key for problem in caught.value.problems] == ["--set", "prune.sparsity", "trian"]


# Mistakes


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"trian": {}}, [("trian", "train")]),
        ({"train": {"epoch": 3}}, [("train.epoch", "train.epochs")]),
        ({"train": {"sparsity": 0.8}}, [("train.sparsity", "prune.sparsity")]),
        ({"train": {"temperature": 2}}, [("train.temperature", "distill.temperature")]),
        (
            {"prune": {"max_per_tensor": 0.9, "sparsity": 0.5}},
            [("prune[0].max_per_tensor", "prune.allocation.max_per_tensor")],
        ),
        ({"prune": {"learning_rate": 1e-4, "sparsity": 0.5}}, [("prune[0].learning_rate", "train.learning_rate")]),
        ({"sparsity": 0.8}, [("sparsity", "prune.sparsity")]),
        ({"teacher": "x"}, [("teacher", "distill.teacher")]),
        (
            {"prune": {"sparsity": 0.5, "schedule": {"kid": "linear"}}},
            [("prune[0].schedule.kid", "prune[0].schedule.kind")],
        ),
        ({1: 2, None: 3}, [("1", None), ("None", None)]),
    ],
)
def test_unknown_keys_name_the_nearest(raw: dict[Any, Any], expected: list[tuple[str, str | None]]) -> None:
    found = problems(raw)
    assert [key for key, _ in found] == [key for key, _ in expected]
    for (_, fix), (_, wanted) in zip(found, expected, strict=True):
        assert wanted is None or fix == wanted


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"train": {"epochs": "three"}}, "train.epochs", "be a number"),
    ({"train": {"epochs": True}}, "train.epochs", "be a number"),
    ({"train": {"epochs": None}}, "train.epochs", "be a number"),
    ({"train": {"epochs": float("nan")}}, "train.epochs", "be a finite number"),
    ({"train": {"epochs": float("inf")}}, "train.epochs", "be a finite number"),
    ({"train": {"learning_rate": 10**400}}, "train.learning_rate", "be a finite number"),
    ({"train": {"batch_size": 1.5}}, "train.batch_size", "be a whole number"),
    ({"train": {"batch_size": False}}, "train.batch_size", "be a whole number"),
    ({"train": {"group_by_length": 1}}, "train.group_by_length", "be true or false"),
    ({"train": {"precision": "fp8"}}, "train.precision", "be one of fp32, bf16, fp16, auto"),
    ({"train": {"warmup": 0.1}}, "train.warmup", "be a number of steps, or text such as '2 epochs' or '10%'"),
    ({"train": {"warmup": -1}}, "train.warmup", "be a number of steps"),
    ({"train": {"warmup": "10 percent"}}, "train.warmup", "be a number of steps"),
    ({"train": {"warmup": 10**400}}, "train.warmup", "be at most 1e+12"),
    ({"train": {"warmup": "9" * 400 + "%"}}, "train.warmup", "be at most 1e+12"),
    ({"train": {"freeze": [1, {}]}}, "train.freeze[1]", "be text"),
    ({"train": []}, "train", "be a mapping of keys"),
    ({"train": None}, "train", "be a mapping of keys"),
    ({"model": "minilm"}, "model", "be a mapping of keys"),
    ({"model": {"name": ["a"]}}, "model.name", "be text"),
    ({"model": {"start": "cold"}}, "model.start", "be one of auto, dense, pretrained"),
    ({"task": {"columns": ["a"]}}, "task.columns", "be a mapping of names to values"),
    ({"prune": "4x1"}, "prune[0]", "be a mapping of keys"),
    ({"prune": {"sparsity": "80%"}}, "prune[0].sparsity", "be a number"),
    ({"prune": {"sparsity": 0.5, "pattern": 4.1}}, "prune[0].pattern", "be text"),
    (
        {"prune": {"sparsity": 0.5, "allocation": {"per_tensor": {"a": "b"}}}},
        "prune[0].allocation.per_tensor.a",
        "be a number",
    ),
    ({"evaluate_dense": "no"}, "evaluate_dense", "be true or false"),
    # out of range
    ({"train": {"epochs": 0}}, "train.epochs", "be above 0"),
    ({"train": {"learning_rate": -1e-5}}, "train.learning_rate", "be above 0"),
    ({"train": {"batch_size": 0}}, "train.batch_size", "be above 0"),
    ({"train": {"eval_batch_size": -3}}, "train.eval_batch_size", "be above 0"),
    ({"train": {"gradient_accumulation_steps": 0}}, "train.gradient_accumulation_steps", "be above 0"),
    ({"train": {"max_steps": 0}}, "train.max_steps", "be at least 1"),
    ({"train": {"weight_decay": -0.1}}, "train.weight_decay", "be 0 or above"),
    ({"train": {"adam_beta1": 1.0}}, "train.adam_beta1", "be in [0, 1)"),
    ({"train": {"adam_beta2": -0.1}}, "train.adam_beta2", "be in [0, 1)"),
    ({"train": {"max_grad_norm": -1}}, "train.max_grad_norm", "be 0 (no clipping) or above"),
    ({"train": {"threads": 0}}, "train.threads", "be at least 1"),
    ({"train": {"seed": -1}}, "train.seed", "be in [0, 2**32)"),
    ({"train": {"seed": 2**32}}, "train.seed", "be in [0, 2**32)"),
    ({"dense": {"epochs": 0}}, "dense.epochs", "be above 0"),
    ({"prune": {"sparsity": 80}}, "prune[0].sparsity", "be a fraction in [0, 1)"),
    ({"prune": {"sparsity": 1.0}}, "prune[0].sparsity", "be a fraction in [0, 1)"),
    (
        {"prune": {"sparsity": 0.8, "pattern": "2:4"}},
        "prune[0].sparsity",
        "be at most 0.5, which is all that pattern 2:4 can give",
    ),
    ({"prune": {"pattern": "4x1"}}, "prune[0].sparsity", "be given for pattern 4x1"),
    ({"prune": {"pattern": "4:2"}}, "prune[0].pattern", "keep N of M with 0 < N < M"),
    (
        {"prune": {"sparsity": 0.5, "pattern": "4×1"}},
        "prune[0].pattern",
        "be unstructured, rows, columns, heads, ffn, a block",
    ),
    ({"prune": {"sparsity": 0.5, "criterion": "snipp"}}, "prune[0].criterion", "be one of "),
    ({"prune": {"sparsity": 0.5, "reduce": "median"}}, "prune[0].reduce", "be one of mean, sum, max"),
    ({"prune": {"sparsity": 0.5, "schedule": {"kind": "cubic"}}}, "prune[0].schedule.kind", "be one of one_shot"),
    (
        {"prune": {"sparsity": 0.5, "schedule": {"end": 9, "cooldown": 9}}},
        "prune[0].schedule.end",
        "not be given together",
    ),
    (
        {"prune": {"sparsity": 0.9, "allocation": {"max_per_tensor": 0.8}}},
        "prune[0].allocation.max_per_tensor",
        "be at least",
    ),
    ({"distill": {"temperature": 0}}, "distill.temperature", "be above 0"),
    ({"distill": {"weight": 0, "hard_weight": 0}}, "distill.weight", "not be 0 together with hard_weight"),
]


@pytest.mark.parametrize(("raw", "key", "rule"), WRONG, ids=[f"{key}-{i}" for i, (_, key, _) in enumerate(WRONG)])
def test_wrong_types_and_ranges(raw: dict[str, Any], key: str, rule: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(raw)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert problem.rule.startswith(rule)
    assert str(problem).startswith(f"{key} must {rule}"[:200])


def test_all_mistakes_come_at_once() -> None:
    raw = {
        "modle": {},
        "train": {"epochs": -1, "batch_size": "many", "lr": 1},
        "prune": [{"sparsity": 1.5, "criterion": "x"}, {"pattern": "9"}],
        "distill": {"temperature": -1, "weight": "a"},
    }
    found = {key for key, _ in problems(raw)}
    assert found == {
        "modle",
        "train.batch_size",
        "train.lr",
        "train.epochs",
        "prune[0].sparsity",
        "prune[0].criterion",
        "prune[1].pattern",
        "distill.weight",
        "distill.temperature",
    }
    with pytest.raises(RecipeError, match=r"^9 problems\n  modle must be a known key") as caught:
        read_recipe(raw)
    assert len(caught.value.problems) == 9


# Files

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  epochs: 3\n prune: {", r"own\.yaml, line 3 must be valid YAML"),
        ("train: {epochs: 3\nprune: 1\n", r"own\.yaml, line 2 must be valid YAML"),
        ("train: {epochs: 3}\n\ttask: x", r"own\.yaml, line 2 must be valid YAML"),
        (
            "train: {epochs: 3}\ntask: {}\ntrain: {epochs: 4}",
            r"own\.yaml, line 3 must be valid YAML, got the key train",
        ),
        ("train: *nothing", r"own\.yaml, line 1 must be valid YAML"),
        ("train: !!python/object/apply:os.system [true]", r"own\.yaml, line 1 must be valid YAML"),
        ("train: !!int x", r"own\.yaml must be valid YAML"),
        ("seed: " + "9" * 5000, r"own\.yaml must be valid YAML"),
        ("[" * 5000, r"own\.yaml"),
        ("a: " + "[" * 40 + "]" * 40, r"own\.yaml must hold at most 100,000 values in 32 levels"),
        (BOMB, r"own\.yaml must hold at most 100,000 values"),
        ("a: &a [*a]", r"own\.yaml must hold at most 100,000 values"),
        ("- a\n- b\n", r"own\.yaml must be a mapping of keys, got 'list'"),
        ("just text", r"own\.yaml must be a mapping of keys, got 'str'"),
        ("a: \x00", r"own\.yaml must be valid YAML"),
        ("#" * (1 << 20) + "\n", r"recipe must be at most 1 MiB, got 1048577 bytes"),
    ],
)
def test_files_that_are_no_recipes(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(written(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"task: {name: \xff\xfe}")
    with pytest.raises(RecipeError, match=r"own\.yaml must be readable text in UTF-8"):
        load_recipe(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("sst2-4x1-8", "try sst2-4x1-80"),
        ("squad-2t4", "try squad-2to4"),
        ("zzz", "try one of "),
        ("nowhere/own.yaml", "try "),
        (".", "try "),
    ],
)
def test_a_missing_recipe_names_the_nearest(name: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe must be a YAML file or a shipped recipe[^\n]*\n *{fix}"):
        load_recipe(name)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.problems() == []
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith(header[0])
    assert len(header[0]) > 20
    assert any(line.strip("# ").startswith(f"prunus run {name}") for line in header)
    assert read_recipe(recipe_facts(recipe)).prune == recipe.prune
    assert load_recipe(str(SHIPPED / f"{name}.yaml")) == recipe


# Anything at all

KEYS = st.sampled_from(
    [
        "model",
        "task",
        "train",
        "dense",
        "prune",
        "distill",
        "output",
        "evaluate_dense",
        "name",
        "start",
        "epochs",
        "batch_size",
        "learning_rate",
        "warmup",
        "freeze",
        "checkpoint_every",
        "seed",
        "sparsity",
        "pattern",
        "criterion",
        "schedule",
        "kind",
        "end",
        "every",
        "cooldown",
        "power",
        "allocation",
        "scope",
        "per_tensor",
        "max_per_tensor",
        "targets",
        "include",
        "exclude",
        "reduce",
        "revive",
        "teacher",
        "weight",
        "temperature",
        "columns",
        "threads",
        "x",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "2:4", "4x1", "10%", "2 epochs", "auto", "dense", "(", "linear", "global", "tensor", "\x00"])
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=st.dictionaries(KEYS | st.integers() | st.text(max_size=3), VALUES, max_size=6))
def test_random_mappings_raise_nothing_else(raw: dict[Any, Any]) -> None:
    try:
        recipe = read_recipe(raw)
    except RecipeError as error:
        found = [(problem.key, problem.rule, str(problem)) for problem in error.problems]
    else:
        found = [("", "", "")] if recipe.problems() else [("read", "whole", "recipe")]
    assert found
    assert all(all(parts) for parts in found)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="atrin: {}[]&*!|>-#'\"\n\t%@,?0123456789.e", max_size=40),
    setting=st.text(alphabet="prune.[]0123=:{}", max_size=20),
)
def test_random_files_and_settings_raise_nothing_else(text: str, setting: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    try:
        said = load_recipe(str(tmp_path / "own.yaml"), [setting]).model.name
    except RecipeError as error:
        said = str(error)
    assert said
