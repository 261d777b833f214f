"""Official metrics of GLUE and SQuAD v1.1, in float64; all are fractions in [0, 1] or correlations in [-1, 1].

With tp, fp, fn, tn of class 1, confusion matrix C and centred vectors x, y:

    f1        2 tp / (2 tp + fp + fn)
    matthews  (c s - t.p) / sqrt((s^2 - p.p) (s^2 - t.t)),   c = trace C, s = sum C, t and p its row and column sums
    pearson   x.y / (|x| |y|)
    spearman  pearson of the ranks; equal values share the mean of their ranks

Where a denominator is zero (constant predictions, an empty class) the metric is 0.0. Official tables show percents,
which are these numbers x 100. Sources: GLUE (Wang et al. 2018, table 1); Gorodkin 2004 for matthews with more than two
classes; SQuAD v1.1 (Rajpurkar et al. 2016, section 6.1).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "accuracy",
    "exact_match",
    "f1",
    "macro_f1",
    "matthews",
    "normalise_answer",
    "pearson",
    "spearman",
    "squad_f1",
]

_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")


def _pair(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    predicted, wanted = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise ValueError(f"predictions {predicted.shape} and labels {wanted.shape} must be two vectors of one length")
    return predicted, wanted


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of equal entries of two vectors of class ids ``[n]``; 0.0 for n = 0."""
    predicted, wanted = _pair(predictions, labels)
    return float((predicted == wanted).mean()) if predicted.size else 0.0


def f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """F1 of class 1, from class ids ``[n]``."""
    predicted, wanted = _pair(predictions, labels)
    return _class_f1(predicted, wanted, 1)


def macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean of the F1 of each class that occurs in the predictions or in the labels ``[n]``."""
    predicted, wanted = _pair(predictions, labels)
    classes = np.union1d(predicted, wanted)
    return float(np.mean([_class_f1(predicted, wanted, c) for c in classes])) if classes.size else 0.0


def _class_f1(predicted: NDArray[Any], wanted: NDArray[Any], c: int) -> float:
    hits = int(((predicted == c) & (wanted == c)).sum())
    total = int((predicted == c).sum()) + int((wanted == c).sum())
    return 2.0 * hits / total if total else 0.0


def matthews(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Matthews correlation of class ids ``[n]``, for two or more classes."""
    got, wanted = _pair(predictions, labels)
    classes, ids = np.unique(np.concatenate([got, wanted]), return_inverse=True)
    n = len(got)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.float64)
    np.add.at(confusion, (ids[n:], ids[:n]), 1.0)
    true, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float((np.trace(confusion) * total - true @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Pearson correlation of two vectors ``[n]``; 0.0 where one of them is constant."""
    predicted, wanted = _pair(predictions, labels)
    x, y = predicted.astype(np.float64), wanted.astype(np.float64)
    # A constant is recognised before it is centred: its mean may be off by one rounding, and noise would correlate.
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1.0, 1.0))


def spearman(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Spearman correlation of two vectors ``[n]``: Pearson of the ranks, equal values sharing their mean rank."""
    predicted, wanted = _pair(predictions, labels)
    return pearson(_ranks(predicted), _ranks(wanted))


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, ids, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2.0
    return mean_rank[ids]


def normalise_answer(text: str) -> str:
    """An answer as SQuAD v1.1 compares it: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the normalised answers, else 0.0."""
    predicted = normalise_answer(prediction)
    return float(any(predicted == normalise_answer(answer) for answer in answers))


def squad_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the normalised words, as multisets, maximised over the answers; 0.0 where no word is shared."""
    predicted = Counter(normalise_answer(prediction).split())
    best = 0.0
    for answer in answers:
        wanted = Counter(normalise_answer(answer).split())
        shared = (predicted & wanted).total()
        if shared:
            best = max(best, 2.0 * shared / (predicted.total() + wanted.total()))
    return best
