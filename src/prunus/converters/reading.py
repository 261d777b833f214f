"""Reading the configuration of another tool so that nothing is lost in silence: what is not taken is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ConfigBlock", "Converted"]


@dataclass(frozen=True)
class Converted:
    """A recipe as plain values, and what it could not say."""

    recipe: dict[str, Any]
    lost: list[str]
    """One line each: the key, its value, and why."""


@dataclass
class ConfigBlock:
    """One object of the file. ``take`` reads a key; ``rest`` names those that nobody read."""

    values: Mapping[str, Any]
    path: str
    lost: list[str]
    seen: set[str] = field(default_factory=set)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key that is understood."""
        self.seen.add(key)
        return self.values.get(key, default)

    def number(self, key: str, default: float) -> float:
        """A number; another type is named, and the default taken."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.lose(key, "is not a number")
            return default
        return value

    def block(self, key: str) -> "ConfigBlock":
        """An object below this one; an empty one where there is none."""
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            self.lose(key, "is not an object")
        return ConfigBlock(value if isinstance(value, Mapping) else {}, self.name(key), self.lost)

    def texts(self, key: str) -> list[str]:
        """A list of texts; one text counts as a list of one."""
        value = self.take(key)
        items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if (value is not None and not items and value != []) or not all(isinstance(one, str) for one in items):
            self.lose(key, "is not a list of texts")
        return [one for one in items if isinstance(one, str)]

    def name(self, key: str) -> str:
        """With the path to it."""
        return f"{self.path}.{key}" if self.path else key

    def lose(self, key: str, why: str) -> None:
        """Names what a recipe cannot say."""
        self.seen.add(key)
        self.lost.append(f"{self.name(key)} = {self.values.get(key)!r}: {why}")

    def rest(self) -> None:
        """Names every key that nobody read."""
        for key in self.values:
            if key not in self.seen:
                self.lose(key, "has no counterpart")
