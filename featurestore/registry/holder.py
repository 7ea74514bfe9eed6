"""Who holds a lease: a text for people that also tells, on the same machine, whether that process still lives."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path

_HOLDER = re.compile(r"(?P<user>.*)@(?P<host>[^@]*) pid (?P<pid>\d+)(?: .*)?")


def user_name() -> str:
    """Who runs this process, for logs; the number where the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def holder_name(purpose: str = "") -> str:
    """This process as the holder of a lease: `ana@laptop/3f2a9c pid 4711 (materialize)`."""
    name = f"{user_name()}@{_host()} pid {os.getpid()}"
    return f"{name} ({purpose})" if purpose else name


@cache
def _host() -> str:
    """Where process numbers mean the same: machines may share a name, and containers on one do not share numbers."""
    try:
        seen = f"{_machine()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()
    return f"{socket.gethostname()}/{hashlib.sha256(seen.encode()).hexdigest()[:6]}"


def _machine() -> str:
    known = Path("/etc/machine-id")  # outlives a restart
    return (known.read_text() if known.exists() else "") or Path("/proc/sys/kernel/random/boot_id").read_text()


def is_gone(holder: str) -> bool:
    """Whether the holder ran on this machine and its process has ended; False when that cannot be told."""
    match = _HOLDER.fullmatch(holder)
    if match is None or match["host"] != _host():
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
