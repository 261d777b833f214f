"""Text -> plain values: YAML without the surprises of its version 1.1, bounded, with the line of a mistake; and settings.

A recipe may come from anywhere: no tags, no objects, no growth by anchors.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from prunus.errors import Problem, RecipeError

__all__ = ["parse_yaml", "put"]

_VALUES: Final = 100_000
_LEVELS: Final = 32


class _Loader(yaml.SafeLoader):
    """YAML without the surprises of its version 1.1.

    ``2:4`` is text, not the number 124; ``5e-5`` is a number; ``012`` is 12, not 10; a date is text; no key counts twice.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text, which ``name`` names in the ``RecipeError`` (with the line) where it is none."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = name if error.problem_mark is None else f"{name}, line {error.problem_mark.line + 1}"
        raise RecipeError(Problem(where, str(error.problem), "be valid YAML", "quoting the value")) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # An explicit tag (!!int x) or a number of 5,000 digits fails inside the YAML reader with errors of any kind.
        shown = str(error).partition("\n")[0][:200] or type(error).__name__
        raise RecipeError(Problem(name, shown, "be valid YAML", "plain values without tags")) from None
    if not _is_small(value):
        rule = f"hold at most {_VALUES:,} values in {_LEVELS} levels, repeated ones counted"
        raise RecipeError(Problem(name, "more", rule, "a recipe without anchors"))
    return value


def _is_small(value: Any) -> bool:
    """False for what a few anchors can grow into: 10**9 values, or a list that holds itself."""
    level, count = [value], 0
    for _ in range(_LEVELS):
        next_level: list[Any] = []
        for item in level:
            next_level += item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
            if count + len(next_level) > _VALUES:
                return False
        level, count = next_level, count + len(next_level)
    return not level


def put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets ``prune[0].sparsity`` or ``prune.0.sparsity`` or, where there is one rule, ``prune.sparsity``."""
    parts = dotted.replace("[", ".").replace("]", "").split(".")
    holder: Any = {"": raw}
    place: Any = ""
    for part in parts:
        here = holder[place]
        if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            holder, place = here, int(part)
        elif isinstance(here, list) and not part.isdecimal() and len(here) == 1 and isinstance(here[0], dict):
            holder, place = here[0], part
        elif isinstance(here, list):
            rest = dotted.partition(".")[2] if len(parts) > 1 else ""
            if not part.isdecimal():  # the number is missing
                fix = " or ".join(f"--set {parts[0]}[{i}].{rest}=..." for i in range(min(len(here), 2)))
                rule = f"name one of the {len(here)} entries of {parts[0]} by its number"
                raise RecipeError(Problem(dotted, "no number", rule, fix if here else f"{parts[0]} in the recipe"))
            rule = f"name one of the {len(here)} entries of {parts[0]}, counted from 0"
            raise RecipeError(Problem("--set", dotted, rule, f"{parts[0]}[0]"))
        elif part == "0" and place != "":
            continue  # a single rule that was written without the list
        else:
            if not isinstance(here, dict):
                holder[place] = here = {}
            holder, place = here, part
        if isinstance(holder, dict):
            holder.setdefault(place, None)
    holder[place] = value
