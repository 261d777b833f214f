"""The keys of a recipe, described from the dataclasses that read them.

    keys_of        dataclass -> its keys: name, type, default, and the docstring below the field
    json_schema    a JSON Schema (draft 2020-12), which editors use to complete and check a recipe
    reference      the page ``docs/recipe.md``

Both come from the type hints that ``prunus.reading`` reads by, so a new key appears in them by itself. The schema says what a
single value may be; rules between keys (``Recipe.problems``) are checked by ``prunus plan``.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from prunus.recipe import Recipe
from prunus.sparsity.schedules import Span

__all__ = ["Key", "json_schema", "keys_of", "reference"]

_SPAN: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(steps?|epochs?|%)?\s*$"},
    ]
}
_PLAIN: Final[dict[Any, tuple[str, dict[str, Any]]]] = {
    bool: ("true, false", {"type": "boolean"}),
    int: ("whole number", {"type": "integer"}),
    float: ("number", {"type": "number"}),
    str: ("text", {"type": ["string", "integer"]}),
    object: ("any value", {}),
    Span: ("span", _SPAN),
}
_TITLES: Final = {
    "dense": "The training of the dense model, which is the baseline and the usual teacher. A key that is left out here has "
    "its value of `train`. The keys are those of `train`.",
    "prune": "One rule, or a list of rules for different tensors. `prunus.Pruning` has the same keys.",
    "distill": "A teacher. The loss is `hard_weight * task loss + weight * T^2 KL + ...`. Without this block there is none.",
    "distill.contrast": "Contrastive terms, as in CAP ([contrastive.md](contrastive.md)). Each compares the pruned model "
    "with another: `prc` with the pretrained model, `snc` with earlier states of this training (snapshots), `fic` with "
    "the fine-tuned dense teacher.",
    "quantize": "8-bit weights and activations, trained together with pruning and distillation "
    "([quantization.md](quantization.md)). Without this block the model stays in float; `quantize: {}` takes the defaults.",
    "budget": "How much of the dense model may be left. It replaces `sparsity` in rules for `heads` and `ffn` "
    "([smaller.md](smaller.md)). Give exactly one of `params`, `flops` and `latency`.",
}
_INTRODUCTION: Final = """\
# A recipe, key by key

This page is generated from the code: `prunus recipes reference` prints it. `prunus recipes schema` prints a JSON Schema;
an editor with a YAML language server completes and checks a recipe that begins with

```yaml
# yaml-language-server: $schema=./recipe.schema.json
```

* `--set key=value` overrides the recipe, and flags of the command override both. `--data DIR` reads the task's files from DIR,
  in place of the files that the recipe names. `--set 'prune[1].sparsity=0.5'` changes the second of several rules.
* An unknown key is an error that names the nearest valid key. `prunus plan` reports every mistake at once. It also runs one
  batch with the longest rows of the data through the tokenizer and a model of one layer, so that errors appear before training.
* A **span** is a length of training: optimizer steps (`1000`), epochs (`2 epochs`) or a percentage of this training (`10%`).
* Write a fraction as `0.8`, never as `80`.
* An empty default is `null`: the key is not set.
"""


@dataclass(frozen=True)
class Key:
    """One key of a block: its type hint, its default (``MISSING`` where a block stands below it) and what it does."""

    name: str
    hint: Any
    default: Any
    about: str

    @property
    def block(self) -> type[Any] | None:
        """The dataclass of the block below this key, or of each of its entries; None for a value."""
        return _block(self.hint)


def keys_of(cls: type[Any]) -> list[Key]:
    """The keys of a dataclass: those of the class itself, then those of its base classes."""
    hints, about = get_type_hints(cls), _docstrings(cls)
    entries = sorted(fields(cls), key=lambda entry: entry.name not in cls.__annotations__)
    return [Key(entry.name, hints[entry.name], _default(entry), about.get(entry.name, "")) for entry in entries]


def json_schema() -> dict[str, Any]:
    """The schema of a whole recipe, as plain values that ``json.dumps`` takes."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prunus recipe",
        **_object_schema(Recipe),
    }


