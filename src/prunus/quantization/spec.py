"""What is quantized, and how: the ``quantize:`` block of a recipe."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from prunus.errors import Problem, nearest

__all__ = ["Quantization"]

Mode = Literal["mixed", "symmetric"]
Estimator = Literal["min_max", "mean_min_max", "percentile"]
_MODES: Final = get_args(Mode)
_ESTIMATORS: Final = get_args(Estimator)


@dataclass(frozen=True)
class Quantization:
    """8-bit weights and activations of the Linear layers, trained as such.

    Weights are symmetric, a range per output; activations have a range per tensor. What stays in float: softmax, layer
    normalization, residual sums, attention weights times values, embeddings unless asked for.
    """

    mode: Mode = "mixed"
    """`mixed` gives activations a zero point; `symmetric` does not."""
    ranges: Estimator = "mean_min_max"
    """How the first quantization ranges are estimated from samples. Training then learns them."""
    samples: int = 300
    """Training examples for the first ranges."""
    overflow_fix: bool = False
    """7-bit weights, for processors whose byte products saturate at 16 bits (AVX2 without VNNI)."""
    attention: bool = True
    """Quantizes the outputs of query and key too (symmetric), so that their product runs on bytes."""
    embeddings: bool = False
    """Quantizes embedding tables too, with one range per row."""
    exclude: tuple[str, ...] = ()
    """Regular expressions on the names of modules that stay in float."""

    def problems(self, key: str = "quantize") -> list[Problem]:
        """Values out of range."""
        problems = []
        if self.mode not in _MODES:
            problems.append(Problem(f"{key}.mode", self.mode, "be mixed or symmetric", nearest(self.mode, _MODES)))
        if self.ranges not in _ESTIMATORS:
            rule = "be one of " + ", ".join(_ESTIMATORS)
            problems.append(Problem(f"{key}.ranges", self.ranges, rule, nearest(self.ranges, _ESTIMATORS)))
        if self.samples < 1:
            problems.append(Problem(f"{key}.samples", self.samples, "be at least 1", "300"))
        for i, regex in enumerate(self.exclude):
            try:
                re.compile(regex)
            except re.error as error:
                problems.append(
                    Problem(f"{key}.exclude[{i}]", regex, f"be a regular expression ({error})", "'classifier'")
                )
        return problems
