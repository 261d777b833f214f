"""A pool of threads that run programs together.

The thread that calls is one of them; the others sleep until there is a program. What happens inside is machine code that
holds no lock of the interpreter. One program at a time: calls from several threads wait for each other.

A forked process has the memory and none of the threads: a pool there starts its own threads with its first program.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.jit import Code
from prunus.runtime.kernels.drive import PARAMETERS, DriveSpec, program_dtype

__all__ = ["ThreadPool", "aligned"]

Array = NDArray[Any]


def aligned(shape: tuple[int, ...], dtype: type) -> Array:
    """Zeros whose first byte starts a cache line; kernels may read (not write) 256 bytes past the end."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 320, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Job:
    """A program for all threads; numbers and addresses are parameters of ``DriveSpec``."""

    program: int
    steps: int
    threads: int
    counter: int
    base: int
    let_others_run: int


@dataclass
class _Shared:
    """What the sleeping threads know: not the pool, so that a pool that nobody uses can be collected."""

    code: Code
    """Keeps the machine code of ``drive`` in memory."""
    drive: Callable[..., None]
    wakers: list[threading.Semaphore]
    """One for each sleeping thread."""
    job: _Job | None = None
    """What to run when woken; None: end."""
    scratch: list[Array] = field(default_factory=list)

    def run(self, thread: int) -> None:
        """Runs the part of one thread."""
        job = self.job
        if job is None:
            return
        self.drive(
            *(job.program, job.steps, thread, job.threads, job.counter, job.base, job.let_others_run),
            self.scratch[thread].ctypes.data,
        )


class ThreadPool:
    """``threads`` threads, the calling one among them; ``code`` has the kernel ``DriveSpec()``."""

    def __init__(self, code: Code, threads: int) -> None:
        self.threads = threads
        self._counter = aligned((8,), np.int64)
        self._let_others_run = _yield_address()
        self._dtype = program_dtype(threads)
        self._prepare(code)
        self._start()
        _POOLS.add(self)

    def _prepare(self, code: Code) -> None:
        wakers = [threading.Semaphore(0) for _ in range(self.threads - 1)]
        self._shared = _Shared(code, code.function(DriveSpec(), len(PARAMETERS)), wakers)
        self._lock, self._started = threading.RLock(), False
        self._end = weakref.finalize(self, _dismiss, self._shared)

    def _start(self) -> None:
        self._started = True
        for i in range(1, self.threads):
            threading.Thread(target=_work, args=(self._shared, i), daemon=True, name=f"prunus-{i}").start()

    def forked(self) -> None:
        """Forgets, in a forked process, the threads and the lock that stayed in the parent."""
        if self._end.detach() is not None:
            self._prepare(self._shared.code)

    def __enter__(self) -> "ThreadPool":
        """Reserves the pool for one caller."""
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
        return sum(scratch.nbytes for scratch in self._shared.scratch)

    def run(self, program: Array, scratch: int) -> None:
        """Runs a program; the caller has reserved the pool (``with pool:``).

        Args:
            program: ``[steps]`` of ``program_dtype(threads)``.
            scratch: bytes that each thread needs for itself.

        Raises:
            ValueError: a program for another number of threads.

        """
        shared = self._shared
        if not shared.scratch or shared.scratch[0].nbytes < scratch:
            shared.scratch = [aligned((max(scratch, 64),), np.uint8) for _ in range(self.threads)]
        if program.dtype != self._dtype or program.ndim != 1:
            raise ValueError(f"a program for {self.threads} threads is needed")
        place, counter = program.ctypes.data, self._counter
        base = int(counter[0])
        shared.job = _Job(place, len(program), self.threads, counter.ctypes.data, base, self._let_others_run)
        for waker in shared.wakers:
            waker.release()
        shared.run(0)

    def close(self) -> None:
        """Ends the threads, after the program that runs."""
        with self._lock:
            self._end()


def _work(shared: _Shared, thread: int) -> None:
    """The life of a sleeping thread."""
    waker = shared.wakers[thread - 1]
    while True:
        waker.acquire()
        if shared.job is None:
            return
        shared.run(thread)


def _dismiss(shared: _Shared) -> None:
    shared.job = None
    for waker in shared.wakers:
        waker.release()


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool.forked()


def _yield_address() -> int:
    """The address of a C function that lets other threads run."""
    library = ctypes.CDLL(None)
    return ctypes.cast(library.sched_yield, ctypes.c_void_p).value or 0


_POOLS: Final[weakref.WeakSet[ThreadPool]] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
