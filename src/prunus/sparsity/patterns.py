"""Patterns: which weights live or die together.

A pattern cuts a weight ``[out, in]`` into equal *units*, the smallest things that a pruning step takes or keeps.

    pool     score [out, in] -> score of each unit [rows, columns]
    expand   keep  [rows, columns] (True = kept) -> mask [out, in] (True = kept)

===============  =====================================  ==========================  =================
pattern          a unit                                 units of ``[out, in]``      zeros in a unit
===============  =====================================  ==========================  =================
``1x1``          one weight (also ``unstructured``)     ``[out, in]``               1
``RxC``          R consecutive outputs x C inputs       ``[out/R, in/C]``           R * C
``N:M``          M consecutive inputs of one output     ``[out, in/M]``             M - N (N are kept)
``rows``         one output with all its inputs         ``[out, 1]``                in
``columns``      one input with all its outputs         ``[1, in]``                 out
``*xC``          C consecutive inputs with all outputs  ``[1, in/C]``               out * C
===============  =====================================  ==========================  =================

Axes are those of ``torch.nn.Linear.weight``: ``4x1`` is 4 consecutive outputs x 1 input, the convention of Intel Neural
Compressor. Intel's "1x4" checkpoints, whose configuration counts ``(in, out)``, hold the same blocks.

An N:M unit that is pruned keeps its N highest scores; one that is not yet pruned stays dense, so that a gradual run passes
through mixtures and ends with every unit N:M (as in Intel Neural Compressor 2.x, except that exactly M - N weights go).
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from prunus.errors import Problem, TargetError

__all__ = ["Block", "Columns", "NofM", "Pattern", "Reduce", "Rows", "Unstructured", "parse_pattern"]

_COUNTED: Final = 16

Reduce = Literal["mean", "sum", "max"]
"""How the scores of a unit's weights become the score of the unit."""


def _reduce(score: Tensor, dims: tuple[int, ...], reduce: Reduce) -> Tensor:
    if reduce == "mean":
        return score.mean(dims)
    return score.sum(dims) if reduce == "sum" else score.amax(dims)


