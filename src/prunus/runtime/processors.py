"""How many threads to start where nobody says: one function for the engine, training, serving and benchmarks.

    the fewest of    PRUNUS_THREADS, if it is set (then nothing else counts)
                     processors that this process may run on (affinity)
                     the CPU quota of its control groups, rounded down, at least 1

A container with a quota sees all processors of the machine. More threads than the quota pays for are stopped by the kernel
for most of each period, while the others wait for them.
"""

import math
import os
from pathlib import Path
from typing import Final

__all__ = ["cpu_quota", "processors"]

ROOT: Final = Path("/sys/fs/cgroup")
MEMBER: Final = Path("/proc/self/cgroup")


def processors() -> int:
    """The default number of threads: at least 1; 0 where ``PRUNUS_THREADS`` is no number, which callers refuse."""
    stated = os.environ.get("PRUNUS_THREADS", "")
    if stated:
        return int(stated) if stated.isdecimal() else 0
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.floor(quota)))


def cpu_quota(root: Path = ROOT, member: Path = MEMBER) -> float | None:
    """Processors that the control groups of this process (version 1 or 2) and their parents allow; None without a limit.

    Args:
        root: where control groups are mounted.
        member: the file that names the groups of this process.

    """
    limits = []
    for line in _lines(member):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            limits += [_version_2(place) for place in _and_parents(root, group)]
        elif "cpu" in controllers.split(","):
            for mount in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                limits += [_version_1(place) for place in _and_parents(root / mount, group)]
    return min((limit for limit in limits if limit is not None), default=None)


def _and_parents(mount: Path, group: str) -> list[Path]:
    """The directory of a group, those above it, and the mount itself.

    Without a namespace of its own, a container is told a path that is not there; its limit is then that of the mount.
    """
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _version_2(place: Path) -> float | None:
    fields = " ".join(_lines(place / "cpu.max")).split()
    return _share(fields[0], fields[1]) if len(fields) == 2 else None


def _version_1(place: Path) -> float | None:
    quota, period = (" ".join(_lines(place / f"cpu.cfs_{name}_us")).strip() for name in ("quota", "period"))
    return _share(quota, period)


def _share(quota: str, period: str) -> float | None:
    """Processors of a quota and its period in microseconds; None for ``max``, -1, or anything else without a limit."""
    if not quota.isdecimal() or not period.isdecimal() or not int(quota) or not int(period):
        return None
    return int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
