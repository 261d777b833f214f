"""Scores that lie in one process, or in parts of tensors that several hold (FSDP2: each some rows).

Selection asks four things of them, wherever they lie:

    size     how many units a tensor has
    count    for how many of them a comparison holds
    kth      the k-th smallest of all units of several tensors, exactly
    own      which part of a cut is this process': ties go by position, so those of earlier processes come first

The k-th value is bracketed by a sample of all processes' scores (``selection.bracket``), and found by halving the interval of
floats between: a float and its neighbour differ by one in the order of their bits, so that 32 sums of counts over the processes
are enough. But for the sample, no process holds the scores of the others.

A unit that lies in several processes (a column; a block whose rows are not all in one) is the same in all of them: its score is
pooled over them, and it counts once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor, nn

from prunus.errors import Problem, RecipeError
from prunus.sparsity.measure import is_sharded
from prunus.sparsity.patterns import Block, Pattern, Reduce
from prunus.sparsity.selection import SMALL, Cut, at_end, bracket, count, kth_smallest, sampled, within
from prunus.sparsity.wrappers import parameter

__all__ = ["LOCAL", "Local", "Sharded", "World", "local", "world_of"]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the same memory."""
    sharded: Any = tensor
    return tensor if not is_sharded(tensor) else sharded.to_local()


