"""Counts and histograms in Prometheus' text format, version 0.0.4: one name, one meaning, bounded labels.

Written by the event loop and by the worker, so under a lock. A histogram's buckets are cumulative: ``le`` counts what was at
most so much.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS: Final = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
COUNTERS: Final = {
    "prunus_requests_total": "Requests answered, by endpoint and status.",
    "prunus_rejected_total": "Requests refused for want of room or time, by reason.",
}
HISTOGRAMS: Final = {
    "prunus_request_seconds": ("Seconds from the head of a request to the end of its answer, by endpoint.", SECONDS),
    "prunus_batch_tokens": ("Tokens of each batch that the engine computed.", TOKENS),
    "prunus_batch_seconds": ("Seconds that the engine took for a batch.", SECONDS),
}
GAUGES: Final = {
    "prunus_queue_requests": "Requests that wait.",
    "prunus_queue_tokens": "Tokens that wait.",
    "prunus_open_requests": "Requests that are read, wait, or are answered.",
}


class Metrics:
    """What a server counts of itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {name: {} for name in COUNTERS}
        self._seen: dict[str, dict[str, list[float]]] = {name: {} for name in HISTOGRAMS}

    def count(self, name: str, **labels: str) -> None:
        """One more. Labels come from small fixed sets, never from a request."""
        key = ",".join(f'{label}="{value}"' for label, value in labels.items())
        with self._lock:
            self._counts[name][key] = self._counts[name].get(key, 0) + 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One value of a histogram."""
        key, edges = ",".join(f'{label}="{text}"' for label, text in labels.items()), HISTOGRAMS[name][1]
        with self._lock:
            row = self._seen[name].setdefault(key, [0.0] * (len(edges) + 2))  # buckets, those above, the sum
            row[bisect_left(edges, value)] += 1
            row[-1] += value

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it, as Prometheus reads it."""
        with self._lock:
            return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        for name, about in COUNTERS.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} counter")
            yield from (f"{name}{{{key}}} {count}" for key, count in self._counts[name].items())
        for name, about in GAUGES.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {gauges.get(name, 0):g}")
        for name, (about, edges) in HISTOGRAMS.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} histogram")
            for key, row in self._seen[name].items():
                total, comma, labels = 0.0, "," if key else "", f"{{{key}}}" if key else ""
                for edge, more in zip((*map("{:g}".format, edges), "+Inf"), row, strict=False):
                    total += more
                    yield f'{name}_bucket{{{key}{comma}le="{edge}"}} {total:.0f}'
                yield from (f"{name}_sum{labels} {row[-1]:.9g}", f"{name}_count{labels} {total:.0f}")
