"""The loop that runs a program: a list of steps, each a kernel with its table of arguments, shared by threads.

A step is 64-bit numbers: address of the kernel, address of its table, whether all threads meet before it, and then for each
thread what is its own: tiles [t0, t1) and groups [g0, g1). A thread walks the whole list in machine code; threads meet by
counting in one shared counter, which only ever grows, and at the end once more.
"""

from prunus.runtime.ir_builder import I64, Cell, Kernel

__all__ = ["HEAD", "drive"]

HEAD = 3
"""Numbers of a step before those of the threads."""
PATIENCE = 20_000
"""Looks at the counter before a waiting thread lets others run."""


def drive() -> Kernel:
    """Runs a program as one of its threads; ``base`` is the shared counter's value before, ``rest`` lets others run."""
    with Kernel("drive", ("program", "steps", "thread", "threads", "counter", "base", "rest", "scratch")) as k:
        met = Cell(k.base)
        size = (k.threads * 4 + HEAD) * 8

        def meet() -> None:
            met.add(k.threads)
            k.arrive(k.counter)
            k.wait(k.counter, met.get(), PATIENCE, k.rest)

        for step in k.range(0, k.steps):
            place = k.program + step * size
            kernel, table, barrier = ((place + 8 * i).load(I64) for i in range(3))
            for _ in k.when(barrier.compare("!=", 0)):
                meet()
            own = place + 8 * HEAD + k.thread * 32
            t0, t1, g0, g1 = ((own + 8 * i).load(I64) for i in range(4))
            for _ in k.when(t0.compare("<", t1)):
                k.invoke(kernel, table, t0, t1, g0, g1, k.scratch)
        meet()
    return k
