"""``slow.txt`` names tests that exist, and cases that they have."""

import ast
from pathlib import Path

import pytest

from slow import slow_tests

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", slow_tests())
def test_it_exists(name: str) -> None:
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_cases_that_stay_exist(request: pytest.FixtureRequest) -> None:
    collected = {item.nodeid for item in request.session.items}
    for name, kept in slow_tests().items():
        here = {each for each in collected if each.startswith(f"{name}[")}
        assert not here or {f"{name}[{case}]" for case in kept} <= collected, name
