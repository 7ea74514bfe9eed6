"""Waiting for what must come, so long that only what never comes fails: CI is slow, and stalls."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 150.0
_PAUSE_S = 0.01


def until(holds: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait for it to hold."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to hold within {timeout_s:g} s"
        time.sleep(_PAUSE_S)
