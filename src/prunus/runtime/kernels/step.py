"""What the kernels of a program share: their specification, their table of arguments, and tiles of tokens.

A kernel is described by a frozen specification: equal specifications are the same machine code, and a program compiles the
set of specifications that its steps name. The specification's class says what its table of arguments holds, as a numpy dtype;
generated code and Python both take the offsets from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from prunus.runtime.ir_builder import I64, Kernel, Value
from prunus.runtime.isa import Isa

__all__ = ["PARAMETERS", "TILE", "Arguments", "DType", "KernelSpec", "StepSpec", "arguments_dtype", "each_block"]

DType = np.dtype[Any]
TILE = 64
"""Tokens in a tile."""
PARAMETERS = ("arguments", "tile_begin", "tile_end", "group_begin", "group_end", "scratch")
"""Parameters of every kernel that is a step: its table, the tiles and groups of this thread, memory of the thread."""


@dataclass(frozen=True)
class KernelSpec(ABC):
    """Which kernel: hashable, equal for equal machine code of one instruction set."""

    @property
    def symbol(self) -> str:
        """The name of the kernel's function: the specification's class and its values, so that no two share one."""
        return "_".join([type(self).__name__, *(str(getattr(self, field.name)) for field in fields(self))])

    @abstractmethod
    def build(self, isa: Isa) -> Kernel:
        """Writes the kernel for an instruction set; its function is named ``symbol``."""


@dataclass(frozen=True)
class StepSpec(KernelSpec):
    """A kernel that is a step of a program; its parameters are ``PARAMETERS``."""

    arguments: ClassVar[DType]
    """What its table of arguments holds."""


def arguments_dtype(*names: str) -> DType:
    """A table of arguments: 64 bits each, a number or an address."""
    return np.dtype([(name, np.int64) for name in names])


@dataclass(frozen=True)
class Arguments:
    """Reads a table of arguments, or another record of 64-bit numbers, in generated code."""

    address: Value
    dtype: DType

    def load(self, name: str) -> Value:
        """Loads one number of the table."""
        if self.dtype.fields is None or name not in self.dtype.fields:
            raise KeyError(f"{name} is none of {self.dtype.names}")
        return (self.address + self.dtype.fields[name][1]).load(I64)


def each_block(k: Kernel, isa: Isa, width: Value, body: Callable[[int, Value], None]) -> None:
    """Covers ``width`` tokens (a multiple of 16) with blocks, the widest first: ``body(block, first token)``."""
    widest = isa.blocks[0]
    with k.loop(0, width.divide_unsigned(widest) * widest, widest) as start:
        body(widest, start)
    covered = width.divide_unsigned(widest) * widest
    for block in isa.blocks[1:]:
        with k.if_((width & block).compare_signed("!=", 0)):
            body(block, covered)
        covered = covered + (width & block)