@dataclass(frozen=True)
class Block:
    """``rows`` consecutive outputs x ``columns`` consecutive inputs; None stands for all of them."""

    rows: int | None
    columns: int | None

    def __str__(self) -> str:
        if self.columns is None:
            return "rows"
        if self.rows is None:
            return "columns" if self.columns == 1 else f"*x{self.columns}"
        return f"{self.rows}x{self.columns}"

    @property
    def max_sparsity(self) -> float:
        """The highest fraction of zeros the pattern can express."""
        return 1.0

    @property
    def needs_element_scores(self) -> bool:
        """True where ``expand`` needs the score of each weight, not only that of each unit."""
        return False

    def cell(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of one unit in a weight ``[out, in]``."""
        return self.rows or shape[0], self.columns or shape[1]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Why a weight ``[out, in]`` cannot be cut into whole units, as "766 % 4 = 2"; None where it can."""
        if 0 in shape:
            return "no weights are left in it"
        for size, step in zip(shape, self.cell(shape), strict=True):
            if size % step:
                return f"{size} % {step} = {size % step}"
        return None

    def units(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the grid of units of a weight ``[out, in]``."""
        rows, columns = self.cell(shape)
        return shape[0] // rows, shape[1] // columns

    def zeros_per_unit(self, shape: tuple[int, int]) -> int:
        """How many weights become zero when one unit is pruned."""
        rows, columns = self.cell(shape)
        return rows * columns

    def pool(self, score: Tensor, reduce: Reduce = "mean") -> Tensor:
        """Scores of the units, of the grid's shape, from the scores ``[out, in]`` of the weights."""
        out, inp = score.shape
        rows, columns = self.cell((out, inp))
        if rows == columns == 1:
            return score
        return _reduce(score.reshape(out // rows, rows, inp // columns, columns), (1, 3), reduce)

    def expand(self, keep: Tensor, shape: tuple[int, int], score: Tensor | None = None) -> Tensor:
        """Mask ``[out, in]`` (bool) from ``keep`` (bool, the grid's shape)."""
        rows, columns = self.cell(shape)
        if rows == columns == 1:
            return keep
        grid_rows, grid_columns = keep.shape
        return keep[:, None, :, None].expand(grid_rows, rows, grid_columns, columns).reshape(shape)


def Unstructured() -> Block:  # noqa: N802 - reads as the pattern it makes
    """Single weights."""
    return Block(1, 1)


def Rows() -> Block:  # noqa: N802
    """Whole outputs."""
    return Block(1, None)


def Columns() -> Block:  # noqa: N802
    """Whole inputs."""
    return Block(None, 1)


@dataclass(frozen=True)
class NofM:
    """Of every ``m`` consecutive inputs of one output, ``n`` are kept: ``NofM(2, 4)`` is 2:4."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def max_sparsity(self) -> float:
        """(m - n) / m."""
        return (self.m - self.n) / self.m

    @property
    def needs_element_scores(self) -> bool:
        """True: which weights of a group go is decided weight by weight."""
        return True

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """As ``Block.misfit``; only the inputs have to divide."""
        if 0 in shape:
            return "no weights are left in it"
        return f"{shape[1]} % {self.m} = {shape[1] % self.m}" if shape[1] % self.m else None

    def units(self, shape: tuple[int, int]) -> tuple[int, int]:
        """``[out, in / m]``."""
        return shape[0], shape[1] // self.m

    def zeros_per_unit(self, shape: tuple[int, int]) -> int:
        """``m - n``."""
        return self.m - self.n

    def _least(self, score: Tensor) -> Tensor:
        """True at the m - n lowest scores of each group ``[out, in / m, m]``; among equals the first goes."""
        groups = score.reshape(score.shape[0], -1, self.m)
        if self.m > _COUNTED:
            order = groups.argsort(dim=2, stable=True)[..., : self.m - self.n]
            return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order, True)
        # Counting how many go before each is five times as fast as sorting groups so small.
        columns = groups.unbind(2)
        before = [torch.zeros_like(column, dtype=torch.uint8) for column in columns]
        for later in range(self.m):
            for earlier in range(later):
                first = columns[earlier] <= columns[later]
                before[later] += first
                before[earlier] += ~first
        return torch.stack([count < self.m - self.n for count in before], 2)

    def pool(self, score: Tensor, reduce: Reduce = "mean") -> Tensor:
        """A unit's score is that of the weights it would lose; a mean still divides by m."""
        groups = score.reshape(score.shape[0], -1, self.m)
        nothing = -torch.inf if reduce == "max" else 0.0
        return _reduce(groups.masked_fill(~self._least(score), nothing), (2,), reduce)

    def expand(self, keep: Tensor, shape: tuple[int, int], score: Tensor | None = None) -> Tensor:
        """Mask ``[out, in]``: all of a kept group, the ``n`` highest of ``score`` in a pruned one."""
        if score is None:
            raise ValueError("an N:M mask needs the score of each weight")
        return (keep[..., None] | ~self._least(score)).reshape(shape)


Pattern = Block | NofM

_NAMED: Final = {
    "unstructured": Unstructured(),
    "rows": Rows(),
    "columns": Columns(),
    "heads": Columns(),  # as wide as the model's heads are: structures.pattern_for
    "ffn": Columns(),
}
_SYNTAX: Final = re.compile(r"(?P<a>\d+|\*(?=x))(?P<kind>[x:])(?P<b>\d+)")


def parse_pattern(text: str, key: str = "pattern") -> Pattern:
    """``unstructured``, ``rows``, ``columns``, ``4x1`` (outputs x inputs), ``*x64`` or ``2:4`` (2 kept of 4 inputs).

    ``heads`` and ``ffn`` are columns until a model says how wide (``structures.pattern_for``).

    Raises ``TargetError`` naming ``key`` for anything else.
    """
    if text in _NAMED:
        return _NAMED[text]
    match = _SYNTAX.fullmatch(text)
    if match is None:
        rule = "be unstructured, rows, columns, heads, ffn, a block RxC (outputs x inputs) or N:M (N kept of M inputs)"
        raise TargetError(Problem(key, text, rule, "4x1 or 2:4"))
    if match["a"] == "*":
        if int(match["b"]) < 1:
            raise TargetError(Problem(key, text, "have at least one column", "*x64"))
        return Block(None, int(match["b"]))
    a, b = int(match["a"]), int(match["b"])
    if match["kind"] == "x":
        if a < 1 or b < 1:
            raise TargetError(Problem(key, text, "have at least one row and one column", "4x1"))
        return Block(a, b)
    if not 0 < a < b:
        raise TargetError(Problem(key, text, "keep N of M with 0 < N < M", "2:4"))
    return NofM(a, b)
