"""Selection against a sort: the k-th smallest, and exactly k places, whatever ties."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.sparsity.selection import SMALL, Cut, count_of, cut_lowest, kept, kth_smallest

VALUES = st.one_of(
    st.sampled_from([-np.inf, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0]),  # so that ties and -inf come up
    st.floats(-100, 100, width=32),
)
BRACKETED = (1 << 18) + 12_345  # more scores than are selected from directly


def reference(parts: list[Tensor], k: int) -> float:
    return float(np.sort(np.concatenate([part.double().numpy().ravel() for part in parts]))[k - 1])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=40), min_size=1, max_size=4), st.data())
def test_kth_smallest_is_that_of_a_sort(parts: list[list[float]], data: st.DataObject) -> None:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    k = data.draw(st.integers(1, sum(len(part) for part in parts)))
    assert kth_smallest(tensors, k) == reference(tensors, k)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=60), st.data())
def test_kept_spares_exactly_n_minus_k_and_ties_go_by_position(values: list[float], data: st.DataObject) -> None:
    score = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(0, len(values)))
    expected = np.ones(len(values), dtype=bool)
    expected[np.argsort(np.array(values, dtype=np.float32), kind="stable")[:k]] = False
    assert kept(score, cut_lowest(score, k)).tolist() == expected.tolist()


def make(kind: str, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(n, generator=generator)
    match kind:
        case "equal":
            return torch.full((n,), 0.25)
        case "few values":
            return (normal * 2).round()
        case "mostly -inf":
            return normal.masked_fill(normal < 1, -torch.inf)
        case "half zero":
            return normal.clamp_min(0)
        case "sorted":
            return normal.sort().values
        case "heavy tails":
            return normal**9
        case "negative":
            return -normal.abs() - 1
    return normal


@pytest.mark.parametrize("kind", ["normal", "equal", "few values", "mostly -inf", "half zero", "sorted", "heavy tails"])
def test_kth_smallest_of_many(kind: str) -> None:
    score = make(kind, BRACKETED)
    order = score.sort().values
    for k in (1, 2, 1000, BRACKETED // 3, BRACKETED // 2, int(0.8 * BRACKETED), BRACKETED - 1, BRACKETED):
        assert kth_smallest([score], k) == float(order[k - 1]), (kind, k)


@pytest.mark.parametrize("kind", ["normal", "equal", "few values", "mostly -inf", "negative"])
def test_kth_smallest_over_tensors_of_very_different_size(kind: str) -> None:
    score = make(kind, BRACKETED)
    # A last tensor far from the rest, which a sample with a stride hardly meets.
    parts = [score[:100_000].reshape(100, 1000), score[100_000:-7], score[-7:] * 50]
    order = torch.cat([part.flatten() for part in parts]).sort().values
    for k in (1, 3, BRACKETED // 2, BRACKETED - 3, BRACKETED):
        assert kth_smallest(parts, k) == float(order[k - 1]), (kind, k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1000, BRACKETED])
def test_every_float_type(dtype: torch.dtype, n: int) -> None:
    score = make("normal", n).to(dtype)  # half precision has few values, so ties are everywhere
    for k in (1, n // 5, int(0.9 * n)):
        cut = cut_lowest(score, k)
        assert cut.threshold == float(score.double().sort().values[k - 1])
        keep = kept(score, cut)
        assert int((~keep).sum()) == k
        assert score[~keep].max() <= score[keep].min()


def test_ties_go_by_position_in_a_matrix_that_is_not_contiguous() -> None:
    score = torch.zeros(3, 2).t()  # [2, 3] in column order in memory; positions count along the rows all the same
    assert kept(score, cut_lowest(score, 4)).tolist() == [[False, False, False], [False, True, True]]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("n", [100, 1003, BRACKETED])
def test_equal_scores_lose_exactly_the_share(share: float, n: int) -> None:
    k = count_of(share, n)
    assert int((~kept(torch.full((n,), 0.7), cut_lowest(torch.full((n,), 0.7), k))).sum()) == k


@pytest.mark.parametrize(
    ("fraction", "n", "expected"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.1, 4096, 409),
        (0.8, 5, 4),
        (0.0, 7, 0),
        (1.0, 7, 7),
        (0.999, 7, 6),
        (0.7, 10, 7),
    ],
)
def test_count_of_is_a_floor_that_forgives_the_rounding_of_floats(fraction: float, n: int, expected: int) -> None:
    assert count_of(fraction, n) == expected


@pytest.mark.parametrize("k", [0, 5, -1])
def test_kth_smallest_refuses_ranks_that_are_not_there(k: int) -> None:
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4"):
        kth_smallest([torch.zeros(4)], k)


def test_nothing_to_cut_keeps_all() -> None:
    assert cut_lowest(torch.ones(3), 0) == Cut(0, -torch.inf)
    assert kept(torch.full((3,), -torch.inf), Cut(0, -torch.inf)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda n, draw: np.where(np.arange(n) < 0.8 * n, -np.inf, draw.normal(size=n)),  # as masked scores are
        lambda n, draw: np.where(np.arange(n) % 10 < 8, 1.0, draw.normal(size=n)),
        lambda n, draw: draw.integers(0, 7, n),
        lambda n, draw: np.zeros(n),
        lambda n, draw: np.sort(draw.normal(size=n)),
    ],
    ids=["masked", "ties in the middle", "seven values", "one value", "sorted"],
)
def test_the_kth_of_many_scores_with_ties(make: Callable[[int, np.random.Generator], Any]) -> None:
    n = 2 * SMALL
    values = make(n, np.random.default_rng(0)).astype(np.float32)
    expected = np.sort(values)
    parts = [torch.from_numpy(part.copy()) for part in np.split(values, [n // 3])]
    edges = np.flatnonzero(expected[1:] != expected[:-1])[:20] + 1
    for k in {1, 2, n // 2, int(0.8 * n), int(0.8 * n) + 1, n - 1, n, *edges.tolist(), *(edges + 1).tolist()}:
        assert kth_smallest(parts, k) == expected[k - 1]
