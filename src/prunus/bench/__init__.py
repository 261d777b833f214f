"""Side by side: this runtime and every other engine that is installed, on the same inputs, in the same rounds.

ratio = median over the rounds of (time of the other engine / time of prunus)
"""

from prunus.bench.rounds import Timing, Turn, compare, timed

__all__ = ["Timing", "Turn", "compare", "timed"]
