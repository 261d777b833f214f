"""Threads that run programs together.

The thread that calls is one of them; the others sleep until there is a program. What happens inside is machine code that
holds no lock of the interpreter. One program at a time: calls from several threads wait for each other.

A forked process has the memory and none of the threads: a team there starts its own with its first program.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.jit import Code
from prunus.runtime.kernels.drive import HEAD

__all__ = ["Team", "aligned", "table_of"]

Array = NDArray[Any]


def aligned(shape: tuple[int, ...], dtype: type) -> Array:
    """Zeros whose first byte starts a cache line; kernels may read (not write) 256 bytes past the end."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 320, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def table_of(names: Iterable[str], values: Mapping[str, int | Array]) -> Array:
    """A kernel's table of arguments: numbers, and addresses of arrays, which the caller keeps alive; 0 where none is given."""
    numbers = [values.get(name, 0) for name in names]
    return np.array([n.ctypes.data if isinstance(n, np.ndarray) else n for n in numbers], np.int64)


@dataclass
class Desk:
    """What the sleeping threads know: not the team, so that a forgotten team can end."""

    code: Code
    """Keeps the machine code of ``drive`` in memory."""
    drive: Callable[..., None]
    gates: list[threading.Semaphore]
    job: tuple[int, ...] = ()
    """Program, steps, threads, counter, its value before, address of a function that lets others run."""
    scratch: list[Array] = field(default_factory=list)

    def run(self, thread: int) -> None:
        """The part of one thread."""
        program, steps, *shared = self.job
        threads, *rest = shared
        self.drive(program, steps, thread, threads, *rest, self.scratch[thread].ctypes.data)


class Team:
    """``threads`` threads, the calling one among them; ``code`` has the kernel ``drive``."""

    def __init__(self, code: Code, threads: int) -> None:
        self.threads = threads
        self._counter = aligned((8,), np.int64)
        self._rest = rest_address()
        self._prepare(code)
        self._start()
        _TEAMS.add(self)

    def _prepare(self, code: Code) -> None:
        gates = [threading.Semaphore(0) for _ in range(self.threads - 1)]
        self._desk, self._lock, self._started = Desk(code, code.function("drive", 8), gates), threading.RLock(), False
        self._end = weakref.finalize(self, dismiss, self._desk)

    def _start(self) -> None:
        self._started = True
        for i in range(1, self.threads):
            threading.Thread(target=work, args=(self._desk, i), daemon=True, name=f"prunus-{i}").start()

    def forked(self) -> None:
        """In a forked process: what its threads and their lock left behind is laid aside."""
        if self._end.detach() is not None:
            self._prepare(self._desk.code)

    def __enter__(self) -> "Team":
        """Takes the team for one caller."""
        self._lock.acquire()
        if not self._end.alive:
            self._lock.release()
            raise EngineError(Problem("engine", "closed", "be open", "loading it again"))
        if not self._started:
            self._start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._lock.release()

    @property
    def bytes(self) -> int:
        """Scratch memory of all threads."""
        return sum(scratch.nbytes for scratch in self._desk.scratch)

    def run(self, program: Array, scratch: int) -> None:
        """Runs a program ``[steps, HEAD + 4 threads]``; the caller has the team (``with team:``).

        Args:
            program: see ``kernels.drive``.
            scratch: bytes that each thread needs for itself.

        """
        desk = self._desk
        if not desk.scratch or desk.scratch[0].nbytes < scratch:
            desk.scratch = [aligned((max(scratch, 64),), np.uint8) for _ in range(self.threads)]
        if program.shape[1] != HEAD + 4 * self.threads:
            raise ValueError("a program for another number of threads")
        place, counter = program.ctypes.data, self._counter
        desk.job = (place, len(program), self.threads, counter.ctypes.data, int(counter[0]), self._rest)
        for gate in desk.gates:
            gate.release()
        desk.run(0)

    def close(self) -> None:
        """Ends the threads, after the program that runs."""
        with self._lock:
            self._end()


def work(desk: Desk, thread: int) -> None:
    """Life of a thread of a team."""
    gate = desk.gates[thread - 1]
    while True:
        gate.acquire()
        if not desk.job:
            return
        desk.run(thread)


def dismiss(desk: Desk) -> None:
    desk.job = ()
    for gate in desk.gates:
        gate.release()


def after_fork() -> None:
    for team in list(_TEAMS):
        team.forked()


def rest_address() -> int:
    """Address of a C function that lets other threads run."""
    library = ctypes.CDLL(None)
    return ctypes.cast(library.sched_yield, ctypes.c_void_p).value or 0


_TEAMS: Final[weakref.WeakSet[Team]] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
