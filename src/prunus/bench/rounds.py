"""Interleaved rounds: all engines take turns in every round, in an order that rotates, so that a drift of the machine's speed
falls on all of them alike; a ratio is taken inside a round, its median over the rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Timing", "Turn", "compare", "timed"]

PAUSE = 0.02
"""Seconds before an engine's turn: the threads of the engine before it stop spinning."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of one engine, and how it stands to the engine it is compared with."""

    median: float
    ratio: float
    """Median over the rounds of (its time / the other's time)."""
    quartiles: tuple[float, float]
    """Of the ratio."""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "ms": round(self.median * 1e3, 4),
            "ratio": round(self.ratio, 3),
            "quartiles": [round(q, 3) for q in self.quartiles],
        }


Turn = Callable[[int], Sequence[float]]
"""Calls an engine so many times; the seconds of each call."""


def timed(call: Callable[[], object]) -> Turn:
    """A turn of a plain function."""

    def turn(repeats: int) -> list[float]:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return times

    return turn


def compare(
    turns: Mapping[str, Turn],
    against: str,
    rounds: int = 15,
    seconds: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Times engines against one of them.

    Args:
        turns: by name, each ready to be called.
        against: the name that ratios are taken with.
        rounds: how many.
        seconds: about how long a turn is; a turn calls at least three times, after one call that does not count.
        progress: called with (done, rounds).

    """
    names = list(turns)
    repeats = {}
    for name in names:
        turns[name](1)
        repeats[name] = int(np.clip(seconds / max(turns[name](1)[0], 1e-6), 3, 200))
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(PAUSE)
            turns[name](1)
            times[name].append(float(np.median(turns[name](repeats[name]))))
        if progress is not None:
            progress(number + 1, rounds)
    base = np.array(times[against])
    medians = {}
    for name in names:
        ratios = np.array(times[name]) / base
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        medians[name] = Timing(float(np.median(times[name])), float(middle), (float(low), float(high)))
    return medians
