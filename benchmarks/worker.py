"""`featurestore serve` as a process of its own, to be measured: where it answers, how soon, and the memory it takes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import KIB
from benchmarks.world import Shape
from featurestore.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A serving process that is ready; `ready_s` after it was started."""

    address: str
    pid: int
    ready_s: float

    def memory_bytes(self) -> tuple[int, int]:
        """(memory in RAM now, the most it ever was)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        found = {line.partition(":")[0]: line.split() for line in status.splitlines()}
        return int(found["VmRSS"][1]) * KIB, int(found["VmHWM"][1]) * KIB

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker(
    folder: Path, shape: Shape, *, module: str = "featurestore.cli.main", cores: set[int] | None = None, **settings: str
) -> Iterator[Worker]:
    """One worker over a repository, at a clock after its last row, with `FEATURESTORE_*` settings as named."""
    command = [sys.executable, "-m", module, "-C", str(folder), "--now", shape.end.isoformat(), "serve", "--port", "0"]
    began = time.monotonic()
    with pinned(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment(settings))
    with process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            ready_s = time.monotonic() - began
            found = re.search(r"serving on (\S+)", said)
            if found is None:
                raise ConfigError("the server did not start; it says why above")
            yield Worker(address=found[1], pid=process.pid, ready_s=ready_s)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def pinned(cores: set[int] | None) -> Iterator[None]:
    """Meanwhile this thread, and what it starts, runs on these cores; None: wherever it may."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def two_cores() -> tuple[set[int] | None, set[int] | None]:
    """A core for the server, and another one for whoever asks; (None, None) where there are no two."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return ({cores[0]}, {cores[1]}) if len(cores) > 1 else (None, None)


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """Bytecode is kept, as it is wherever nobody forbids it: a start would be timed that compiles every module."""
    named = {f"FEATURESTORE_{name.upper()}": value for name, value in settings.items()}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(ROOT), **named}
