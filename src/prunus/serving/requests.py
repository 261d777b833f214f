"""What a request asks for: a JSON value -> a frozen dataclass, strictly; all of its problems at once.

POST /v1/embeddings    {"input": text | [text] | [id] | [[id]], "model", "encoding_format", "dimensions", "user", "truncate"}
POST /classify         {"inputs": text | [text | [text, pair]], "truncate"}
POST /answer           {"question", "context", "truncate"}, or a list of these
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prunus.errors import Problem, nearest
from prunus.serving.problems import Refused

__all__ = [
    "AnswerRequest",
    "ClassifyRequest",
    "EmbeddingsRequest",
    "Text",
    "read_answer",
    "read_classify",
    "read_embeddings",
]

Text = str | tuple[str, str]
MANY: Final = 20
"""Problems of one answer; a list of a thousand wrong values is one mistake."""


@dataclass(frozen=True)
class EmbeddingsRequest:
    """Texts, or token ids that are taken as they are (with the model's special tokens, if it wants them)."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    base64: bool
    truncate: bool


@dataclass(frozen=True)
class ClassifyRequest:
    """Texts, or pairs of texts."""

    texts: Sequence[Text]
    truncate: bool


@dataclass(frozen=True)
class AnswerRequest:
    """Questions with their contexts; ``single`` where one object was sent and one is the answer."""

    pairs: Sequence[tuple[str, str]]
    single: bool
    truncate: bool


class Reader:
    """Takes values out of an object and notes what is wrong with each."""

    def __init__(self, raw: Any, known: Sequence[str], where: str = "") -> None:
        self.problems: list[Problem] = []
        self.where = where
        self.values: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
        if not isinstance(raw, Mapping):
            self.note(where.rstrip(".") or "body", raw, f"be an object with the keys {', '.join(known)}")
        for key in self.values:
            if key not in known:
                self.note(where + key, self.values[key], "not be given: it is no key here", nearest(key, known))

    def note(self, key: str, value: Any, rule: str, fix: str = "") -> None:
        """One more problem."""
        self.problems.append(Problem(key, value, rule, fix))

    def close(self) -> None:
        """Raises Refused with all problems, if there are any."""
        if self.problems:
            raise Refused(400, *self.problems[:MANY])

    def text(self, key: str) -> str:
        """A text that is not blank."""
        value = self.values.get(key)
        if not is_text(value) or not str(value).strip():
            given = value if key in self.values else "nothing"
            self.note(self.where + key, *broken(given, "be a text that is not blank"))
            return ""
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.note(self.where + key, value, "be true or false")
        return value is True

    def items(self, key: str) -> list[Any]:
        """A list of one or more; one text alone is a list of one."""
        if key not in self.values:
            self.note(key, "nothing", "be given")
            return []
        value = self.values[key]
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not value:
            self.note(key, value, "be a text or a list that is not empty")
            return []
        return value


def is_text(value: Any) -> bool:
    """A string of characters; JSON can also write halves of surrogate pairs, which are none."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def broken(value: Any, rule: str) -> tuple[Any, str, str]:
    """Value, rule and fix for what is no text: halves of characters are told as such, anything else breaks ``rule``."""
    parts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    half = next((c for part in parts if isinstance(part, str) for c in part if "\ud800" <= c <= "\udfff"), None)
    if half is None:
        return value, rule, ""
    fix = "the text before it was cut, or without it"
    return f"half a character, U+{ord(half):04X}", "hold whole characters: no surrogate without its pair", fix


def is_ids(values: Any, words: int) -> bool:
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < words for one in values)


def check_count(count: int, limit: int, key: str) -> None:
    if count > limit:
        raise Refused(413, Problem(key, f"{count} inputs", f"hold at most {limit}", "several requests"))


def read_embeddings(raw: Any, name: str, hidden: int, words: int, limit: int) -> EmbeddingsRequest:
    """OpenAI's request, and ``truncate``.

    Args:
        raw: the JSON value.
        name: of the model here.
        hidden: features of an embedding.
        words: of the vocabulary.
        limit: of inputs.

    Raises:
        Refused: 400 with all problems, 404 another model, 413 too many inputs.

    """
    reader = Reader(raw, ("input", "model", "encoding_format", "dimensions", "user", "truncate"))
    items, truncate = reader.items("input"), reader.flag("truncate", True)
    texts: list[str] = []
    ids: list[list[int]] = []
    if items and isinstance(items[0], int):
        items = [items]
    check_count(len(items), limit, "input")
    for i, item in enumerate(items):
        if isinstance(items[0], str) and is_text(item):
            texts.append(item)
        elif not isinstance(items[0], str) and is_ids(item, words):
            ids.append(item)
        else:
            rule = "be a text, as the first is" if isinstance(items[0], str) else f"be token ids 0 .. {words - 1}"
            reader.note(f"input[{i}]", *broken(item, rule))
    form = reader.values.get("encoding_format", "float")
    if form not in ("float", "base64"):
        reader.note("encoding_format", form, "be 'float' or 'base64'")
    size = reader.values.get("dimensions")
    if size is not None and (isinstance(size, bool) or size != hidden):
        reader.note(
            "dimensions", size, f"be {hidden}, those of this model, which was not trained to be cut", str(hidden)
        )
    user = reader.values.get("user")
    if user is not None and not isinstance(user, str):
        reader.note("user", user, "be a text")
    model = reader.values.get("model", name)
    if not isinstance(model, str):
        reader.note("model", model, f"be {name!r}")
    reader.close()
    if model != name:
        raise Refused(404, Problem("model", model, f"be {name!r}, the one model of this server", name))
    return EmbeddingsRequest(texts, ids, form == "base64", truncate)


def read_classify(raw: Any, limit: int) -> ClassifyRequest:
    """Texts and pairs to classify.

    Raises:
        Refused: 400 with all problems, 413 too many inputs.

    """
    reader = Reader(raw, ("inputs", "truncate"))
    items, truncate = reader.items("inputs"), reader.flag("truncate", True)
    check_count(len(items), limit, "inputs")
    texts: list[Text] = []
    for i, item in enumerate(items):
        if is_text(item):
            texts.append(item)
        elif isinstance(item, list) and len(item) == 2 and all(map(is_text, item)):
            texts.append((item[0], item[1]))
        else:
            reader.note(f"inputs[{i}]", *broken(item, "be a text, or a list of two texts"))
    reader.close()
    return ClassifyRequest(texts, truncate)


def read_answer(raw: Any, limit: int) -> AnswerRequest:
    """Questions and contexts.

    Raises:
        Refused: 400 with all problems, 413 too many questions.

    """
    single = not isinstance(raw, list)
    items = [raw] if single else raw
    if not items:
        raise Refused(400, Problem("body", items, "hold at least one question"))
    check_count(len(items), limit, "body")
    known = ("question", "context", "truncate")
    readers = [Reader(item, known, "" if single else f"[{i}].") for i, item in enumerate(items)]
    # Of something that is no object, that alone is the problem.
    read = [r for r in readers if r.values or not r.problems]
    pairs = [(r.text("question"), r.text("context")) for r in read]
    flags = [r.flag("truncate", True) for r in read]
    close(r.problems for r in readers)
    return AnswerRequest(pairs, single, all(flags))


def close(problems: Iterable[Sequence[Problem]]) -> None:
    flat = [problem for some in problems for problem in some]
    if flat:
        raise Refused(400, *flat[:MANY])
