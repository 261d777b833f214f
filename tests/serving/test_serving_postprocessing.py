"""Softmax, labels, spans, embeddings: against numbers that were worked out by hand."""

import base64
import json
import struct

import numpy as np
import pytest

from prunus.errors import EngineError
from prunus.serving.postprocessing import (
    AnswerSpan,
    Window,
    answer,
    as_base64,
    as_text,
    best_span,
    class_names,
    class_scores,
    ranked,
    softmax,
)


def test_a_softmax_by_hand() -> None:
    assert softmax(np.log([1.0, 2.0, 5.0])) == pytest.approx([0.125, 0.25, 0.625])
    assert softmax(np.array([[0.0, 0.0], [0.0, np.log(3)]])) == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))


def test_a_softmax_does_not_overflow() -> None:
    assert softmax(np.array([1e4, 1e4 + np.log(3)])) == pytest.approx([0.25, 0.75])
    assert softmax(np.array([-1e30, 0.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("logits", "problem_type", "scores"),
    [
        (np.log([1.0, 3.0]), None, [0.25, 0.75]),
        (np.log([1.0, 3.0]), "single_label_classification", [0.25, 0.75]),
        (np.log([1.0, 3.0]), "multi_label_classification", [0.5, 0.75]),
        (np.array([np.log(4.0)]), None, [0.8]),
        (np.array([-3.5]), "regression", [-3.5]),
        (np.array([-800.0, 800.0]), "multi_label_classification", [0.0, 1.0]),
    ],
)
def test_scores_by_the_type_of_problem(logits: np.ndarray, problem_type: str | None, scores: list[float]) -> None:
    assert class_scores(logits, {"problem_type": problem_type}) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, [2.5]),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, [0.924142]),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, [2.5]),
        ({"sbert_ce_default_activation_function": None, "problem_type": None}, [0.924142]),
        ({"sentence_transformers": {"activation_fn": "somebody.elses.Function"}}, [0.924142]),
        ({"sentence_transformers": {"version": "5.0"}}, [0.924142]),
    ],
)
def test_a_cross_encoder_names_its_activation(settings: dict[str, object], scores: list[float]) -> None:
    assert class_scores(np.array([2.5]), settings) == pytest.approx(scores, abs=1e-6)


def test_an_activation_that_is_not_served_is_refused() -> None:
    with pytest.raises(EngineError, match="activation_fn must be Identity or Sigmoid"):
        class_scores(np.array([2.5]), {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}})


def test_labels_from_the_settings_or_by_number() -> None:
    assert class_names({"id2label": {"0": "no", "1": "yes"}}, 3) == ["no", "yes", "LABEL_2"]
    assert class_names({"id2label": None}, 1) == ["LABEL_0"]
    rows = ranked(np.array([0.25, 0.5, 0.25]), ["a", "b", "c"])
    assert rows == [{"label": "b", "score": 0.5}, {"label": "a", "score": 0.25}, {"label": "c", "score": 0.25}]


def test_an_embedding_as_text_and_as_base64_is_exact() -> None:
    vector = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(1e-3)
    assert np.array_equal(np.array(json.loads(as_text(vector)), np.float32), vector)
    assert struct.unpack("<1000f", base64.b64decode(as_base64(vector))) == tuple(vector.tolist())
    with pytest.raises(ValueError, match="not finite"):
        as_text(np.array([np.nan], np.float32))


def test_the_best_span_is_in_order_and_not_too_long() -> None:
    start, end = np.array([0.0, 1.0, 0.0, 5.0]), np.array([9.0, 0.0, 4.0, 1.0])
    assert best_span(start, end, 30) == (9.0, 0, 0)  # 3 .. 0 would be 14, and is no span
    end[0] = 0.0
    assert best_span(start, end, 30) == (6.0, 3, 3)
    start[3] = 0.0
    assert best_span(start, end, 30) == (5.0, 1, 2)
    assert best_span(start, end, 1) == (4.0, 2, 2)


def test_the_best_span_is_the_best_of_all_pairs() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        count, longest = int(random.integers(1, 40)), int(random.integers(1, 12))
        start, end = random.standard_normal((2, count))
        pairs = [(start[i] + end[j], i, j) for i in range(count) for j in range(i, min(count, i + longest))]
        assert best_span(start, end, longest) == max(pairs)


def window(places: list[int], characters: list[tuple[int, int]]) -> Window:
    ids = np.zeros(max(places, default=0) + 2, np.int64)
    return Window(ids, ids, np.array(places, np.int64), np.array(characters, np.int64).reshape(-1, 2))


def test_an_answer_out_of_two_windows_by_hand() -> None:
    context = "a bc def"
    windows = [window([2, 3], [(0, 1), (1, 4)]), window([2, 3], [(2, 4), (5, 8)])]
    first, second = np.full((5, 2), 99.0), np.full((5, 2), 99.0)  # outside the context nothing counts
    first[2:4] = np.log([[1, 1], [1, 2]])
    second[2:4] = np.log([[6, 1], [2, 4]])
    # starts 1 1 6 2, ends 1 2 1 4: the best is 6 x 4, of 10 and of 8
    found = answer(context, windows, [first, second], 30)
    assert found == AnswerSpan("bc def", pytest.approx(0.6 * 0.5), 2, 8)
    far = answer(context, windows, [first + 5000, second + 5000], 30)
    assert far == AnswerSpan("bc def", pytest.approx(0.6 * 0.5), 2, 8)
    # of one token alone: starts and ends 1 x 1, 1 x 2, 6 x 1, 2 x 4; it is the last
    assert answer(context, windows, [first, second], 1) == AnswerSpan("def", pytest.approx(0.2 * 0.5), 5, 8)


def test_an_answer_has_no_space_around_it_and_may_be_nothing() -> None:
    spaced = window([1], [(1, 4)])
    assert answer("a bc def", [spaced], [np.zeros((3, 2))], 30) == AnswerSpan("bc", 1.0, 2, 4)
    assert answer("\u200b", [window([], [])], [np.zeros((2, 2))], 30) == AnswerSpan("", 0.0, 0, 0)
