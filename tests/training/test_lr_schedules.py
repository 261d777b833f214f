"""Cosine cycles: the card's ``11 6`` over 17 epochs of 2105 steps, and what a Trainer makes of them."""

from math import cos, pi

import pytest

from prunus.training.lr_schedules import cosine_cycles, linear_rewinding

EPOCH, TOTAL = 2105, 2105 * 17


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),
        (EPOCH * 11 // 2, 0.5 * (1 + cos(pi * (EPOCH * 11 // 2) / (EPOCH * 11)))),
        (EPOCH * 11 - 1, 0.5 * (1 + cos(pi * (1 - 1 / (EPOCH * 11))))),
        (EPOCH * 11, 1.0),
        (EPOCH * 14, 0.5),
        (TOTAL - 1, 0.5 * (1 + cos(pi * (1 - 1 / (EPOCH * 6))))),
        (TOTAL, 0.0),
    ],
)
def test_the_cards_cycles(step: int, expected: float) -> None:
    assert cosine_cycles(step, TOTAL, 0, (11, 6)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cycles", [(1,), (1, 1, 1), (8, 6, 4, 4, 4, 4), (0.5, 2.5)])
@pytest.mark.parametrize(("total", "warmup"), [(100, 0), (101, 7), (37, 36)])
def test_every_cycle_starts_at_one_and_falls(total: int, warmup: int, cycles: tuple[float, ...]) -> None:
    factors = [cosine_cycles(step, total, warmup, cycles) for step in range(total)]
    assert factors[:warmup] == [step / warmup for step in range(warmup)]
    rest = factors[warmup:]
    restarts = [i for i in range(1, len(rest)) if rest[i] > rest[i - 1]]
    if total - warmup >= len(cycles) * 4:
        assert len(restarts) == len(cycles) - 1
    assert all(rest[i] == 1.0 for i in [0, *restarts])
    assert all(0 <= factor <= 1 for factor in factors)


@pytest.mark.parametrize(
    ("step", "expected"),
    [  # of Prune Once for All: 100,000 steps, warm-up 1,000, masks from 0 to 50,000 every 1,000
        (0, 0.0),
        (500, 0.5),
        (1_000, 50_000 / 49_000),
        (1_999, 49_001 / 49_000),
        (2_000, 50_000 / 49_000),
        (49_999, 49_001 / 49_000),
        (50_000, 50_000 / 49_000),
        (75_000, 25_000 / 49_000),
        (99_999, 1 / 49_000),
        (100_000, 0.0),
    ],
)
def test_prune_once_for_alls_rewinding(step: int, expected: float) -> None:
    assert linear_rewinding(step, 100_000, 1_000, 0, 50_000, 1_000) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("total", "warmup", "begin", "end", "every"), [(100, 5, 10, 60, 10), (97, 0, 7, 50, 9)])
def test_rewinding_returns_to_one_height(total: int, warmup: int, begin: int, end: int, every: int) -> None:
    factors = [linear_rewinding(step, total, warmup, begin, end, every) for step in range(total + 1)]
    tops = [factors[step] for step in range(begin, end, every)]
    assert tops == pytest.approx([tops[0]] * len(tops))
    assert all(a > b for a, b in zip(factors[end:], factors[end + 1 :], strict=False))
    assert factors[begin - 1] > factors[begin] - 1e-9 or begin <= warmup
    assert factors[total] == 0.0
    # without growing masks it is the usual linear schedule
    plain = [linear_rewinding(step, total, warmup, 0, 0, 1) for step in range(total + 1)]
    assert plain == pytest.approx(
        [t / warmup if t < warmup else (total - t) / (total - warmup) for t in range(total + 1)]
    )