class World(Protocol):
    """Where scores lie."""

    def size(self, name: str, score: Tensor) -> int:
        """Units of a tensor."""
        ...

    def count(self, name: str, score: Tensor, operator: Callable[[Any, float], Any], value: float) -> int:
        """For how many of them it holds."""
        ...

    def kth(self, scores: Mapping[str, Tensor], k: int) -> float:
        """The k-th smallest of all, from 1."""
        ...

    def own(self, name: str, score: Tensor, cut: Cut) -> Cut:
        """The part of a cut that falls on this process."""
        ...

    def pool(self, name: str, pattern: Pattern, score: Tensor, reduce: Reduce) -> Tensor:
        """Scores of the units, from those of the weights."""
        ...

    def expand(
        self, name: str, pattern: Pattern, keep: Tensor, elements: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        """Mask of the weights that are here; ``shape`` is that of the whole."""
        ...

    def norm(self, name: str, score: Tensor) -> Tensor:
        """The L2 norm of a tensor's units."""
        ...

    def units(self, name: str, score: Tensor) -> Tensor:
        """Of all units' scores those that are here."""
        ...

    def crosses(self, name: str) -> bool:
        """Whether units of a tensor lie in several processes."""
        ...

    def whole(self, name: str, tensor: Tensor, units: bool = False) -> Tensor:
        """A tensor of rows (or of ``units``), put together."""
        ...

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """The rows of a whole tensor that are here."""
        ...


@final
class Local:
    """Everything is here."""

    def size(self, name: str, score: Tensor) -> int:
        """As ``World`` says."""
        return score.numel()

    def count(self, name: str, score: Tensor, operator: Callable[[Any, float], Any], value: float) -> int:
        """As ``World`` says."""
        return count(score, operator, value)

    def kth(self, scores: Mapping[str, Tensor], k: int) -> float:
        """As ``World`` says."""
        return kth_smallest(list(scores.values()), k)

    def own(self, name: str, score: Tensor, cut: Cut) -> Cut:
        """As ``World`` says."""
        return cut

    def pool(self, name: str, pattern: Pattern, score: Tensor, reduce: Reduce) -> Tensor:
        """As ``World`` says."""
        return pattern.pool(score, reduce)

    def expand(
        self, name: str, pattern: Pattern, keep: Tensor, elements: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        """As ``World`` says."""
        return pattern.expand(keep, shape, elements)

    def norm(self, name: str, score: Tensor) -> Tensor:
        """As ``World`` says."""
        norm: Tensor = torch.linalg.vector_norm(score)
        return norm

    def units(self, name: str, score: Tensor) -> Tensor:
        """As ``World`` says."""
        return score

    def crosses(self, name: str) -> bool:
        """As ``World`` says."""
        return False

    def whole(self, name: str, tensor: Tensor, units: bool = False) -> Tensor:
        """As ``World`` says."""
        return tensor

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """As ``World`` says."""
        return tensor


LOCAL: Final = Local()


@final
class Sharded:
    """Rows of tensors lie in the processes of a ``group``, one after the other.

    ``rows``: name -> rows in each process; ``crossing``: tensors some of whose units lie in several; ``each``: rows of a unit,
    or of a score for N:M, which keeps one a weight.
    """

    def __init__(
        self, rows: Mapping[str, Sequence[int]], crossing: frozenset[str], each: Mapping[str, int], group: Any
    ) -> None:
        self._rows, self._crossing, self._each, self._group = rows, crossing, each, group
        self._rank = torch.distributed.get_rank(group)

    def _sum(self, value: Tensor) -> Tensor:
        torch.distributed.all_reduce(value, group=self._group)
        return value

    def _counts_here(self, name: str) -> bool:
        """What is the same in all processes counts in the first."""
        return name not in self._crossing or self._rank == 0

    def size(self, name: str, score: Tensor) -> int:
        """As ``World`` says."""
        return int(self._sum(torch.tensor(score.numel() if self._counts_here(name) else 0)))

    def count(self, name: str, score: Tensor, operator: Callable[[Any, float], Any], value: float) -> int:
        """As ``World`` says."""
        return int(self._sum(torch.tensor(count(score, operator, value) if self._counts_here(name) else 0)))

    def kth(self, scores: Mapping[str, Tensor], k: int) -> float:
        """As ``World`` says."""
        flat = [torch.zeros(0), *(s.flatten().float() for n, s in scores.items() if self._counts_here(n))]
        n = int(self._sum(torch.tensor(sum(score.numel() for score in flat))))
        inside, below = flat, 0
        if n > SMALL:
            ends = bracket(self._gathered(sampled(flat, n)), k, n)
            own, near = within(flat, *ends)
            counts = self._sum(torch.tensor(own)).tolist()
            tied = at_end(counts, *ends, k)
            if tied is not None:
                return tied
            if counts[1] < k <= counts[2]:
                inside, below = [near], counts[1]
        order = _ordered(torch.cat(inside))
        low, high = -(2**31), 2**31 - 1  # the value is in low..high; below of all are below low
        while low < high:
            middle = (low + high) // 2
            here = order <= middle
            found = int(self._sum(torch.tensor(int(here.sum()))))
            if below + found >= k:
                high, order = middle, order[here]
            else:
                low, below, order = middle + 1, below + found, order[~here]
        return _value(low)

    def _gathered(self, values: Tensor) -> Tensor:
        """The values of all processes, in each."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(torch.distributed.get_world_size(self._group))]
        torch.distributed.all_gather(sizes, torch.tensor([values.numel()]), group=self._group)
        return self._joined(values, [int(size) for size in sizes])

    def _joined(self, mine: Tensor, rows: Sequence[int]) -> Tensor:
        """Parts that have so many rows in each process, one after the other, in all of them."""
        padded = mine.new_zeros(max(rows), *mine.shape[1:])
        padded[: mine.shape[0]] = mine
        parts = [torch.empty_like(padded) for _ in rows]
        torch.distributed.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:held] for part, held in zip(parts, rows, strict=True)])

    def own(self, name: str, score: Tensor, cut: Cut) -> Cut:
        """As ``World`` says."""
        if name in self._crossing or cut.k == 0:
            return cut
        below, ties = int((score < cut.threshold).sum()), int((score == cut.threshold).sum())
        every = [torch.zeros(2, dtype=torch.int64) for _ in self._rows[name]]
        torch.distributed.all_gather(every, torch.tensor([below, ties]), group=self._group)
        left = cut.k - sum(int(each[0]) for each in every) - sum(int(each[1]) for each in every[: self._rank])
        return Cut(below + min(ties, max(0, left)), cut.threshold)

    def pool(self, name: str, pattern: Pattern, score: Tensor, reduce: Reduce) -> Tensor:
        """As ``World`` says."""
        if name not in self._crossing:
            return pattern.pool(score, reduce)
        return pattern.pool(self.whole(name, score), reduce)

    def expand(
        self, name: str, pattern: Pattern, keep: Tensor, elements: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        """As ``World`` says."""
        if name in self._crossing:
            return self.part(name, pattern.expand(keep, shape, elements))
        return pattern.expand(keep, (self._rows[name][self._rank], shape[1]), elements)

    def norm(self, name: str, score: Tensor) -> Tensor:
        """As ``World`` says."""
        if name in self._crossing:
            return LOCAL.norm(name, score)
        return self._sum(score.double().square().sum()).sqrt().to(score.dtype)

    def crosses(self, name: str) -> bool:
        """As ``World`` says."""
        return name in self._crossing

    def units(self, name: str, score: Tensor) -> Tensor:
        """As ``World`` says."""
        if name in self._crossing:
            return score
        rows = [held // self._each[name] for held in self._rows[name]]
        first = sum(rows[: self._rank])
        return score[first : first + rows[self._rank]].clone()

    def whole(self, name: str, tensor: Tensor, units: bool = False) -> Tensor:
        """As ``World`` says."""
        if units and name in self._crossing:
            return tensor
        rows = [held // self._each[name] for held in self._rows[name]] if units else self._rows[name]
        return self._joined(tensor, rows)

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """As ``World`` says."""
        rows = self._rows[name]
        first = sum(rows[: self._rank])
        return tensor[first : first + rows[self._rank]].clone()


def _ordered(values: Tensor) -> Tensor:
    """Whole numbers in the order of the floats: -0.0 as 0.0."""
    bits = (values + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _value(order: int) -> float:
    bits = order if order >= 0 else (-order) | -(2**31)
    return float(torch.tensor([bits], dtype=torch.int64).to(torch.int32).view(torch.float32))


def world_of(model: nn.Module, patterns: Mapping[str, Pattern]) -> World:
    """Where the named parameters of ``model`` lie. Called by all processes at once.

    Raises ``RecipeError`` for a sharding that is not by rows.
    """
    parameters = {name: parameter(model, name) for name in patterns}
    sharded: dict[str, Any] = {name: p for name, p in parameters.items() if is_sharded(p)}
    if not sharded:
        return LOCAL
    found = [
        Problem(name, str(p.placements), "be sharded by rows over one dimension of processes", "FSDP2: fully_shard")
        for name, p in sharded.items()
        if len(p.placements) != 1 or not p.placements[0].is_shard(0)
    ]
    if len(sharded) != len(parameters):
        name = next(name for name in parameters if name not in sharded)
        found.append(Problem(name, "whole", "be sharded as the others are", "fully_shard on the whole model"))
    if found:
        raise RecipeError(*found)
    group = next(iter(sharded.values())).device_mesh.get_group()
    mine = torch.tensor([local(p).shape[0] for p in sharded.values()])
    every = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(every, mine, group=group)
    rows = {name: [int(each[i]) for each in every] for i, name in enumerate(sharded)}
    crossing = frozenset(name for name, pattern in patterns.items() if _crosses(pattern, rows[name]))
    each = {name: (pattern.rows or 1) if isinstance(pattern, Block) else 1 for name, pattern in patterns.items()}
    return Sharded(rows, crossing, each, group)


def _crosses(pattern: Pattern, rows: Sequence[int]) -> bool:
    """Whether a unit has rows in several processes."""
    if not isinstance(pattern, Block):
        return False
    if pattern.rows is None:
        return True
    return any(count_ % pattern.rows for count_ in rows)
