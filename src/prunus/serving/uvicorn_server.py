"""uvicorn, as this server wants it: a stop that finishes what was accepted, and clients that have to be in time.

Both are subclasses that use what uvicorn offers for it; nothing of it is replaced.
"""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import cast

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from prunus.serving.middleware import ServerState
from prunus.serving.options import Options

__all__ = ["GracefulServer", "protocol"]


class GracefulServer(Server):
    """The first signal refuses new requests and finishes the open ones; the second ends at once."""

    def __init__(self, config: Config, server_state: ServerState, grace: float) -> None:
        super().__init__(config)
        self._state, self._grace = server_state, grace
        self._until = 0.0
        self.lost = 0
        """Requests that were still open when the time was over."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """SIGHUP, which a closed terminal sends, is as SIGTERM; below ``nohup`` it is ignored, and stays so."""
        hangup = getattr(signal, "SIGHUP", None)
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(hangup) if hangup is not None and main else signal.SIG_IGN
        if hangup is None or before == signal.SIG_IGN:
            with super().capture_signals():
                yield
            return
        signal.signal(hangup, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(hangup, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of SIGINT, SIGTERM and SIGHUP. uvicorn's own would close the port at once, and end with the signal instead of 0."""
        if self._state.stopping:
            self.lost = self._state.open_requests
            self.should_exit = self.force_exit = True
            return
        self._state.stopping = True
        self._until = time.monotonic() + self._grace

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if (
            self._state.stopping
            and not self.should_exit
            and (not self._state.open_requests or time.monotonic() > self._until)
        ):
            self.lost = self._state.open_requests
            self.should_exit = True
        return await super().on_tick(counter)


class TimeoutProtocol(H11Protocol):
    """Sends answers at once; ends a connection whose client sends no whole head in time, or takes nothing of its answer.

    uvicorn waits for both for ever; the time of a body is the application's, and between requests uvicorn has its own.
    """

    patience: float = 10.0
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The time of the first head begins."""
        super().connection_made(cast(asyncio.Transport, transport))
        # asyncio does this for some sockets only. Without it the body of an answer, written after its head, waits for the
        # client's acknowledgement: 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._late = self.loop.call_later(self.patience, self._close)

    def data_received(self, data: bytes) -> None:
        """A head begins, goes on, or is whole."""
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if waits and self._late is None:
            self._late = self.loop.call_later(self.patience, self._close)
        elif not waits:
            self._in_time()

    def pause_writing(self) -> None:
        """More is to be sent than the client takes now."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._taken()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._in_time()
        self._taken()
        super().connection_lost(exc)

    def _watch_reader(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:  # nothing was taken all the time; to close would wait for it too
            self._stalled = None
            self.transport.abort()
            return
        self._stalled = self.loop.call_later(self.patience, self._watch_reader, left)

    def _taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def protocol(options: Options) -> type[asyncio.Protocol]:
    """The protocol with this server's patience; uvicorn makes one an accepted connection and passes no options."""

    class Ours(TimeoutProtocol):
        patience = options.read_timeout

    return Ours
