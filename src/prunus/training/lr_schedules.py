"""Learning rate schedules that transformers does not have, as factors of the base rate.

    cosine_cycles        cycles of unequal length c_1 : c_2 : ...; in each, 1/2 (1 + cos(pi x)), x from 0 to 1; then a restart
    linear_rewinding     while sparsity grows, the same short fall again and again from one height; then linear to 0

Cycle i ends at the step floor(T * (c_1 + ... + c_i) / (c_1 + ... + c_n)) of the T steps after the warm-up, which is linear.

Rewinding gives the weights that are left after each mask update the rate that those before had. With masks growing from step
p0 to p1 every k steps, N steps in all, P = p1 - p0 and D = max(1, N - P - warmup), the factor at step t is

    t / warmup                                          t < warmup
    (N - P - t + k floor((t - p0) / k)) / D             p0 <= t < p1
    (N - (P if t < p0 else 0) - t) / D                  elsewhere; never below 0

which is the schedule of Intel's Model-Compression-Research-Package for Prune Once for All.
"""

from collections.abc import Sequence
from math import cos, floor, pi

__all__ = ["cosine_cycles", "linear_rewinding"]


def cosine_cycles(step: int, total: int, warmup: int, cycles: Sequence[float]) -> float:
    """The factor for optimizer step ``step`` (0 is the first) of ``total``."""
    if step < warmup:
        return step / max(1, warmup)
    length, step = max(1, total - warmup), step - warmup
    begin, done, whole = 0, 0.0, sum(cycles)
    for share in cycles:
        done += share
        end = floor(length * done / whole + 1e-9)
        if step < end:
            return 0.5 * (1 + cos(pi * (step - begin) / (end - begin)))
        begin = end
    return 0.0


def linear_rewinding(step: int, total: int, warmup: int, begin: int, end: int, every: int) -> float:
    """The factor for optimizer step ``step`` of ``total``; masks grow every ``every`` steps from ``begin`` to ``end``."""
    if step < warmup:
        return step / max(1, warmup)
    growing = end - begin
    left = total - step
    if begin <= step < end:
        left += (step - begin) // every * every - growing
    elif step < begin:
        left -= growing
    return max(0.0, left / max(1, total - growing - warmup))
