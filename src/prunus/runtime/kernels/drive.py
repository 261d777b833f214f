"""The loop that runs a program: a list of steps, each a kernel with its table of arguments, shared by threads.

A step is a record of ``program_dtype``: which kernel with which table, whether all threads meet before it, and for each thread
the tiles and groups that are its share. A thread walks the whole list in machine code. Threads meet by counting in one shared
counter, which only ever grows; they meet once more at the end.
"""

from dataclasses import dataclass

import numpy as np

from prunus.runtime.ir_builder import Kernel, Variable
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.step import Arguments, DType, KernelSpec

__all__ = ["PARAMETERS", "DriveSpec", "program_dtype"]

HEAD = np.dtype([(name, np.int64) for name in ("kernel", "arguments", "barrier")])
SHARE = np.dtype([(name, np.int64) for name in ("tile_begin", "tile_end", "group_begin", "group_end")])
PATIENCE = 20_000
"""Looks at the counter before a waiting thread lets others run."""
PARAMETERS = ("program", "steps", "thread", "threads", "counter", "base", "let_others_run", "scratch")


def program_dtype(threads: int) -> DType:
    """One step of a program for this many threads: ``HEAD``, then ``shares``, a ``SHARE`` for each thread.

    ``kernel`` and ``arguments`` are addresses; ``barrier`` is 1 where all threads meet before the step.
    """
    return np.dtype([*((name, HEAD[name]) for name in HEAD.names or ()), ("shares", SHARE, (threads,))])


@dataclass(frozen=True)
class DriveSpec(KernelSpec):
    """Runs a program as one of its threads.

    ``base`` is the shared counter's value before, ``let_others_run`` the address of a function that a waiting thread calls.
    """

    def build(self, isa: Isa) -> Kernel:
        """Writes the loop; it is the same for every instruction set."""
        with Kernel(self.symbol, PARAMETERS) as k:
            met = Variable(k.base)
            size = k.threads * SHARE.itemsize + HEAD.itemsize

            def meet() -> None:
                met.add(k.threads)
                k.arrive(k.counter)
                k.wait(k.counter, met.get(), PATIENCE, k.let_others_run)

            with k.loop(0, k.steps) as number:
                step = Arguments(k.program + number * size, HEAD)
                kernel, table, barrier = (step.load(name) for name in HEAD.names or ())
                with k.if_(barrier.compare_signed("!=", 0)):
                    meet()
                share = Arguments(step.address + HEAD.itemsize + k.thread * SHARE.itemsize, SHARE)
                tile_begin, tile_end, group_begin, group_end = (share.load(name) for name in SHARE.names or ())
                with k.if_(tile_begin.compare_signed("<", tile_end)):
                    k.invoke(kernel, table, tile_begin, tile_end, group_begin, group_end, k.scratch)
            meet()
        return k
