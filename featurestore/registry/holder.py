"""Who holds a lease: a text for people that also tells, on the same machine, whether that process still lives."""

from __future__ import annotations

import getpass
import os
import re
import socket

_HOLDER = re.compile(r"(?P<user>.*)@(?P<host>[^@]*) pid (?P<pid>\d+)(?: .*)?")


def user_name() -> str:
    """Who runs this process, for logs; the number where the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def holder_name(purpose: str = "") -> str:
    """This process as the holder of a lease: `ana@laptop pid 4711 (materialize)`."""
    name = f"{user_name()}@{socket.gethostname()} pid {os.getpid()}"
    return f"{name} ({purpose})" if purpose else name


def is_gone(holder: str) -> bool:
    """Whether the holder ran on this machine and its process has ended; False when that cannot be told."""
    match = _HOLDER.fullmatch(holder)
    if match is None or match["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
