"""Hidden states and attention maps against loops in float64."""

from math import isclose, sqrt
from typing import Any

import pytest
import torch

from prunus.distillation.hidden import Inside, attention_loss, hidden_loss, pairs_of, projectors
from prunus.errors import TargetError

DRAW = torch.Generator().manual_seed(0)
ATTENDED = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()


def reference_hidden(s: torch.Tensor, t: torch.Tensor, loss: str) -> float:
    total, count = 0.0, 0
    for row in range(3):
        for token in range(4):
            if not ATTENDED[row, token]:
                continue
            a, b = s[row, token].double().tolist(), t[row, token].double().tolist()
            if loss == "mse":
                total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
            else:
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                total += 1 - dot / sqrt(sum(x * x for x in a) * sum(y * y for y in b))
            count += 1
    return total / count


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_states_of_attended_tokens(loss: Any) -> None:
    s, t = torch.randn(3, 4, 8, generator=DRAW), torch.randn(3, 4, 8, generator=DRAW)
    assert isclose(float(hidden_loss(s, t, ATTENDED, loss)), reference_hidden(s, t, loss), rel_tol=1e-5)
    s[~ATTENDED] = torch.nan  # what is padding does not count
    assert isclose(float(hidden_loss(s, t, ATTENDED, loss)), reference_hidden(s, t, loss), rel_tol=1e-5)
    assert float(hidden_loss(t, t, ATTENDED, loss)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("heads", [(2, 2), (2, 6)])
def test_maps_of_attended_pairs(heads: tuple[int, int]) -> None:
    s, t = (torch.rand(3, h, 4, 4, generator=DRAW) for h in heads)
    a, b = s.double(), t.double()
    if heads[0] != heads[1]:
        a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    total, count = 0.0, 0
    for row in range(3):
        for head in range(a.shape[1]):
            for i in range(4):
                for j in range(4):
                    if ATTENDED[row, i] and ATTENDED[row, j]:
                        total, count = total + float((a[row, head, i, j] - b[row, head, i, j]) ** 2), count + 1
    assert isclose(float(attention_loss(s, t, ATTENDED)), total / count, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "first", "expected"),
    [
        ("last", 6, 12, 0, [(6, 12)]),
        ("uniform", 4, 12, 0, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT's m -> 3 m
        ("uniform", 4, 12, 1, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("uniform", 2, 2, 0, [(0, 0), (1, 1), (2, 2)]),
        ("uniform", 6, 2, 1, [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]),  # there is no map 0
        ([[1, 2], [2, 4]], 2, 4, 0, [(1, 2), (2, 4)]),
    ],
)
def test_pairs(layers: Any, student: int, teacher: int, first: int, expected: list[tuple[int, int]]) -> None:
    inside = Inside(1.0, layers) if isinstance(layers, str) else Inside(1.0, pairs=tuple(map(tuple, layers)))
    assert pairs_of(inside, student, teacher, first) == expected


@pytest.mark.parametrize(("pair", "first"), [((3, 1), 0), ((1, 5), 0), ((0, 1), 1)])
def test_layers_that_are_not_there(pair: tuple[int, int], first: int) -> None:
    with pytest.raises(TargetError, match=rf"be in {first}\.\.2 of the student and {first}\.\.4 of the teacher"):
        pairs_of(Inside(1.0, pairs=(pair,)), 2, 4, first)


def test_projectors_begin_with_what_is_there() -> None:
    assert len(projectors([(1, 1)], 8, 8)) == 0
    held = projectors([(1, 2), (2, 4)], 3, 5)
    assert list(held) == ["1-2", "2-4"]
    x = torch.randn(2, 3, generator=DRAW)
    assert torch.equal(held["1-2"](x), torch.cat([x, torch.zeros(2, 2)], 1))
    assert torch.equal(projectors([(0, 0)], 5, 3)["0-0"](torch.arange(5.0)), torch.arange(3.0))


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        (Inside(-1.0), "weight"),
        (Inside(1.0, "first"), "layers"),  # type: ignore[arg-type]
        (Inside(1.0, pairs=((1, -2),)), "pairs"),
        (Inside(1.0, pairs=((1, 2, 3),)), "pairs"),
        (Inside(1.0, loss="l1"), "loss"),  # type: ignore[arg-type]
    ],
)
def test_mistakes(inside: Inside, told: str) -> None:
    assert [problem.key for problem in inside.problems("distill.hidden")] == [f"distill.hidden.{told}"]
    assert Inside(1.0, "uniform", loss="cosine").problems("x") == []
