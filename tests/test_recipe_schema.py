"""The generated reference and JSON Schema say of each key what reading a recipe does with it."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from prunus.errors import RecipeError
from prunus.recipe import SHIPPED, Recipe, read_recipe, shipped_recipes
from prunus.recipe_schema import json_schema, keys_of, reference
from prunus.yaml_text import parse_yaml

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"


def below(cls: type[Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key in keys_of(cls):
        found.append((f"{prefix}{key.name}", key))
        if key.block is not None:
            found += below(key.block, f"{prefix}{key.name}.")
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    json.dumps(SCHEMA, allow_nan=False)


def test_every_value_says_what_it_does() -> None:
    assert [name for name, key in below(Recipe) if key.block is None and not key.about] == []


def test_the_page_is_of_this_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "prunus recipes reference > docs/recipe.md"


def test_the_page_names_every_key() -> None:
    page = reference()
    for name, key in below(Recipe):
        block, _, rest = name.partition(".")
        if key.block is None and block != "dense" and not rest.startswith("others."):
            assert f"\n| `{rest or name}` |" in page, name


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    raw = parse_yaml((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), name)
    assert [error.message for error in VALIDATOR.iter_errors(raw)] == []


PRUNE = {"sparsity": 0.5}
VALUES: list[dict[str, Any]] = [
    {},
    {"prune": PRUNE},
    {"prune": [PRUNE, {"pattern": "2:4"}]},
    {"prune": {**PRUNE, "schedule": {"every": "auto"}}},
    {"prune": {**PRUNE, "schedule": {"every": None, "start": 10, "end": "90%"}}},
    {"prune": {**PRUNE, "schedule": {"kind": "multistep", "boundaries": ["50%"], "levels": [0.5, 1]}}},
    {"prune": {**PRUNE, "targets": {"include": "attention"}}},
    {"prune": {**PRUNE, "allocation": {"scope": "tensor", "per_tensor": {"query": 0.3}}}},
    {"train": {"warmup": "2 epochs", "checkpoint_every": None, "report_to": "wandb"}},
    {"train": {"trainer": {"optim_args": "momentum=0.9"}, "optimizer": None}},
    {"train": {"cycles": [11, 6], "epochs": 2}},
    {"distill": {"hidden": {"weight": 1, "pairs": [[1, 2]]}, "others": [{"teacher": "start"}]}},
    {"distill": {"contrast": {"snc": {"weight": 0.1, "last": None}}}, "prune": PRUNE},
    {"quantize": {}},
    {"model": {"name": 5}},
    {
        "task": {
            "columns": {"text": "a", "label": "b"},
            "name": "classification",
            "train": "a.tsv",
            "validation": "b.tsv",
        }
    },
    {"budget": {"params": 0.5}, "prune": {"pattern": "ffn"}},
    # refused by both
    {"tarin": {}},
    {"train": {"epochs": "three"}},
    {"train": {"epochs": True}},
    {"train": {"batch_size": 1.5}},
    {"train": {"warmup": "2 weeks"}},
    {"train": {"warmup": -1}},
    {"train": {"precision": "fp8"}},
    {"train": {"report_to": ["paper"]}},
    {"train": {"freeze": [{"a": 1}]}},
    {"train": []},
    {"prune": {**PRUNE, "schedule": {"kind": "sudden"}}},
    {"prune": {**PRUNE, "lock": "yes"}},
    {"prune": {**PRUNE, "allocation": {"scope": "tensor", "per_tensor": {"query": "much"}}}},
    {"distill": {"others": [{"teachr": "start"}]}},
    {"quantize": {"mode": 8}},
]


@pytest.mark.parametrize("raw", VALUES, ids=str)
def test_it_refuses_what_reading_refuses(raw: dict[str, Any]) -> None:
    try:
        read_recipe(raw)
        read = True
    except RecipeError:
        read = False
    assert VALIDATOR.is_valid(raw) == read


def test_defaults_are_those_of_an_empty_recipe() -> None:
    recipe = read_recipe({})
    for name, schema in SCHEMA["properties"]["train"]["properties"].items():
        if "default" in schema:
            value = getattr(recipe.train, name)
            assert schema["default"] == (value if isinstance(value, bool | int | float | str) else str(value)), name
    assert set(SCHEMA["properties"]) == {entry.name for entry in fields(Recipe)}
