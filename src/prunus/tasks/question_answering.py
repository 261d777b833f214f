"""Extractive question answering: the answer is a span of the context (SQuAD v1.1, own files, the embedded task).

A context that is too long for one row is cut into windows that share ``doc_stride`` tokens:

    [CLS] question [SEP] context tokens i ... j [SEP]

A training window that holds the whole answer is labelled with the answer's first and last token, every other window
with the position of [CLS]. An answer touches a token if their character ranges overlap, so an answer that starts or
ends inside a token is rounded outwards.

At evaluation each window proposes its best span ``argmax start[i] + end[j]`` over the ``n_best`` highest starts and
ends inside the context, with ``i <= j < i + max_answer_length``; the window with the highest sum answers the question,
and the text is cut out of the original context. This is the usual post-processing for SQuAD v1.1 (Devlin et al. 2018,
section 4.2), with one difference: candidates outside the context never take a place among the ``n_best``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prunus.errors import DataError, Problem, RecipeError, TrainingError
from prunus.tasks.base import Feature, HeadKind, Metrics, Split
from prunus.tasks.collate import TOKEN_KEYS, TokenizedRows
from prunus.tasks.examples import QAExample
from prunus.tasks.metrics import exact_match, squad_f1

__all__ = ["MIN_LENGTH", "QuestionAnsweringTask", "best_span"]

MIN_LENGTH: Final = 32
"""Shortest row, in tokens, that leaves room for a question, a context and windows that advance."""

_CHUNK: Final = 512
_LIMIT: Final = 1e30  # some models write -inf where an answer cannot start; sums of it stay comparable


@final
@dataclass(frozen=True)
class QuestionAnsweringTask:
    """Questions with their contexts and answers, in memory; implements ``prunus.tasks.base.Task``.

    ``more_baselines`` are metrics of trivial answers, by name, that the builder of the examples knows;
    ``score_answers`` computes them.
    """

    name: str
    train: Sequence[QAExample]
    validation: Sequence[QAExample]
    max_length: int = 384
    doc_stride: int = 128
    n_best: int = 20
    max_answer_length: int = 30
    notes: tuple[str, ...] = ()
    more_baselines: Mapping[str, Metrics] = field(default_factory=dict)

    @property
    def head(self) -> HeadKind:
        """The head that a model needs."""
        return "question-answering"

    @property
    def labels(self) -> tuple[str, ...]:
        """Empty: the classes are positions."""
        return ()

    @property
    def metric(self) -> str:
        """The main metric, the word F1."""
        return "f1"

    def size(self, split: Split) -> int:
        """Number of questions."""
        return len(self._examples(split))

    def _examples(self, split: Split) -> Sequence[QAExample]:
        return self.train if split == "train" else self.validation

    def features(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int, int], None] | None = None
    ) -> TokenizedRows:
        """One row a window; ``example`` is the index of its question.

        Training rows carry ``start_positions`` and ``end_positions``, validation rows ``offsets``: the characters
        ``(start, end)`` of each context token and None for the others. A question longer than a quarter of
        ``max_length`` is cut. Raises RecipeError for a tokenizer that is not a fast one.
        """
        length = min(self.max_length, int(tokenizer.model_max_length))
        _check_tokenizer(tokenizer, length)
        stride = min(self.doc_stride, length // 2)
        examples, rows = self._examples(split), TokenizedRows()
        for first in range(0, len(examples), _CHUNK):
            chunk = examples[first : first + _CHUNK]
            for example, windows in _windows(tokenizer, chunk, length, stride):
                answers = _positions(chunk[example], windows) if split == "train" else [None] * len(windows)
                for window, answer in zip(windows, answers, strict=True):
                    rows.append(_row(window, first + example, answer, with_offsets=split == "validation"))
            if progress is not None:
                progress(min(first + _CHUNK, len(examples)), len(examples))
        return rows

    def predictions(self, outputs: Sequence[NDArray[Any]], features: Sequence[Feature]) -> dict[str, str]:
        """The answer to each validation question, by its id; empty where ``features`` have no window of it.

        ``outputs`` are start and end scores ``[rows, at least the longest row]`` in the order of ``features``. Raises
        TrainingError for scores of another shape and for NaN.
        """
        start, end = _checked(outputs, features)
        best: dict[int, tuple[float, str]] = {}
        for row, feature in enumerate(features):
            offsets = feature["offsets"]
            inside = np.array([i for i, span in enumerate(offsets) if span is not None], dtype=np.int64)
            if not inside.size:
                continue
            score, i, j = best_span(start[row, inside], end[row, inside], self.n_best, self.max_answer_length)
            question = int(feature["example"])
            if question not in best or score > best[question][0]:
                text = self.validation[question].context[offsets[inside[i]][0] : offsets[inside[j]][1]]
                best[question] = (score, text.strip())
        return {example.id: best[i][1] if i in best else "" for i, example in enumerate(self.validation)}

    def score(self, outputs: Sequence[NDArray[Any]], features: Sequence[Feature]) -> Metrics:
        """``f1`` and ``exact_match`` of the validation split, fractions in [0, 1]."""
        return self.score_answers(self.predictions(outputs, features))

    def score_answers(self, answers: Mapping[str, str]) -> Metrics:
        """``f1`` and ``exact_match`` of answers by question id; a question without an answer scores 0."""
        totals = {"f1": 0.0, "exact_match": 0.0}
        for example in self.validation:
            if example.id in answers:
                answer, gold = answers[example.id], example.answers or ("",)
                totals["f1"] += squad_f1(answer, gold)
                totals["exact_match"] += exact_match(answer, gold)
        return {name: total / max(len(self.validation), 1) for name, total in totals.items()}

    def baselines(self) -> Mapping[str, Metrics]:
        """Metrics of trivial answers; empty unless the builder of the examples gave some."""
        return self.more_baselines


@dataclass(frozen=True)
class _Window:
    """One tokenised row, the positions of its context tokens, and their characters ``[tokens, 2]``."""

    tokens: Mapping[str, list[int]]
    positions: NDArray[np.int64]
    spans: NDArray[np.int64]
    cls: int


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    problems = []
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        problems.append(
            Problem(
                "tokenizer", kind, "be a fast one, which knows the characters of its tokens", "PreTrainedTokenizerFast"
            )
        )
    if length < MIN_LENGTH:
        problems.append(
            Problem("task.max_length", length, f"be at least {MIN_LENGTH} tokens, here and in the tokenizer")
        )
    if problems:
        raise RecipeError(*problems)


def _windows(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[QAExample], length: int, stride: int
) -> Iterator[tuple[int, list[_Window]]]:
    """Index and windows of each example. Question first, or context first for tokenizers that pad on the left."""
    questions = _cut_questions(tokenizer, [example.question.strip() for example in examples], length // 4)
    contexts = [example.context for example in examples]
    context_first = tokenizer.padding_side == "left"
    encoding = tokenizer(
        *((contexts, questions) if context_first else (questions, contexts)),
        truncation="only_first" if context_first else "only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    keys = [key for key in TOKEN_KEYS if key in encoding]
    windows: list[list[_Window]] = [[] for _ in examples]
    for row, example in enumerate(encoding["overflow_to_sample_mapping"]):
        sequences = encoding.sequence_ids(row)
        positions = np.array([i for i, s in enumerate(sequences) if s == (not context_first)], dtype=np.int64)
        ids = encoding["input_ids"][row]
        spans = np.array(encoding["offset_mapping"][row], dtype=np.int64).reshape(-1, 2)[positions]
        cls = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        windows[example].append(_Window({key: encoding[key][row] for key in keys}, positions, spans, cls))
    return enumerate(windows)


def _cut_questions(tokenizer: PreTrainedTokenizerBase, questions: list[str], limit: int) -> list[str]:
    """Questions of at most about ``limit`` tokens, so that every window has room for the context."""
    encoding = tokenizer(
        questions, add_special_tokens=False, truncation=True, max_length=limit + 1, return_offsets_mapping=True
    )
    spans = encoding["offset_mapping"]
    return [
        question[: span[limit - 1][1]] if len(span) > limit else question
        for question, span in zip(questions, spans, strict=True)
    ]


def _positions(example: QAExample, windows: Sequence[_Window]) -> list[tuple[int, int]]:
    """First and last token of the (first) answer in each window, or twice the position of [CLS]."""
    if not example.answers:
        return [(window.cls, window.cls) for window in windows]
    text = example.answers[0]
    start = example.answer_start[0] + len(text) - len(text.lstrip())
    stop = start + len(text.strip())
    touched = [np.flatnonzero((w.spans[:, 1] > start) & (w.spans[:, 0] < stop)) for w in windows]
    some = [w.spans[t] for w, t in zip(windows, touched, strict=True) if t.size]
    # A window holds the answer if it holds the outermost of all the tokens, of any window, that the answer touches.
    low = min((int(spans[0, 0]) for spans in some), default=0)
    high = max((int(spans[-1, 1]) for spans in some), default=0)
    positions = []
    for window, hit in zip(windows, touched, strict=True):
        complete = hit.size and window.spans[hit[0], 0] == low and window.spans[hit[-1], 1] == high
        first, last = (window.positions[hit[0]], window.positions[hit[-1]]) if complete else (window.cls, window.cls)
        positions.append((int(first), int(last)))
    return positions


def _row(window: _Window, example: int, answer: tuple[int, int] | None, *, with_offsets: bool) -> Feature:
    row: Feature = {**window.tokens, "example": example}
    if answer is not None:
        row["start_positions"], row["end_positions"] = answer
    if with_offsets:
        offsets: list[tuple[int, int] | None] = [None] * len(window.tokens["input_ids"])
        for position, (start, end) in zip(window.positions.tolist(), window.spans.tolist(), strict=True):
            offsets[position] = (start, end)
        row["offsets"] = offsets
    return row


def _checked(outputs: Sequence[NDArray[Any]], features: Sequence[Feature]) -> list[NDArray[np.float64]]:
    if len(outputs) != 2:
        raise TrainingError(Problem("outputs", f"{len(outputs)} arrays", "be start and end scores"))
    longest = max((len(feature["input_ids"]) for feature in features), default=0)
    scores = []
    for name, output in zip(("start scores", "end scores"), outputs, strict=True):
        shape = np.shape(output)
        if len(shape) != 2 or shape[0] != len(features) or shape[1] < longest:
            raise TrainingError(Problem(name, f"shape {shape}", f"have the shape ({len(features)}, {longest} or more)"))
        if np.isnan(output).any():
            raise TrainingError(Problem(name, "NaN", "be numbers", "a lower learning rate, or fp32"))
        scores.append(np.clip(np.asarray(output, dtype=np.float64), -_LIMIT, _LIMIT))
    return scores


def best_span(
    start: NDArray[np.float64], end: NDArray[np.float64], n_best: int, max_answer_length: int
) -> tuple[float, int, int]:
    """``(score, i, j)`` of the span with the highest ``start[i] + end[j]``, ``i <= j < i + max_answer_length``.

    ``start`` and ``end`` ``[tokens]`` cover context tokens only. Candidates are the ``n_best`` highest starts and ends,
    the earlier token first among equals; where no pair of them is a span, all spans of the window are compared.
    """
    first = np.argsort(-start, kind="stable")[:n_best]
    last = np.argsort(-end, kind="stable")[:n_best]
    for i, j in ((first, last), (np.arange(len(start)), np.arange(len(end)))):
        length = j[None, :] - i[:, None]
        spans = (length >= 0) & (length < max_answer_length)
        if spans.any():
            sums = np.where(spans, start[i][:, None] + end[j][None, :], -np.inf)
            row, column = np.unravel_index(int(sums.argmax()), sums.shape)
            return float(sums[row, column]), int(i[row]), int(j[column])
    raise DataError(Problem("task.max_answer_length", max_answer_length, "be at least 1"))
