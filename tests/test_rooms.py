"""The house plan, read from the source: who may import whom, and what no file may contain."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunus
from prunus import errors

SOURCE = Path(__file__).parents[1] / "src" / "prunus"
# From the ground up; rooms that share a floor may import each other. __init__.py is the door: its imports are lazy.
FLOORS = (
    {"errors", "_version", "cache", "paths", "progress", "signals", "import_hook", "architectures", "grid"},
    {"runtime"},
    {"sparsity"},
    {"distillation"},
    {"quantization"},
    {"tasks"},
    {"report"},
    {"reading", "yaml_text"},
    {"recipe_blocks"},
    {"recipe", "recipes"},
    {"recipe_schema"},
    {"converters"},
    {"checkpoint"},
    {"distributed"},
    {"environment"},
    {"models"},
    {"training"},
    {"export"},
    {"serving"},
    {"bench"},
    {"cli", "cli_errors", "cli_runtime", "__main__", "plan_view"},
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
WITHOUT_TRANSFORMERS = {"errors", "_version", "cache", "paths", "signals", "import_hook", "architectures", "sparsity"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
LONGEST = 400

FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
IDS = [str(path) for path in FILES]


def read(path: Path) -> ast.Module:
    return ast.parse((SOURCE / path).read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(tree: ast.Module, path: Path) -> Iterator[str]:
    """Full names of what is imported anywhere in a file, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = ("prunus", *path.parts[: len(path.parts) - node.level])
            yield from (".".join((*inside, *filter(None, (node.module, alias.name)))) for alias in node.names)


def arrows_back(tree: ast.Module, path: Path) -> list[str]:
    """Imports of a room from a floor above its own."""
    own, found = room_of(path), []
    for name in imports(tree, path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package != "prunus" or other in ("", own, "__version__"):
            continue
        if other not in FLOOR:
            found.append(f"{path} imports {name}, which is no room of the plan")
        elif FLOOR[other] > FLOOR[own]:
            found.append(f"{path} imports {name}, from a room above")
    return found


def forbidden(tree: ast.Module) -> list[str]:
    """What no file may contain, with its line."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Assert():
                found.append(f"{line}: assert")
            case ast.ExceptHandler(type=None):
                found.append(f"{line}: bare except")
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                found.append(f"{line}: {name}()")
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=[ast.Constant(), *_]
            ):
                pass
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module")):
                found.append(f"{line}: import_module of a name that is computed")
            case ast.Import(names=names) if FORBIDDEN_MODULES & {alias.name.split(".")[0] for alias in names}:
                found.append(f"{line}: pickle or the like")
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                found.append(f"{line}: pickle or the like")
            case _:
                pass
    return found


def test_every_file_is_in_a_room_of_the_plan() -> None:
    assert {room_of(path) for path in FILES} <= {*FLOOR, "__init__"}
    assert len(FILES) > 20


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__init__"], ids=str)
def test_rooms_import_only_from_the_floors_below(path: Path) -> None:
    assert not arrows_back(read(path), path)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_file_is_long_or_holds_what_is_forbidden(path: Path) -> None:
    assert len((SOURCE / path).read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert not forbidden(read(path))


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in WITHOUT_TRANSFORMERS], ids=str)
def test_the_ground_floors_know_no_transformers(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(read(path), path)}
    allowed = {"torch", "prunus", *sys.stdlib_module_names}
    assert not roots - allowed


@pytest.mark.parametrize(
    ("room", "source", "count"),
    [
        ("sparsity/a.py", "from prunus.training import run", 1),
        ("sparsity/a.py", "def f():\n    import prunus.cli", 1),
        ("sparsity/a.py", "from prunus.sparsity import b\nfrom prunus.errors import Problem\nimport torch", 0),
        ("sparsity/a.py", "from ..training import run", 1),
        ("sparsity/a.py", "from . import b", 0),
        ("sparsity/a.py", "from prunus import recipe, errors, __version__", 1),
        ("training/a.py", "from prunus.sparsity import Masker\nfrom prunus.recipe import read", 0),
        ("errors.py", "from prunus.sparsity import Masker\nfrom prunus.cellar import wine", 2),
    ],
)
def test_an_arrow_back_is_seen(room: str, source: str, count: int) -> None:
    assert len(arrows_back(ast.parse(source), Path(room))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert True", 1),
        ("try:\n    f()\nexcept:\n    pass", 1),
        ("try:\n    f()\nexcept ValueError:\n    pass", 0),
        ("eval('1')\nexec('1')\n__import__('os')", 3),
        ("model.eval()\nre.compile('a')", 0),
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("import os.path, pickle as p", 1),
        ("importlib.import_module(name)", 1),
        ("from importlib import import_module\nimport_module(name)", 1),
        ("importlib.import_module('torch')", 0),
    ],
)
def test_what_is_forbidden_is_seen(source: str, count: int) -> None:
    assert len(forbidden(ast.parse(source))) == count


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_prunus_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, prunus, prunus.errors; prunus.Problem; print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = set(python(code).split())
    assert "prunus" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "accelerate", "datasets", "yaml", "rich", "typer"}


def test_importing_sparsity_imports_no_transformers() -> None:
    loaded = set(python("import sys, prunus.sparsity; print(*{m.split('.')[0] for m in sys.modules})").split())
    assert "torch" in loaded
    assert not loaded & {"transformers", "accelerate", "datasets"}


@pytest.mark.parametrize("name", prunus.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(prunus, name) is not None
    assert name in dir(prunus)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'prunus' has no attribute 'Prunning'"):
        prunus.Prunning  # noqa: B018


@pytest.mark.parametrize(
    "name", [name for name in errors.__all__ if name not in ("Problem", "collecting", "first_line", "nearest")]
)
def test_one_tree_of_errors(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.PrunusError)
    first, second = errors.Problem("a", 1, "be 2", "2"), errors.Problem("b", "two words", "be one")
    assert str(kind(first)) == "a must be 2, got 1\n    try 2"
    assert str(kind(first, second)) == "2 problems\n  a must be 2, got 1\n      try 2\n  b must be one, got two words"
    assert kind(first, second).problems == (first, second)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  what it says\nmore"), "what it says"),
        (KeyError(), "KeyError"),
        (OSError(" \n"), "OSError"),
        (ValueError("x" * 200), "x" * 160),
    ],
)
def test_first_line_of_any_error(error: Exception, line: str) -> None:
    assert errors.first_line(error) == line
