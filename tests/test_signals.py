"""Signals that end a process: handled while a command works, left alone where they are ignored or have other handlers."""

import os
import signal
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import typer
from rich.console import Console

from prunus.cli_errors import errors
from prunus.signals import Stopped, handling, stop

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    """As in a new process."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), list(zip(NUMBERS, (130, 143, 129), strict=True)))
def test_a_signal_becomes_a_line_and_an_exit_status(number: int, status: int, capfd: Any) -> None:
    console = Console(stderr=True)
    with pytest.raises(typer.Exit) as caught, handling(stop), errors(console):
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == status
    assert capfd.readouterr().err == "stopped\n"


def test_inner_handlers_come_first_and_all_are_put_back() -> None:
    seen: list[int] = []
    before = [signal.getsignal(number) for number in NUMBERS]
    with handling(stop):
        with handling(seen.append):
            for number in NUMBERS:
                os.kill(os.getpid(), number)
        assert seen == NUMBERS
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize(
    "other", [signal.SIG_IGN, lambda number, frame: None], ids=["nohup", "a handler of the program"]
)
def test_a_signal_that_is_ignored_or_handled_stays_so(other: Any) -> None:
    signal.signal(signal.SIGHUP, other)
    seen: list[int] = []
    with handling(seen.append):
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is other
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_other_threads_leave_signals_alone() -> None:
    def work() -> None:
        with handling(stop):
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[Any] = []
    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
