"""How every verb ends badly, and how it prints facts.

A ``PrunusError``, and what the system refuses (a file, a device, the network), end with their reason and exit code 2, Ctrl-C
with 130, SIGTERM with 143, SIGHUP with 129. Anything else is a fault of prunus: exit code 1, one line, and the traceback in a
file for the report of it, or on the terminal where ``PRUNUS_DEBUG`` is set.
"""

import errno
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console

from prunus.errors import EXIT_CODE, PrunusError, first_line

__all__ = ["console", "errors", "flush_output", "in_utf8", "print_json", "tolerant"]

DEBUG: Final = "PRUNUS_DEBUG"
FAULT_CODE: Final = 1


@contextmanager
def errors(console: Console) -> Iterator[None]:
    """Whatever goes wrong inside becomes text on ``console`` and an exit code; see the module's docstring."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except PrunusError as error:
        _say(console, type(error).__name__, str(error))
        raise typer.Exit(EXIT_CODE) from None
    except KeyboardInterrupt as stop:
        console.print(f"stopped: {stop}" if str(stop) else "stopped", highlight=False)
        raise typer.Exit(128 + getattr(stop, "number", signal.SIGINT)) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # who reads us has gone; typer ends quietly
            raise
        if os.environ.get(DEBUG):
            raise
        if isinstance(error, OSError):
            _say(console, "OSError", _reason(error))
            raise typer.Exit(EXIT_CODE) from None
        _say(console, "internal error", _fault(error))
        raise typer.Exit(FAULT_CODE) from None


def _say(console: Console, name: str, text: str) -> None:
    console.print(name, end="", style="bold red", markup=False)
    console.print(": ", end="")
    # A path may hold bytes, and a text halves of characters, that no terminal takes.
    console.print(text.encode("utf-8", errors="backslashreplace").decode(), highlight=False, markup=False)


def _reason(error: OSError) -> str:
    """What the system refused, and why."""
    if error.strerror is None:
        return first_line(error)
    names = [
        os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    shown = [os.fsdecode(name) for name in names]
    return ": ".join([*shown, error.strerror])


def _fault(error: Exception) -> str:
    """One line for what should not have happened, with where its traceback is."""
    told = f"{type(error).__name__}: {first_line(error)}"
    try:
        handle, path = tempfile.mkstemp(prefix="prunus-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{told}; this is a fault of prunus: set {DEBUG}=1 to see where"
    return f"{told}; this is a fault of prunus, please report it with {path}"


def in_utf8() -> None:
    """Starts the process again in Python's UTF-8 mode where its locale says another encoding, as ``LC_ALL=C`` may.

    tokenizers and safetensors take paths in UTF-8 alone, and Python's own functions those of the locale.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def console(stderr: bool = False) -> Console:
    """A console that prints paths as they are: a path may hold brackets. A width of 0, which would show nothing, is none."""
    environ = {name: value for name, value in os.environ.items() if (name, value) != ("COLUMNS", "0")}
    return Console(stderr=stderr, soft_wrap=True, markup=False, _environ=environ)


def tolerant() -> None:
    """From now on standard output takes any text: what its encoding lacks is written as an escape.

    A stream that the caller has closed (``>&-``) takes it, too, and drops it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Writes what standard output still buffers. A device that is full is told like any other reason, with exit status 2.

    Called as the process ends: where it ends with an error already, that one is told alone.
    """
    ending = sys.exc_info()[1]
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try again when it ends, and complain
        failed = not isinstance(ending, SystemExit) or ending.code not in (None, 0)
        if not failed and not isinstance(error, BrokenPipeError):  # who reads no further wants no more
            sys.stderr.write(f"OSError: standard output must take what is printed, got {first_line(error)}\n")
            raise SystemExit(EXIT_CODE) from None


def print_json(facts: Any) -> None:
    """One JSON object on standard output."""
    # JSON has no NaN, and Python writes it all the same; what was not a number becomes null, as in prunus.json.
    plain = json.loads(json.dumps(facts, default=str), parse_constant=lambda _: None)
    sys.stdout.write(json.dumps(plain, indent=2) + "\n")
