"""Weights that one process holds whole, or that several hold in parts (FSDP2: each process has some rows).

``Sharding`` has three operations over the processes; in a single process each of them does nothing:

    sum       numbers of this process -> their sums over all processes
    gather    rows of this process -> the rows of all processes, in order, in each of them
    offset    number of rows here -> number of rows in the processes before this one

The functions below are written once, over these operations. They rest on one rule: every unit of a pattern belongs to exactly
one process. That is the process that holds the unit's rows; of a *split* weight, which has units with rows in several processes
(a column; a block across a boundary), all units belong to the first process, and the others have none.

The k-th smallest score is found without gathering the scores: a sample of all processes' scores brackets it
(``selection.bracket``), then the interval of floats between is halved. A float and its neighbour differ by one in the order of
their bits, so 32 sums of counts are enough. Ties go by position, so those of earlier processes come first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor

from prunus.errors import Problem, RecipeError, TrainingError
from prunus.sparsity import selection
from prunus.sparsity.measure import is_sharded
from prunus.sparsity.patterns import Block, Pattern, Reduce
from prunus.sparsity.selection import SMALL, Cut, at_end, bracket, sampled, within

__all__ = [
    "SINGLE",
    "Shard",
    "Sharding",
    "count",
    "cut_here",
    "expand",
    "here",
    "kept_units",
    "kth_smallest",
    "local",
    "norm",
    "pool",
    "reshard",
    "rows_here",
    "shards_of",
    "size",
    "undivided",
    "units_here",
]


@final
class Sharding:
    """The processes of a ``torch.distributed`` group, or the single process where ``group`` is None."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank: int = 0 if group is None else torch.distributed.get_rank(group)

    @property
    def single(self) -> bool:
        """Whether one process holds everything."""
        return self._group is None

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the processes, element by element; overwrites ``values``."""
        if self._group is not None:
            torch.distributed.all_reduce(values, group=self._group)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (entries of the first dimension) of all processes, which may differ in number, in order of rank."""
        if self._group is None:
            return rows
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(torch.distributed.get_world_size(self._group))]
        torch.distributed.all_gather(counts, torch.tensor([len(rows)]), group=self._group)
        padded = rows.new_zeros(max(int(count) for count in counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded, group=self._group)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def offset(self, rows: int) -> int:
        """How many rows the processes before this one have, where this one has ``rows``."""
        return int(self.gather(torch.tensor([rows]))[: self.rank].sum())


SINGLE: Final = Sharding()


@dataclass(frozen=True)
class Shard:
    """The rows ``first`` to ``first + rows`` of a weight, which this process holds."""

    pattern: Pattern
    shape: tuple[int, int]
    """``(out, in)`` of the whole weight."""
    first: int
    rows: int
    split: bool
    """Whether units have rows in several processes."""
    has_units: bool
    """Whether units belong to this process: False only of a split weight, in all processes but the first."""


def undivided(shard: Shard) -> Shard:
    """The same weight in a process that holds all of it."""
    return replace(shard, first=0, rows=shard.shape[0], split=False, has_units=True)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the same memory."""
    sharded: Any = tensor
    return tensor if not is_sharded(tensor) else sharded.to_local()


def here(name: str, weight: Tensor, shard: Shard) -> Tensor:
    """The rows of a weight that this process holds, the same memory. Raises ``TrainingError`` for other rows than ``shard``."""
    rows = local(weight)
    if tuple(rows.shape) != (shard.rows, shard.shape[1]):
        rule = f"have the shape {[shard.rows, shard.shape[1]]} that it had when its mask was made"
        raise TrainingError(Problem(name, list(rows.shape), rule, "masks made for the model as it is now"))
    return rows


def reshard(modules: Iterable[Any]) -> None:
    """Gives back the parameters of these modules that a forward pass under FSDP2 has gathered; other modules do nothing."""
    for module in list(modules):
        if hasattr(module, "reshard"):
            module.reshard()


def shards_of(weights: Mapping[str, Tensor], patterns: Mapping[str, Pattern]) -> tuple[Sharding, dict[str, Shard]]:
    """How weights are sharded, and what this process holds of each. All processes call it together.

    Raises ``RecipeError`` for a sharding that is not by rows.
    """
    sharding = _sharding_of(weights)
    return sharding, {name: _shard(sharding, patterns[name], weight) for name, weight in weights.items()}


def _sharding_of(weights: Mapping[str, Tensor]) -> Sharding:
    sharded: dict[str, Any] = {name: weight for name, weight in weights.items() if is_sharded(weight)}
    if not sharded:
        return SINGLE
    problems = [
        Problem(name, str(p.placements), "be sharded by rows over one dimension of processes", "FSDP2: fully_shard")
        for name, p in sharded.items()
        if len(p.placements) != 1 or not p.placements[0].is_shard(0)
    ]
    if len(sharded) != len(weights):
        name = next(name for name in weights if name not in sharded)
        problems.append(Problem(name, "whole", "be sharded as the others are", "fully_shard on the whole model"))
    if problems:
        raise RecipeError(*problems)
    return Sharding(next(iter(sharded.values())).device_mesh.get_group())


def _shard(sharding: Sharding, pattern: Pattern, weight: Tensor) -> Shard:
    rows, split = local(weight).shape[0], False
    if isinstance(pattern, Block) and not sharding.single:
        split = pattern.rows is None or bool(sharding.sum(torch.tensor(rows % pattern.rows)))
    shape = (weight.shape[0], weight.shape[1])
    return Shard(pattern, shape, sharding.offset(rows), rows, split, not split or sharding.rank == 0)


# Between weights and the units of their pattern


def pool(sharding: Sharding, shard: Shard, score: Tensor, reduce: Reduce) -> Tensor:
    """Scores of the units that belong to this process, from the scores of the weights that it holds."""
    if not shard.split:
        return shard.pattern.pool(score, reduce)
    units = shard.pattern.pool(sharding.gather(score), reduce)
    return units if shard.has_units else units[:0]


def expand(sharding: Sharding, shard: Shard, keep: Tensor, score: Tensor | None = None) -> Tensor:
    """Mask (bool, True = kept) of the weights here, from that of the units here; ``score`` of the weights here, for N:M."""
    if shard.split:
        return rows_here(shard, shard.pattern.expand(sharding.gather(keep), shard.shape))
    return shard.pattern.expand(keep, (shard.rows, shard.shape[1]), score)


def kept_units(sharding: Sharding, shard: Shard, mask: Tensor) -> Tensor:
    """Which of the units here a mask of weights keeps (bool)."""
    if shard.split:
        return pool(sharding, shard, mask.float(), "max") > 0
    rows, columns = shard.pattern.units(shard.shape)
    return mask[:: shard.shape[0] // rows, :: shard.shape[1] // columns]


def rows_here(shard: Shard, whole: Tensor) -> Tensor:
    """Of a tensor with a row for each row of the weight, those of this process."""
    return whole if shard.rows == shard.shape[0] else whole[shard.first : shard.first + shard.rows].clone()


def units_here(shard: Shard, whole: Tensor) -> Tensor:
    """Of the scores of all units (or weights), those of this process."""
    if shard.split:
        return whole if shard.has_units else whole[:0].clone()
    if shard.rows == shard.shape[0]:
        return whole
    rows = shard.shape[0] // len(whole)  # in a unit
    return whole[shard.first // rows : (shard.first + shard.rows) // rows].clone()


# Over the units of all processes, from those of this one


def size(sharding: Sharding, score: Tensor) -> int:
    """How many units a weight has."""
    return int(sharding.sum(torch.tensor(score.numel())))


def count(sharding: Sharding, score: Tensor, operator: Callable[[Any, float], Any], value: float) -> int:
    """For how many units ``operator(score, value)`` holds."""
    return int(sharding.sum(torch.tensor(selection.count(score, operator, value))))


def norm(sharding: Sharding, score: Tensor) -> Tensor:
    """The L2 norm of the scores of a weight's units."""
    here: Tensor = torch.linalg.vector_norm(score)
    return here if sharding.single else sharding.sum(here.double().square()).sqrt().to(score.dtype)


def cut_here(sharding: Sharding, score: Tensor, cut: Cut) -> Cut:
    """The part of a cut that falls on the units of this process."""
    if sharding.single or cut.k == 0:
        return cut
    below, ties = int((score < cut.threshold).sum()), int((score == cut.threshold).sum())
    ties_to_cut = cut.k - int(sharding.sum(torch.tensor(below))) - sharding.offset(ties)
    return Cut(below + min(ties, max(0, ties_to_cut)), cut.threshold)


def kth_smallest(sharding: Sharding, scores: Sequence[Tensor], k: int) -> float:
    """The k-th smallest (k from 1) of the scores of all units of several weights, exactly."""
    if sharding.single:
        return selection.kth_smallest(scores, k)
    flat = [torch.zeros(0), *(score.flatten().float() for score in scores)]
    n = int(sharding.sum(torch.tensor(sum(score.numel() for score in flat))))
    candidates, below = flat, 0
    if n > SMALL:
        ends = bracket(sharding.gather(sampled(flat, n)), k, n)
        counts_here, between = within(flat, *ends)
        counts = sharding.sum(torch.tensor(counts_here)).tolist()
        tied = at_end(counts, *ends, k)
        if tied is not None:
            return tied
        if counts[1] < k <= counts[2]:
            candidates, below = [between], counts[1]
    order = _order(torch.cat(candidates))
    low, high = -(2**31), 2**31 - 1  # the value is in low..high; below of all are below low
    while low < high:
        middle = (low + high) // 2
        lower = order <= middle
        number = int(sharding.sum(torch.tensor(int(lower.sum()))))
        if below + number >= k:
            high, order = middle, order[lower]
        else:
            low, below, order = middle + 1, below + number, order[~lower]
    return _from_order(low)


def _order(values: Tensor) -> Tensor:
    """Whole numbers in the order of the floats: -0.0 as 0.0."""
    bits = (values + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _from_order(order: int) -> float:
    bits = order if order >= 0 else (-order) | -(2**31)
    return float(torch.tensor([bits], dtype=torch.int64).to(torch.int32).view(torch.float32))
