"""Programs: lists of steps, each a kernel with its arguments, and how threads share them.

A program is written before there is memory for it: arguments name buffers of a workspace. ``kernels_of`` says what has to be
compiled, and nothing else is; ``BoundProgram`` puts addresses in the place of names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.jit import Code
from prunus.runtime.kernels.drive import DriveSpec, program_dtype
from prunus.runtime.kernels.step import DType, KernelSpec, StepSpec

__all__ = ["Address", "Argument", "BoundProgram", "Step", "Stride", "kernels_of", "table_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Address:
    """The address of a buffer of the workspace."""

    buffer: str


@dataclass(frozen=True)
class Stride:
    """The bytes from one element along the first axis of a buffer to the next: its tiles, or the rows of a matrix."""

    buffer: str


PLACEMENT = ("widths", "starts")
"""Buffers that every step has without naming them, int64 ``[tiles]``: the tokens of each tile, and its first token."""
Argument = int | Array | Address | Stride
"""A number, an array (given by its address), or what is known when there is a workspace."""


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel of a program: what it is called with, and how threads may share it.

    Raises:
        ValueError: arguments that the kernel's table does not have.

    """

    kernel: StepSpec
    arguments: Mapping[str, Argument]
    groups: int = 1
    """Groups of outputs, or heads, that threads may share; 1 where tiles alone can be shared."""
    barrier: bool = False
    """Whether all tiles must be done with the step before."""

    def __post_init__(self) -> None:
        unknown = self.arguments.keys() - set(self.kernel.arguments.names or ())
        if unknown:
            raise ValueError(f"{self.kernel} has no argument {', '.join(sorted(unknown))}")


def kernels_of(steps: Iterable[Step]) -> frozenset[KernelSpec]:
    """The kernels that a program needs: those of its steps, and the loop that runs them."""
    return frozenset[KernelSpec]({DriveSpec()} | {step.kernel for step in steps})


def table_of(dtype: DType, values: Mapping[str, int | Array]) -> Array:
    """A kernel's table of arguments: numbers, and addresses of arrays, which the caller keeps alive; 0 where none is given."""
    table = np.zeros((), dtype)
    for name, value in values.items():
        table[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    return table


class BoundProgram:
    """A program for one workspace and one number of threads.

    Args:
        steps: the program.
        code: has the kernels of all steps.
        buffers: the workspace, by name; ``PLACEMENT`` among them.
        threads: how many threads run it.

    """

    def __init__(self, steps: Sequence[Step], code: Code, buffers: Mapping[str, Array], threads: int) -> None:
        self._threads = threads
        self._keep = [*buffers.values(), *(value for step in steps for value in step.arguments.values())]
        self._tables = [table_of(step.kernel.arguments, _resolved(step, buffers)) for step in steps]
        self._groups = np.array([step.groups for step in steps])
        self._by_tiles = np.zeros(len(steps), program_dtype(threads))
        self._by_tiles["kernel"] = [code.addresses[step.kernel] for step in steps]
        self._by_tiles["arguments"] = [table.ctypes.data for table in self._tables]
        self._by_groups = self._by_tiles.copy()
        self._by_tiles["barrier"] = [step.barrier for step in steps]
        self._by_tiles["shares"]["group_end"] = self._groups[:, None]
        self._by_groups["barrier"] = 1
        edges = np.arange(threads + 1) * self._groups[:, None] // threads
        unshared = self._groups[:, None] == 1  # one thread does it
        shares = self._by_groups["shares"]
        shares["group_begin"] = np.where(unshared, 0, edges[:, :-1])
        shares["group_end"] = np.where(unshared, np.arange(threads) == 0, edges[:, 1:])

    def shared(self, tiles: int) -> Array:
        """The program for this many tiles, ``[steps]`` of ``program_dtype``, shared as all threads have work.

        Each thread takes its share of the tiles. Where there are fewer tiles than threads, each takes its share of the groups
        of all tiles instead, and all threads meet before every step.
        """
        return self.by_tiles(tiles) if tiles >= self._threads else self._by_groups_of(tiles)

    def by_tiles(self, tiles: int) -> Array:
        """The program in which each thread takes its share of the tiles, however few there are."""
        edges = np.arange(self._threads + 1) * tiles // self._threads
        shares = self._by_tiles["shares"]
        shares["tile_begin"], shares["tile_end"] = edges[:-1], edges[1:]
        return self._by_tiles

    def _by_groups_of(self, tiles: int) -> Array:
        shares = self._by_groups["shares"]
        shares["tile_end"] = np.where(shares["group_begin"] < shares["group_end"], tiles, 0)
        return self._by_groups


def _resolved(step: Step, buffers: Mapping[str, Array]) -> dict[str, int | Array]:
    known = {name: buffers[name] for name in step.kernel.arguments.names or () if name in PLACEMENT}
    return known | {name: _value(argument, buffers) for name, argument in step.arguments.items()}


def _value(argument: Argument, buffers: Mapping[str, Array]) -> int | Array:
    if isinstance(argument, Address):
        return buffers[argument.buffer]
    if isinstance(argument, Stride):
        return buffers[argument.buffer].strides[0]
    return argument
