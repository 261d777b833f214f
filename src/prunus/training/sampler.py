"""Sampler whose order of rows depends on (seed, epoch) alone: the same in every process and after every resume.

    grouped     rows in random order, in chunks of 50 batches, each sorted by length; the batches of all chunks in random order
    not         rows in random order

The first batch of an epoch is that of the longest row, so that memory is asked for at once. A batch is that of all processes
together: with n of them each takes every n-th part of it.
"""

from collections.abc import Iterator, Sequence
from typing import Final, final

import numpy as np
from torch.utils.data import Sampler

__all__ = ["SeededSampler"]

_CHUNK: Final = 50


@final
class SeededSampler(Sampler[int]):
    """Yields indices of rows with these ``lengths``, for batches of ``size`` rows."""

    def __init__(self, lengths: Sequence[int], size: int, seed: int, grouped: bool = True) -> None:
        self._lengths = np.asarray(lengths)
        self._size, self._seed, self._grouped, self._epoch = size, seed, grouped, 0

    def set_epoch(self, epoch: int) -> None:
        """The order of another epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.Generator(np.random.PCG64([self._seed, self._epoch]))
        order = draw.permutation(len(self))
        if not self._grouped:
            yield from order.tolist()
            return
        chunk = _CHUNK * self._size
        batches = []
        for first in range(0, len(self), chunk):
            rows = order[first : first + chunk]
            rows = rows[np.argsort(-self._lengths[rows], kind="stable")]
            batches += [rows[i : i + self._size] for i in range(0, len(rows), self._size)]
        # A short batch would shift those behind it over the processes and steps: it comes last.
        full = [i for i, batch in enumerate(batches) if len(batch) == self._size]
        short = [i for i, batch in enumerate(batches) if len(batch) != self._size]
        places = [full[i] for i in draw.permutation(len(full))]
        longest = max(places, key=lambda i: int(self._lengths[batches[i]].max()), default=None)
        if longest is not None:
            places.remove(longest)
            places.insert(0, longest)
        for i in [*places, *short]:
            yield from batches[i].tolist()
