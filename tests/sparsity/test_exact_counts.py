"""Every pattern x criterion x schedule x scope, with regrowth and without: the zeros counted are the zeros asked for.

One test for each pattern and scope runs all the rest; the assertion names the combination.
"""

from itertools import product
from typing import Literal

import pytest
import torch
from tiny import FIRST, SECOND, prune, two_layers
from torch import Tensor

from prunus.sparsity import Allocation, Pruning, Schedule, Span
from prunus.sparsity.criteria import CRITERIA
from prunus.sparsity.schedules import KINDS

SPARSITY = 0.43
# pattern: (rows, columns) of a unit, None for all; zeros in a pruned unit (None for all of it)
CELLS: dict[str, tuple[int | None, int | None, int | None]] = {
    "1x1": (1, 1, None),
    "4x1": (4, 1, None),
    "1x4": (1, 4, None),
    "8x1": (8, 1, None),
    "32x32": (32, 32, None),
    "2:4": (1, 4, 2),
    "4:8": (1, 8, 4),
    "1:4": (1, 4, 3),
    "rows": (1, None, None),
    "columns": (None, 1, None),
}


def unit_zeros(weight: Tensor, pattern: str) -> Tensor:
    """Number of zeros in each unit, by slicing."""
    rows, columns, _ = CELLS[pattern]
    rows, columns = rows or weight.shape[0], columns or weight.shape[1]
    zero = (weight == 0).int()
    counts = torch.zeros(weight.shape[0] // rows, weight.shape[1] // columns, dtype=torch.int)
    for row, column in product(range(rows), range(columns)):
        counts += zero[row::rows, column::columns]
    return counts


def share(pattern: str, size: int) -> int:
    """Zeros in a pruned unit of ``size`` weights."""
    return CELLS[pattern][2] or size


def whole_units(pattern: str, percent: int, units: int, size: int) -> int:
    """Zeros of the most units that do not exceed ``percent`` of the weights, in whole numbers."""
    full = share(pattern, size)
    return percent * units * size // (100 * full) * full


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("pattern", CELLS)
def test_the_zeros_asked_for_are_the_zeros_counted(pattern: str, scope: Literal["tensor", "global"]) -> None:
    # Three events at steps 1, 2, 3 of 4; one_shot has the first of them alone.
    for criterion, kind, revive in product(CRITERIA, KINDS, (False, True)):
        if ":" in pattern and CRITERIA[criterion].of_units:
            continue  # refused: test_structures.py
        case = f"{pattern} {criterion} {kind} {scope} revive={revive}"
        model = two_layers()
        schedule = Schedule(kind, Span(1), end=None if kind == "one_shot" else Span(3), every=Span(1))
        if kind == "multistep":
            schedule = Schedule(kind, Span(1), boundaries=(Span(2), Span(3)), levels=(0.25, 0.5, 1.0))
        allocation = Allocation(scope, max_per_tensor=1.0)
        masker = prune(model, Pruning(SPARSITY, pattern, criterion, schedule, allocation, revive=revive), 4)
        facts = {fact.name: fact for fact in masker.finish(model)}

        found, units, size = {}, {}, {}
        for name in (FIRST, SECOND):
            weight = model.get_parameter(name).detach()
            counts = unit_zeros(weight, pattern)
            units[name], size[name] = counts.numel(), weight.numel() // counts.numel()
            full = share(pattern, size[name])
            assert set(counts.flatten().tolist()) <= {0, full}, f"{case}: broken units in {name}"
            found[name] = int((weight == 0).sum())
            assert found[name] == facts[name].zeros == masker.planned[name], case
            assert int((counts == full).sum()) == facts[name].zero_units, case

        percent = round(100 * SPARSITY)
        if scope == "tensor":
            expected = {name: whole_units(pattern, percent, units[name], size[name]) for name in units}
            assert found == expected, case
        elif size[FIRST] == size[SECOND]:
            assert sum(found.values()) == whole_units(pattern, percent, sum(units.values()), size[FIRST]), case
        else:  # rows and columns of unequal size: as many weights as whole units in order of score can make up
            asked = percent * sum(units[name] * size[name] for name in units) // 100
            assert asked - max(size.values()) < sum(found.values()) <= asked, case


def test_a_tensor_of_equal_weights_loses_exactly_the_share_asked_for() -> None:
    # A threshold takes all ties: Intel Neural Compressor 2.6 and MCR empty this layer.
    model = two_layers()
    with torch.no_grad():
        model.get_parameter(FIRST).fill_(0.5)
        model.get_parameter(SECOND).fill_(-0.5)
    prune_at_start = Schedule("one_shot", Span(0))
    facts = prune(model, Pruning(0.1, "1x1", "magnitude", prune_at_start), 1).measure(model)
    assert [fact.zeros for fact in facts] == [409, 0]  # 4096 weights in all; the first by position go
