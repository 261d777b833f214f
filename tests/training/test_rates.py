"""Cosine cycles: the card's ``11 6`` over 17 epochs of 2105 steps, and what a Trainer makes of them."""

from math import cos, pi

import pytest

from prunus.training.rates import cosine_cycles

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
