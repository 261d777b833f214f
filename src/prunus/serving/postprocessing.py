"""From numbers to answers: pure functions over numpy arrays, without a server around them.

    classes       softmax(z)[i] = exp(z[i]) / sum exp(z), or sigmoid(z)[i] = 1 / (1 + exp(-z[i])) where classes are independent;
                  of a CrossEncoder of sentence-transformers, the activation that its configuration names
    a span        argmax start[i] + end[j],   i <= j < i + longest,   over the context's tokens of all windows

The score of a span is ``softmax(start)[i] softmax(end)[j]``, each over the context's tokens of all windows of its question, so
that the span with the highest sum is also the one with the highest score.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.errors import EngineError, Problem
from prunus.serving.options import Array

__all__ = [
    "AnswerSpan",
    "Window",
    "answer",
    "as_base64",
    "as_text",
    "best_span",
    "class_names",
    "class_scores",
    "cross_encoder_activation",
    "ranked",
    "softmax",
]


def as_base64(vector: Array) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode("ascii")


def as_text(vector: Array) -> str:
    """A JSON list. Nine digits are exact for float32, and a third of the time and half of the bytes of float64's.

    Raises:
        ValueError: NaN or infinity, which JSON cannot write.

    """
    if not np.isfinite(vector).all():
        raise ValueError("an embedding that is not finite")
    return "[" + ",".join(["%.9g"] * len(vector)) % tuple(vector.tolist()) + "]"


def softmax(logits: Array) -> Array:
    """Over the last axis; the highest logit is taken off first, so that nothing overflows."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """Of each, by the half-angle form that does not overflow: ``(1 + tanh(z / 2)) / 2``."""
    return np.asarray((1 + np.tanh(np.asarray(logits, np.float64) / 2)) / 2)


def class_scores(logits: Array, settings: Mapping[str, Any]) -> Array:
    """Scores of classes from their logits.

    Where ``config.json`` names the activation of a CrossEncoder of sentence-transformers, it is used, as ``predict`` does:
    ``Identity`` keeps the logits, ``Sigmoid`` is taken of each. Else transformers' pipeline is followed: ``regression`` keeps
    the number; ``multi_label_classification`` and a single class are sigmoids; all others a softmax.

    Raises:
        EngineError: another activation.

    """
    named = cross_encoder_activation(settings)
    kind = settings.get("problem_type")
    if named == "Identity" or (not named and kind == "regression"):
        return np.asarray(logits, np.float64)
    if named == "Sigmoid" or kind == "multi_label_classification" or np.shape(logits)[-1] == 1:
        return sigmoid(logits)
    return softmax(logits)


def cross_encoder_activation(settings: Mapping[str, Any]) -> str:
    """The class of the activation that a CrossEncoder of sentence-transformers names in ``config.json``; empty without one.

    Raises:
        EngineError: one that is not served.

    """
    stated = settings.get("sentence_transformers")
    path = (
        stated.get("activation_fn")
        if isinstance(stated, Mapping)
        else settings.get("sbert_ce_default_activation_function")
    )
    if not isinstance(path, str) or not path.startswith("torch."):
        return ""  # sentence-transformers does not run code that a configuration names; it takes its default
    name = path.rpartition(".")[2]
    if name not in ("Identity", "Sigmoid"):
        raise EngineError(Problem("config.json: activation_fn", path, "be Identity or Sigmoid, which the server knows"))
    return name


def class_names(settings: Mapping[str, Any], count: int) -> list[str]:
    """``id2label`` of ``config.json``; ``LABEL_i`` where it has no name."""
    named = settings.get("id2label")
    named = named if isinstance(named, Mapping) else {}
    return [str(named.get(str(i), f"LABEL_{i}")) for i in range(count)]


def ranked(scores: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """``{label, score}``, the highest first, of equal ones the first class first."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [{"label": names[i], "score": float(scores[i])} for i in order]


def best_span(start: Array, end: Array, longest: int) -> tuple[float, int, int]:
    """``(sum, i, j)`` of the span with the highest ``start[i] + end[j]``, ``i <= j < i + longest``; exact.

    Among equals the shortest, then the earliest. Both ``[tokens]``, at least one.
    """
    best = (-np.inf, 0, 0)
    for more in range(min(longest, len(start))):
        sums = start[: len(start) - more] + end[more:]
        i = int(sums.argmax())
        if sums[i] > best[0]:
            best = (float(sums[i]), i, i + more)
    return best


@dataclass(frozen=True)
class Window:
    """A question and a part of its context, as the model reads it."""

    ids: Array
    types: Array
    places: Array
    """Of the context's tokens among ``ids``."""
    characters: Array
    """``[places, 2]``: where each begins and ends in the context."""


@dataclass(frozen=True)
class AnswerSpan:
    """An answer: ``text`` is ``context[start:end]``."""

    text: str
    score: float
    start: int
    end: int


def answer(context: str, windows: Sequence[Window], logits: Sequence[Array], longest: int) -> AnswerSpan:
    """The best span of all windows.

    Args:
        context: the text.
        windows: of one question.
        logits: ``[tokens, 2]`` of each: start and end.
        longest: tokens of an answer.

    """
    pairs = [
        (w, np.asarray(z, np.float64)[w.places, :2]) for w, z in zip(windows, logits, strict=True) if len(w.places)
    ]
    if not pairs:  # a context of characters that the tokenizer drops
        return AnswerSpan("", 0.0, 0, 0)
    all_logits = np.concatenate([z for _, z in pairs])
    highest = all_logits.max(0)
    weight = float((highest + np.log(np.exp(all_logits - highest).sum(0))).sum())
    spans = [(best_span(z[:, 0], z[:, 1], longest), window) for window, z in pairs]
    (total, i, j), window = max(spans, key=lambda pair: pair[0][0])
    start, end = int(window.characters[i, 0]), int(window.characters[j, 1])
    text = context[start:end]
    start += len(text) - len(text.lstrip())  # some tokens hold the space before their word
    text = text.strip()
    return AnswerSpan(text, float(np.exp(total - weight)), start, start + len(text))
