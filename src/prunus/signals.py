"""Signals that end a process: what a command does about Ctrl-C (SIGINT), SIGTERM and SIGHUP.

A signal that is ignored stays ignored (SIGHUP below ``nohup``), and one that the program has a handler of its own for is left
to it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Final

__all__ = ["Stopped", "handling", "stop"]

_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal has ended the work; ``number`` is which."""

    def __init__(self, text: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.number = int(number)


@dataclass(frozen=True)
class _Handler:
    handle: Callable[[int], None]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.handle(number)


def stop(number: int) -> None:
    """Raises ``Stopped``."""
    raise Stopped(number=number)


@contextmanager
def handling(handle: Callable[[int], None]) -> Iterator[None]:
    """Calls ``handle(number)`` for each of these signals; does nothing outside of the main thread."""
    before: dict[int, Any] = {}
    try:
        for number in _NUMBERS if current_thread() is main_thread() else ():
            held = signal.getsignal(number)
            if held in (signal.SIG_DFL, signal.default_int_handler) or isinstance(held, _Handler):
                before[number] = held
                signal.signal(number, _Handler(handle))
        yield
    finally:
        for number, held in before.items():
            signal.signal(number, held)
