"""Plain values -> dataclasses, strictly and completely.

    read_dataclass    mapping -> dataclass, by the type hints of its fields

What is unknown, of the wrong type or not one of a field's literals is noted as a ``Problem`` with its dotted key and the
nearest valid one, and its field keeps the default, so that the rest can be read and checked as well.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from prunus.errors import Problem, RecipeError, nearest
from prunus.sparsity.schedules import Span, parse_span

__all__ = ["read_dataclass"]

_LONGEST: Final = 10**12  # steps, epochs or per cent; a longer span is a slip, and a far longer one no float
_UNREAD: Final = object()  # stands for a value that could not be read; its key keeps the default
T = TypeVar("T")


def read_dataclass(cls: type[T], raw: Any, problems: list[Problem], blocks: Mapping[str, type[Any]] | None = None) -> T:
    """``cls`` from a mapping; problems are appended to ``problems``.

    ``blocks`` (dotted name -> dataclass) are where a key may have been meant that does not belong where it stands.
    """
    return _Reader(problems, blocks or {}).read(cls, raw, "")


@dataclass(frozen=True)
class _Reader:
    """What every level of the reading shares: the list of problems, and where else keys live."""

    problems: list[Problem]
    blocks: Mapping[str, type[Any]]

    def read(self, cls: type[T], raw: Any, key: str) -> T:
        """A dataclass from a mapping; what cannot be read stays at its default and is noted in ``problems``."""
        known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        if not isinstance(raw, Mapping):
            self.problems.append(Problem(key or "recipe", raw, "be a mapping of keys", ", ".join(known)))
            return cls()
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for name, value in raw.items():
            where = f"{key}.{name}" if key else str(name)
            if name not in known:
                self.problems.append(
                    Problem(where or "''", value, "be a known key", self._nearest_key(str(name), key, known))
                )
                continue
            read = self._value(hints[name], value, where)
            if read is not _UNREAD:
                values[name] = read
        return cls(**values)

    def _nearest_key(self, name: str, key: str, known: Sequence[str]) -> str:
        """The same key in another block, else the nearest of this block, else the nearest of all, else all of this block."""
        others = {f"{block}.{entry.name}": entry.name for block, cls in self.blocks.items() for entry in fields(cls)}
        for wanted in (name, nearest(name, others.values())):
            if wanted == name or nearest(name, known).startswith("one of "):
                for full, other in others.items():
                    if other == wanted:
                        return full
        here = nearest(name, known)
        return f"{key}.{here}" if key and not here.startswith("one of ") else here

    def _value(self, hint: Any, value: Any, key: str, optional: bool = False) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            if value is None:
                return None
            return self._value(next(a for a in arguments if a is not NoneType), value, key, optional=True)
        if hint is Span:
            if value == "auto" and optional:
                return None
            try:
                span = parse_span(value, key)
            except RecipeError as error:
                self.problems.extend(error.problems)
                return _UNREAD
            if span.value > _LONGEST:
                self.problems.append(Problem(key, value, f"be at most {_LONGEST:g}", "'10%'"))
                return _UNREAD
            return span
        if is_dataclass(hint) and isinstance(hint, type):
            return self.read(hint, value, key)
        if origin is Literal:
            if value not in arguments:
                self.problems.append(
                    Problem(key, value, "be one of " + ", ".join(arguments), nearest(str(value), arguments))
                )
                return _UNREAD
            return value
        if origin is tuple:
            several = value if isinstance(value, list | tuple) else [value]
            read = (self._value(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(several))
            return tuple(item for item in read if item is not _UNREAD)
        if origin is not None and isinstance(value, Mapping):
            pairs = ((str(name), self._value(arguments[1], item, f"{key}.{name}")) for name, item in value.items())
            return {name: item for name, item in pairs if item is not _UNREAD}
        return self._plain(hint, value, key)

    def _plain(self, hint: Any, value: Any, key: str) -> Any:
        if hint is object:
            return value
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) <= sys.float_info.max:  # also not for NaN
                self.problems.append(Problem(key, value, "be a finite number", "0.5"))
                return _UNREAD
            return float(value)
        if hint is str and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, hint if isinstance(hint, type) else Mapping) or (
            isinstance(value, bool) and hint is not bool
        ):
            names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
            wanted = names.get(hint, "a mapping of names to values")
            self.problems.append(
                Problem(key, value, f"be {wanted}", {bool: "true", int: "1", float: "0.5"}.get(hint, ""))
            )
            return _UNREAD
        return value
