"""Rows of the two kinds of task, before any tokenizer has seen them."""

from dataclasses import dataclass

__all__ = ["QAExample", "TextExample"]


@dataclass(frozen=True)
class QAExample:
    """One question about one context, with every accepted answer.

    ``answers[i]`` starts at character ``answer_start[i]`` of ``context``; both are empty for a question that the
    context does not answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_start: tuple[int, ...]


@dataclass(frozen=True)
class TextExample:
    """One text, or a pair of texts, and its label: a class id (int) or a target of regression (float)."""

    text: str
    text_pair: str | None
    label: int | float