def reference() -> str:
    """``docs/recipe.md``: an introduction, then a table of keys for each block."""
    parts, rest = [_INTRODUCTION], list[tuple[str, Key]]()
    for key in keys_of(Recipe):
        if key.name == "dense":
            parts.append(f"## dense\n\n{_TITLES['dense']}\n")
        elif key.block is None:
            rest.append(("", key))
        else:
            parts.append(_section(key.name, key.block))
    return "\n".join([*parts, f"## Other keys\n\n{_rows(rest)}"])


def _section(name: str, cls: type[Any]) -> str:
    keys = list(_flat(keys_of(cls), ""))
    plain = [(prefix, key) for prefix, key in keys if not prefix.startswith("contrast.")]
    text = f"## {name}\n\n" + (f"{_TITLES[name]}\n\n" if name in _TITLES else "") + _rows(plain)
    contrast = [(prefix, key) for prefix, key in keys if prefix.startswith("contrast.")]
    if contrast:
        text += f"\n### {name}.contrast\n\n{_TITLES[f'{name}.contrast']}\n\n" + _rows(contrast)
    return text


def _flat(keys: list[Key], prefix: str) -> Iterator[tuple[str, Key]]:
    """Every value below these keys, with the dotted path of the block that it stands in."""
    for key in keys:
        if key.block is None or key.name == "others":
            yield prefix, key
        else:
            yield from _flat(keys_of(key.block), f"{prefix}{key.name}.")


def _rows(keys: list[tuple[str, Key]]) -> str:
    head = "| key | default | values | meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{prefix}{key.name}` | {_shown(key.default)} | {_type_text(key.hint)} | {_cell(_about(key))} |\n"
        for prefix, key in keys
    )


def _about(key: Key) -> str:
    if key.block is None:
        return key.about
    inner = ", ".join(f"`{entry.name}`" for entry in keys_of(key.block))
    return f"{key.about} Each has {inner}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    """A default as YAML would write it; nothing for None and for what has no default of its own."""
    if value is None or value is MISSING or value in ((), {}):
        return ""
    if isinstance(value, Span):
        return f"`{str(value).removesuffix(' steps')}`"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{item:g}' for item in value)}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _type_text(next(a for a in arguments if a is not NoneType))
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        inner = arguments[0]
        if get_origin(inner) is tuple:
            return "list of pairs"
        if get_origin(inner) is Literal:
            return "list of " + _type_text(inner)
        names = {str: "texts", int: "whole numbers", float: "numbers", Span: "spans"}
        return "list of " + names.get(inner, "blocks")
    if origin is not None:
        return "mapping"
    return _PLAIN[hint][0]


def _object_schema(cls: type[Any]) -> dict[str, Any]:
    properties = {}
    for key in keys_of(cls):
        schema = _value_schema(key.hint)
        if key.about:
            schema = {**schema, "description": " ".join(key.about.split())}
        default = _plain_default(key.default)
        properties[key.name] = schema if default is None else {**schema, "default": default}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = next(a for a in arguments if a is not NoneType)
        others: list[dict[str, Any]] = [{"type": "null"}]
        if inner is Span:
            others.append({"const": "auto"})
        return {"anyOf": [_value_schema(inner), *others]}
    if is_dataclass(hint) and isinstance(hint, type) and hint is not Span:
        return _object_schema(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:  # a single value stands for a list of one
        item = _value_schema(arguments[0])
        return {"anyOf": [item, {"type": "array", "items": item}]}
    if origin is not None:
        return {"type": "object", "additionalProperties": _value_schema(arguments[1])}
    return dict(_PLAIN[hint][1])


def _plain_default(value: Any) -> Any:
    if isinstance(value, Span):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else None


def _block(hint: Any) -> type[Any] | None:
    if is_dataclass(hint) and isinstance(hint, type):
        return None if hint is Span else hint
    blocks = (_block(argument) for argument in get_args(hint))
    return next((block for block in blocks if block is not None), None)


def _default(entry: Field[Any]) -> Any:
    if entry.default is not MISSING:
        return entry.default
    value = entry.default_factory() if entry.default_factory is not MISSING else MISSING
    return MISSING if is_dataclass(value) and not isinstance(value, Span) else value


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """Field -> the string that stands below it in the source, as PEP 257 calls an attribute docstring."""
    found: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        if not is_dataclass(part):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef))
        for statement, following in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                found[statement.target.id] = following.value.value
    return found
