"""How every verb ends badly, and how it prints facts."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from prunus.errors import EXIT_CODE, FULL, PrunusError

__all__ = ["errors", "print_json"]


@contextmanager
def errors(console: Console) -> Iterator[None]:
    """A ``PrunusError``, or a device that does not take what is written, becomes its text and exit code 2, Ctrl-C 130."""
    try:
        yield
    except (PrunusError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), highlight=False, markup=False)
        raise typer.Exit(EXIT_CODE) from None
    except KeyboardInterrupt as stop:
        console.print(f"stopped: {stop}" if str(stop) else "stopped", highlight=False)
        raise typer.Exit(130) from None


def print_json(facts: Any) -> None:
    """One JSON object on standard output."""
    # JSON has no NaN, and Python writes it all the same; what was not a number becomes null, as in prunus.json.
    plain = json.loads(json.dumps(facts, default=str), parse_constant=lambda _: None)
    sys.stdout.write(json.dumps(plain, indent=2) + "\n")
