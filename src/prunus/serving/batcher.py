"""Sequences of many requests -> batches of one engine.

    event loop                            worker (one thread, which alone calls the engine)
    compute: check room, append, await    take: from the front, sequence by sequence, up to max_batch_tokens
                     ^                    run:  engine.states -> finish each -> last sequence of a job done?
                     +---- call_soon_threadsafe(set result) ----+

Batches form while the engine is busy: it is never idle while something waits (unless ``max_wait_ms`` says so). A request is
cut between its sequences where it does not fit, so a batch is full whatever the requests are. What waits is bounded in tokens
and in requests; there is no other queue behind it.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from prunus.errors import EngineError, Problem
from prunus.serving.options import Array, Options, Served
from prunus.serving.problems import Refused

__all__ = ["Batcher"]

LOG: Final = logging.getLogger("prunus.serving")
LONGEST_WAIT: Final = 60


@dataclass(eq=False)
class Job:
    """One request in the queue: what it asks, how far it is taken, what is done."""

    sequences: Sequence[Array]
    types: Sequence[Array]
    finish: Callable[[Array], Array]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[list[Array]]"
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    """Sequences that the worker has taken."""
    done: dict[int, Array] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Tokens not yet taken."""
        return sum(len(one) for one in self.sequences[self.taken :])


Batch = list[tuple[Job, int]]


class Batcher:
    """The queue before an engine, and the thread that empties it. The thread starts with the first request."""

    def __init__(self, engine: Served, options: Options, watch: Callable[[int, float], None] | None = None) -> None:
        self._engine, self._options = engine, options
        self._watch = watch or (lambda tokens, seconds: None)
        self._change = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._tokens = 0
        self._rate = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and tokens in the queue."""
        with self._change:
            return len(self._jobs), self._tokens

    @property
    def ready(self) -> bool:
        """Whether what is put in will be computed."""
        return not self._closing and (self._thread is None or self._thread.is_alive())

    async def compute(
        self, sequences: Sequence[Array], types: Sequence[Array], finish: Callable[[Array], Array]
    ) -> list[Array]:
        """``finish`` of each sequence's states ``[tokens, hidden]``. Cancelled, it leaves the queue.

        Args:
            sequences: token ids of each, none empty.
            types: token types of each.
            finish: called in the worker; what it returns should be small, as states are not kept.

        Raises:
            Refused: 413 it would never fit, 429 it does not fit now, 503 the server stops.
            Exception: what the engine or ``finish`` raised.

        """
        loop = asyncio.get_running_loop()
        job = Job(sequences, types, finish, loop, loop.create_future())
        self._put(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._drop(job)
            raise

    def _put(self, job: Job) -> None:
        tokens, most = job.waiting, self._options.queue_tokens
        if tokens > most:
            rule = f"have at most {most} tokens (queue_tokens)"
            raise Refused(413, Problem("request", f"{tokens} tokens", rule, "several requests"))
        with self._change:
            if not self.ready:
                raise Refused(503, Problem("server", "stopping", "be ready", "another server"), retry_after=1)
            if len(self._jobs) >= self._options.queue_requests or self._tokens + tokens > most:
                got = f"{len(self._jobs)} requests with {self._tokens} tokens before {tokens} more"
                rule = f"hold at most {self._options.queue_requests} requests and {most} tokens"
                raise Refused(429, Problem("queue", got, rule, "later"), retry_after=self._patience())
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prunus-batches", daemon=True)
                self._thread.start()
            self._jobs.append(job)
            self._tokens += tokens
            self._change.notify()

    def _patience(self) -> int:
        """Seconds until the queue of now is computed, at the speed of the last batches."""
        return min(LONGEST_WAIT, max(1, math.ceil(self._tokens / self._rate))) if self._rate else 1

    def _drop(self, job: Job) -> None:
        with self._change:
            if job in self._jobs:
                self._jobs.remove(job)
                self._tokens -= job.waiting
                self._change.notify()

    def _work(self) -> None:
        while batch := self._take():
            self._run(batch)

    def _take(self) -> Batch:
        """The next batch; an empty one when nothing will come."""
        most = self._options.max_batch_tokens
        with self._change:
            while True:
                if not self._jobs:
                    if self._closing:
                        return []
                    self._change.wait()
                    continue
                rest = self._jobs[0].arrived + self._options.max_wait_ms / 1000 - time.monotonic()
                if rest <= 0 or self._tokens >= most or self._closing:
                    break
                self._change.wait(rest)
            batch: Batch = []
            tokens = 0
            while self._jobs:
                job = self._jobs[0]
                length = len(job.sequences[job.taken])
                if batch and tokens + length > most:
                    break
                batch.append((job, job.taken))
                job.taken += 1
                tokens += length
                if job.taken == len(job.sequences):
                    self._jobs.popleft()
            self._tokens -= tokens
            return batch

    def _run(self, batch: Batch) -> None:
        """Computes a batch. Where it fails, each job alone, so that one bad request fails alone."""
        jobs = list(dict.fromkeys(job for job, _ in batch))
        try:
            self._compute(batch)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            LOG.warning("a batch of %d requests failed (%r); computing each alone", len(jobs), error)
            for job in jobs:
                self._run([part for part in batch if part[0] is job])

    def _compute(self, batch: Batch) -> None:
        tokens, start = sum(len(job.sequences[i]) for job, i in batch), time.perf_counter()
        states = self._engine.states([job.sequences[i] for job, i in batch], [job.types[i] for job, i in batch])
        finished = [job.finish(state) for (job, _), state in zip(batch, states, strict=True)]
        seconds = max(time.perf_counter() - start, 1e-9)
        speed = tokens / seconds
        self._rate = 0.8 * self._rate + 0.2 * speed if self._rate else speed
        self._watch(tokens, seconds)
        for (job, i), value in zip(batch, finished, strict=True):
            job.done[i] = value
            if len(job.done) == len(job.sequences):
                self._tell(job, lambda job: job.future.set_result([job.done[k] for k in range(len(job.done))]))

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, EngineError):
            LOG.error("a request failed in the engine", exc_info=error)
        self._drop(job)
        self._tell(job, lambda job: job.future.set_exception(error))

    def _tell(self, job: Job, what: Callable[[Job], None]) -> None:
        def call() -> None:
            if not job.future.done():  # its client may be gone
                what(job)

        try:
            job.loop.call_soon_threadsafe(call)
        except RuntimeError:
            LOG.warning("an answer came after its event loop was closed")

    def close(self) -> None:
        """Takes nothing more, computes what waits, ends the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()
