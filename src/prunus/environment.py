"""The machine and the versions of packages that a result was made with."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from prunus._version import __version__
from prunus.distributed.processes import training_threads

__all__ = ["environment", "package_versions", "processor"]

_PACKAGES: Final = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


def environment(threads: int | None = None) -> dict[str, Any]:
    """Versions and the machine."""
    facts = {"prunus": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    facts |= package_versions(_PACKAGES)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return facts | {
        "cpu": processor(),
        "cores": cores,
        "threads": training_threads(threads),
        "accelerator": device,
    }


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if "torch" in versions:
        versions["torch"] = torch.__version__  # its build (+cpu, +cu130), which the package index leaves out
    return versions


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
