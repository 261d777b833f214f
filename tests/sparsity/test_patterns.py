"""Patterns against loops over the weights of every unit."""

from itertools import product

import numpy as np
import pytest
import torch
from tiny import Layers
from torch import Tensor

from prunus.errors import TargetError
from prunus.sparsity import Block, Columns, NofM, Pattern, Rows, Unstructured, parse_pattern
from prunus.sparsity.measure import all_sparsity, measure, sparsity_of, zero_units
from prunus.sparsity.patterns import Reduce

SHAPE = (64, 96)
REDUCTIONS: tuple[Reduce, ...] = ("mean", "sum", "max")
BLOCKS = {
    "1x1": (1, 1),
    "4x1": (4, 1),
    "1x4": (1, 4),
    "8x1": (8, 1),
    "32x32": (32, 32),
    "rows": (1, 96),
    "columns": (64, 1),
}
GROUPS = {"2:4": (2, 4), "4:8": (4, 8), "1:4": (1, 4), "3:4": (3, 4), "1:2": (1, 2), "5:32": (5, 32)}


def scores(seed: int = 0, shape: tuple[int, int] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reduced(values: np.ndarray, reduce: Reduce) -> float:
    return {"mean": float(values.mean()), "sum": float(values.sum()), "max": float(values.max())}[reduce]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_pool_and_expand(name: str, reduce: Reduce) -> None:
    pattern, (rows, columns) = parse_pattern(name), BLOCKS[name]
    score = scores()
    grid = (SHAPE[0] // rows, SHAPE[1] // columns)
    assert pattern.units(SHAPE) == grid
    assert pattern.zeros_per_unit(SHAPE) == rows * columns
    pooled = pattern.pool(score, reduce)
    keep = scores(1, grid) > 0
    mask = pattern.expand(keep, SHAPE)
    assert pooled.shape == grid
    assert mask.shape == SHAPE
    for i, j in product(range(grid[0]), range(grid[1])):
        unit = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
        assert float(pooled[i, j]) == pytest.approx(reduced(score[unit].numpy(), reduce), abs=1e-12)
        assert (mask[unit] == keep[i, j]).all()


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", GROUPS)
def test_groups_pool_the_weights_they_would_lose(name: str, reduce: Reduce) -> None:
    pattern, (n, m) = parse_pattern(name), GROUPS[name]
    score = scores()
    grid = (SHAPE[0], SHAPE[1] // m)
    assert pattern.units(SHAPE) == grid
    assert pattern.zeros_per_unit(SHAPE) == m - n
    assert pattern.max_sparsity == (m - n) / m
    pooled = pattern.pool(score, reduce)
    keep = scores(1, grid) > 0
    mask = pattern.expand(keep, SHAPE, score)
    for i, j in product(range(grid[0]), range(grid[1])):
        group = score[i, j * m : (j + 1) * m].numpy()
        lost = np.argsort(group, kind="stable")[: m - n]
        value = group[lost].sum() / m if reduce == "mean" else reduced(group[lost], reduce)
        assert float(pooled[i, j]) == pytest.approx(value, abs=1e-12)
        expected = np.ones(m, dtype=bool)
        expected[lost] = keep[i, j].item()
        assert (mask[i, j * m : (j + 1) * m].numpy() == expected).all()


def test_the_axes_are_outputs_by_inputs() -> None:
    # Spelt out once: 4x1 is 4 outputs of one input, a column of 4 in torch's [out, in]; 1x4 is a row of 4.
    keep = torch.tensor([[False, True], [True, True]])
    tall = parse_pattern("4x1").expand(keep, (8, 2))
    assert tall[:, 0].tolist() == [False] * 4 + [True] * 4
    assert tall[:, 1].all()
    wide = parse_pattern("1x4").expand(keep, (2, 8))
    assert wide[0].tolist() == [False] * 4 + [True] * 4
    assert wide[1].all()
    assert (~parse_pattern("rows").expand(torch.tensor([[False], [True]]), (2, 3))).tolist() == [
        [True] * 3,
        [False] * 3,
    ]


@pytest.mark.parametrize("name", GROUPS)
def test_among_equal_scores_the_first_go(name: str) -> None:
    pattern, (n, m) = parse_pattern(name), GROUPS[name]
    score = (2 * scores()).round().clamp(-1, 1).masked_fill(scores(1) < -1, -torch.inf)  # four values
    mask = pattern.expand(torch.zeros(SHAPE[0], SHAPE[1] // m, dtype=torch.bool), SHAPE, score)
    order = np.argsort(score.numpy().reshape(-1, m), axis=1, kind="stable")[:, : m - n]
    expected = np.ones((SHAPE[0] * SHAPE[1] // m, m), dtype=bool)
    np.put_along_axis(expected, order, False, axis=1)
    assert (mask.numpy().reshape(-1, m) == expected).all()


@pytest.mark.parametrize("name", GROUPS)
def test_equal_scores_lose_exactly_m_minus_n(name: str) -> None:
    # INC 2.6 compares with the n-th smallest and so prunes whole groups of equal scores.
    n, m = GROUPS[name]
    mask = NofM(n, m).expand(torch.zeros(3, 2, dtype=torch.bool), (3, 2 * m), torch.ones(3, 2 * m))
    assert (mask.reshape(3, 2, m).sum(-1) == n).all()


def test_a_group_mask_needs_scores() -> None:
    with pytest.raises(ValueError, match="needs the score of each weight"):
        NofM(2, 4).expand(torch.zeros(1, 1, dtype=torch.bool), (1, 4))


@pytest.mark.parametrize(
    ("text", "pattern", "shown"),
    [
        ("unstructured", Unstructured(), "1x1"),
        ("1x1", Block(1, 1), "1x1"),
        ("4x1", Block(4, 1), "4x1"),
        ("1x4", Block(1, 4), "1x4"),
        ("32x32", Block(32, 32), "32x32"),
        ("rows", Rows(), "rows"),
        ("columns", Columns(), "columns"),
        ("2:4", NofM(2, 4), "2:4"),
        ("1:16", NofM(1, 16), "1:16"),
    ],
)
def test_parse(text: str, pattern: Pattern, shown: str) -> None:
    assert parse_pattern(text) == pattern
    assert str(pattern) == shown
    assert parse_pattern(shown) == pattern


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "x4", "4*1", "4X1", "-4x1", "4x1x1", "2/4", "0x1", "4x0", "0:4", "4:4", "5:4", "row"]
)
def test_bad_patterns_name_key_value_and_fix(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_pattern(text, "prune[0].pattern")
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("prune[0].pattern", text)
    assert problem.fix


@pytest.mark.parametrize(
    ("name", "shape", "misfit"),
    [
        ("4x1", (766, 768), "766 % 4 = 2"),
        ("4x1", (768, 766), None),
        ("1x4", (766, 768), None),
        ("1x4", (768, 766), "766 % 4 = 2"),
        ("32x32", (64, 48), "48 % 32 = 16"),
        ("2:4", (7, 8), None),
        ("2:4", (8, 7), "7 % 4 = 3"),
        ("rows", (7, 5), None),
        ("columns", (7, 5), None),
        ("1x1", (7, 5), None),
    ],
)
def test_misfit(name: str, shape: tuple[int, int], misfit: str | None) -> None:
    assert parse_pattern(name).misfit(shape) == misfit


@pytest.mark.parametrize("name", [*BLOCKS, *GROUPS])
def test_zero_units_are_counted_from_the_weights(name: str) -> None:
    pattern = parse_pattern(name)
    weight = scores(2).float()
    grid = pattern.units(SHAPE)
    keep = (scores(3, grid) > 0.3).bool()
    weight *= pattern.expand(keep, SHAPE, weight)
    assert zero_units(weight, pattern) == int((~keep).sum()) > 0
    weight[weight == 0] = -0.0
    assert zero_units(weight, pattern) == int((~keep).sum())
    place = (weight == 0).nonzero()[0]
    weight[place[0], place[1]] = 1e-30  # one weight that is not zero breaks one unit
    assert zero_units(weight, pattern) == int((~keep).sum()) - 1


@pytest.mark.parametrize("size", [*range(1, 130), 1000, 3072, 4096])
def test_rows_of_any_length_are_recognised(size: int) -> None:
    weight = torch.ones(3, size)
    weight[1] = 0
    assert zero_units(weight, Rows()) == 1
    assert zero_units(weight.t(), Columns()) == 1


def test_measure() -> None:
    model = Layers(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        model.get_parameter("0.weight")[:4, :2] = 0
        model.get_parameter("1.weight")[0, 0] = 0
        model.get_parameter("0.bias")[0] = 0
    first, second = facts = measure(model, {"0.weight": Block(4, 1), "1.weight": Block(4, 1)})
    assert (first.shape, first.pattern, first.weights, first.zeros) == ((8, 4), "4x1", 32, 8)
    assert (first.units, first.zero_units, first.sparsity) == (8, 2, 0.25)
    assert (second.zeros, second.units, second.zero_units) == (1, 8, 0)
    assert sparsity_of(facts) == 9 / 64
    assert sparsity_of([]) == 0
    assert all_sparsity(model) == 10 / 76
    assert all_sparsity(torch.nn.Module()) == 0
