"""Banks: what other models made of each training example, for contrastive objectives.

    states    [examples, width] for each model, in half precision, of length 1; row i is example i
    draw      k of the n examples without replacement, by a generator that the step decides: a resumed run draws the same

A bank is filled in one pass, in memory that is there from the beginning; each row is written once, or it is an error.
"""

from collections.abc import Iterable
from typing import final
from zlib import crc32

import torch
from torch import Tensor
from torch.nn import functional

from prunus.errors import Problem, TrainingError

__all__ = ["Bank", "draw", "filled"]


def filled(
    examples: int, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu", processes: int = 1
) -> Tensor:
    """``[examples, width]`` in half precision and of length 1, of pairs of ids (int64 ``[rows]``) and states ``[rows, width]``.

    With several processes each gives its own rows, and all get the whole. Raises ``TrainingError`` where a row is missing,
    comes twice or is not finite.
    """
    states: Tensor | None = None
    seen = torch.zeros(examples, dtype=torch.int32)
    for ids, given in batches:
        if states is None:
            states = torch.zeros(examples, given.shape[1], dtype=torch.float16, device=device)
        states[ids.to(device)] = functional.normalize(given.float(), dim=1).to(device, torch.float16)
        seen.index_add_(0, ids.cpu(), torch.ones(len(ids), dtype=torch.int32))
    if processes > 1:
        states = _together(states, seen, examples, device)
    wrong = torch.nonzero(seen != 1)
    if states is None or len(wrong):
        where = int(wrong[0]) if len(wrong) else 0
        rule = "be encoded exactly once"
        raise TrainingError(Problem(f"example {where} of the bank", f"{int(seen[where])} times", rule, "a bug report"))
    if not bool(torch.isfinite(states).all()):
        rule = "be finite"
        raise TrainingError(
            Problem("states of the bank", "NaN or infinity", rule, "another model, or train.precision: fp32")
        )
    return states


def _together(states: Tensor | None, seen: Tensor, examples: int, device: torch.device | str) -> Tensor:
    """Sums what the processes wrote, in float32: not every backend adds half precision."""
    width = torch.tensor(0 if states is None else states.shape[1], device=device)
    torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
    if states is None:
        states = torch.zeros(examples, int(width), dtype=torch.float16, device=device)
    counted = seen.to(device)
    torch.distributed.all_reduce(counted)
    seen.copy_(counted)
    for rows in torch.split(states, 1 << 16):
        whole = rows.float()
        torch.distributed.all_reduce(whole)
        rows.copy_(whole)
    return states


def draw(name: str, seed: int, step: int, examples: int, count: int) -> Tensor:
    """``min(count, examples)`` different ids (int64), the same for the same name, seed and step."""
    if count >= examples:
        return torch.arange(examples)
    generator = torch.Generator().manual_seed((crc32(f"{name} {seed} {step}".encode()) << 16) ^ step)
    return torch.randperm(examples, generator=generator)[:count]


@final
class Bank:
    """States of the same examples by any number of models, half precision ``[examples, width]`` each."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.names: list[str] = []
        self._states: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._states)

    @property
    def width(self) -> int:
        """Of a representation; 0 while there is none."""
        return self._states[0].shape[1] if self._states else 0

    def add(self, name: str, states: Tensor) -> None:
        """One more model's states."""
        self.names.append(name)
        self._states.append(states)

    def latest(self, count: int | None) -> None:
        """Lets go of all but the latest."""
        if count is not None:
            del self.names[:-count], self._states[:-count]

    def take(self, ids: Tensor, device: torch.device | str) -> Tensor:
        """States of these examples (int64 ``[rows]``) by all models: ``[rows, models, width]`` in float32."""
        taken = [states[ids.to(states.device)].to(device) for states in self._states]
        return torch.stack(taken, 1).float()

    def bytes(self) -> int:
        """Memory of the states; those in files count as well."""
        return sum(states.numel() * states.element_size() for states in self._states)
