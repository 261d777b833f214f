"""Metrics against scikit-learn, scipy, and a naive rewrite of SQuAD's evaluation."""

import math
import string

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from prunus.tasks import metrics


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_class_metrics(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 60)
    found = np.where(rng.random(60) < 0.6, labels, rng.integers(0, classes, 60))
    assert metrics.accuracy(found, labels) == pytest.approx(reference.accuracy_score(labels, found), abs=1e-12)
    assert metrics.macro_f1(found, labels) == pytest.approx(
        reference.f1_score(labels, found, average="macro"), abs=1e-12
    )
    assert metrics.matthews(found, labels) == pytest.approx(reference.matthews_corrcoef(labels, found), abs=1e-12)
    if classes == 2:
        assert metrics.f1(found, labels) == pytest.approx(reference.f1_score(labels, found), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [0.0, 0.5, 2.0])
def test_correlations(seed: int, step: float) -> None:
    """With a step the values are rounded to it, which makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=80) * 2
    found = labels + rng.normal(size=80) * 3
    if step:
        labels, found = np.round(labels / step) * step, np.round(found / step) * step
    assert metrics.pearson(found, labels) == pytest.approx(stats.pearsonr(found, labels).statistic, abs=1e-12)
    assert metrics.spearman(found, labels) == pytest.approx(stats.spearmanr(found, labels).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "found", "labels", "value"),
    [
        ("pearson", [0.1] * 7, [1, 2, 3, 4, 5, 6, 7], 0.0),  # the mean of seven 0.1 is not 0.1
        ("pearson", [1, 2, 3], [5, 5, 5], 0.0),
        ("pearson", [1, 2, 3], [2, 4, 6], 1.0),
        ("pearson", [1, 2, 3], [6, 4, 2], -1.0),
        ("pearson", [1e200, 2e200, 3e200], [1, 2, 3], 1.0),
        ("pearson", [1e-200, 2e-200, 3e-200], [1, 2, 3], 1.0),
        ("pearson", [1], [1], 0.0),
        ("spearman", [0.3] * 5, [1, 2, 3, 4, 5], 0.0),
        ("spearman", [1, 10, 100], [1, 2, 3], 1.0),
        ("matthews", [1, 1, 1, 1], [0, 1, 0, 1], 0.0),
        ("matthews", [0, 1, 0, 1], [1, 0, 1, 0], -1.0),
        ("matthews", [0, 1, 0, 1], [0, 1, 0, 1], 1.0),
        ("matthews", [], [], 0.0),
        ("f1", [0, 0], [0, 0], 0.0),
        ("f1", [1, 1, 0, 0], [1, 0, 1, 0], 0.5),
        ("accuracy", [], [], 0.0),
        ("macro_f1", [0, 0, 0, 1], [0, 0, 1, 2], 0.8 / 3),
    ],
)
def test_metric_closed_form(name: str, found: list[float], labels: list[float], value: float) -> None:
    assert getattr(metrics, name)(found, labels) == pytest.approx(value, abs=1e-12)


def test_metric_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one length"):
        metrics.accuracy([1, 2], [1, 2, 3])


def naive_words(text: str) -> list[str]:
    """SQuAD's normalisation, one character and one word at a time."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    words, word = [], ""
    for c in kept + " ":
        if c.isalnum() or c == "_":
            word += c
        else:
            words += [] if word in ("a", "an", "the") else [word]
            words.append(c)
            word = ""
    return "".join(" " if w in ("a", "an", "the") else w for w in words).split()


def naive_f1(found: str, wanted: str) -> float:
    left, right = naive_words(found), naive_words(wanted)
    rest, shared = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(left), shared / len(right)
    return 2 * precision * recall / (precision + recall)


ANSWERS = [
    "Denver Broncos",
    "the Denver Broncos",
    "Denver  Broncos!",
    "The Broncos, of Denver",
    "an apple a day",
    "a-b c",
    "theatre and another",
    "U.S.A.",
    "usa",
    "",
    "the",
    "42",
    "£42 million — about",
    "x x y",
    "x y y",
    "naïve café",
    "tab\tand\nnewline the end",
]


@pytest.mark.parametrize("found", ANSWERS)
def test_squad_scores_against_naive(found: str) -> None:
    for wanted in ANSWERS:
        assert metrics.squad_f1(found, [wanted]) == pytest.approx(naive_f1(found, wanted), abs=1e-12)
        assert metrics.exact_match(found, [wanted]) == float(naive_words(found) == naive_words(wanted))
    assert metrics.squad_f1(found, ANSWERS) == max(metrics.squad_f1(found, [wanted]) for wanted in ANSWERS)


@pytest.mark.parametrize(
    ("found", "gold", "em", "f1"),
    [
        ("The Denver Broncos.", ["Denver Broncos"], 1.0, 1.0),
        ("Broncos", ["Denver Broncos", "broncos"], 1.0, 1.0),
        ("Broncos of Denver", ["Denver Broncos"], 0.0, 0.8),
        ("Carolina", ["Denver Broncos"], 0.0, 0.0),
        ("", ["the"], 1.0, 0.0),  # equal after normalisation, but without a shared word: as the official script has it
        ("anything", [], 0.0, 0.0),
    ],
)
def test_squad_scores_closed_form(found: str, gold: list[str], em: float, f1: float) -> None:
    assert metrics.exact_match(found, gold) == em
    assert math.isclose(metrics.squad_f1(found, gold), f1, abs_tol=1e-12)
