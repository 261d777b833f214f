"""What every result file says of the run that made it."""

from datetime import UTC, datetime
from typing import Any

from prunus.bench.command import versions
from prunus.environment import processor

__all__ = ["header"]


def header(command: str, **more: Any) -> dict[str, Any]:
    """The command, when, on which processor, with which versions; and ``more``, such as threads."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "date": now, "processor": processor(), "versions": versions(), **more}
