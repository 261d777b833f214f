"""Learning rates that transformers does not have, as factors of the base rate.

    cosine_cycles    cycles of unequal length c_1 : c_2 : ...; in each, 1/2 (1 + cos(pi x)), x from 0 to 1; then a hard restart

Cycle i ends at the step floor(T * (c_1 + ... + c_i) / (c_1 + ... + c_n)) of the T steps after the warm-up, which is linear.
"""

from collections.abc import Sequence
from math import cos, floor, pi

__all__ = ["cosine_cycles"]


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
