"""The machine that figures were taken on, and what a process of it may use."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = ("featurestore", "duckdb", "pyarrow", "numpy", "grpcio", "sqlalchemy")
KIB = 1024
#: `ru_maxrss` counts bytes on a Mac and KiB elsewhere.
_RSS_UNIT = 1 if sys.platform == "darwin" else KIB


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Machine and versions, as every run prints them."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS}},
    }


def peak_rss_bytes() -> int:
    """The most memory this process ever had in RAM."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux lets a started process inherit `ru_maxrss` from the one that started it; VmHWM is its own.
        (peak,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def free_disk_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
