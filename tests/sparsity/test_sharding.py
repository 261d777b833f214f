"""Sharding in one process does nothing; what falls to a process of several, without starting them (see tests/distributed)."""

import pytest
import torch
from tiny import FIRST, two_layers

from prunus.sparsity import parse_pattern
from prunus.sparsity.selection import Cut
from prunus.sparsity.sharding import SINGLE, Shard, cut_here, kth_smallest, norm, rows_here, shards_of, size, units_here


def test_one_process_sums_gathers_and_has_everything() -> None:
    values = torch.arange(12.0).reshape(4, 3)
    assert SINGLE.single
    assert SINGLE.sum(values) is values
    assert SINGLE.gather(values) is values
    assert SINGLE.offset(4) == 0
    assert size(SINGLE, values) == 12
    assert kth_smallest(SINGLE, [values, values + 0.5], 3) == 1.0
    assert norm(SINGLE, values).item() == pytest.approx(506**0.5)
    assert cut_here(SINGLE, values, Cut(3, 2.0)) == Cut(3, 2.0)
    sharding, shards = shards_of({FIRST: two_layers().get_parameter(FIRST)}, {FIRST: parse_pattern("columns")})
    assert sharding is SINGLE
    assert shards[FIRST] == Shard(parse_pattern("columns"), (64, 32), 0, 64, False, True)


@pytest.mark.parametrize(
    ("pattern", "shard", "rows", "units"),
    [
        ("1x1", (4, 4, False, True), [4, 5, 6, 7], [4, 5, 6, 7]),
        ("2:4", (4, 4, False, True), [4, 5, 6, 7], [4, 5, 6, 7]),
        ("4x1", (4, 4, False, True), [4, 5, 6, 7], [1]),
        (
            "4x1",
            (0, 6, True, True),
            [0, 1, 2, 3, 4, 5],
            [0, 1, 2],
        ),  # a block across the boundary: all belong to the first
        ("4x1", (6, 6, True, False), [6, 7, 8, 9, 10, 11], []),
        ("columns", (0, 6, True, True), [0, 1, 2, 3, 4, 5], [0]),
        ("columns", (6, 6, True, False), [6, 7, 8, 9, 10, 11], []),
    ],
)
def test_rows_and_units_of_a_process(
    pattern: str, shard: tuple[int, int, bool, bool], rows: list[int], units: list[int]
) -> None:
    here, shape = parse_pattern(pattern), (12, 8)
    grid = shape if here.needs_element_scores else here.units(shape)
    part = Shard(here, shape, *shard)
    weights, scores = (torch.arange(n)[:, None].expand(n, 8) for n in (12, grid[0]))
    assert rows_here(part, weights)[:, 0].tolist() == rows
    assert units_here(part, scores)[:, 0].tolist() == units
