"""A circuit: open after failures in a row, closed by a task of its own that asks now and then. No request is risked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import IntEnum

log = logging.getLogger(__name__)

#: Failures in a row, without one success between them, that open it.
FAILURES_MAX = 5
#: Pauses between two looks grow from here to there.
PAUSE_S, PAUSE_S_MAX = 0.1, 2.0


class CircuitState(IntEnum):
    """Whether requests are let through; in OPEN and HALF_OPEN they fail at once, in HALF_OPEN it is asked itself."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Circuit:
    """`answers` looks whether `what` is back. Only the event loop uses it."""

    def __init__(self, what: str, answers: Callable[[], Awaitable[bool]]) -> None:
        self._what, self._answers = what, answers
        self._failures = 0
        self._last = ""
        self._probing: asyncio.Task[None] | None = None
        self._asking = False

    @property
    def state(self) -> CircuitState:
        """How it stands."""
        if self._probing is None:
            return CircuitState.CLOSED
        return CircuitState.HALF_OPEN if self._asking else CircuitState.OPEN

    @property
    def is_open(self) -> bool:
        """Whether requests fail at once."""
        return self._probing is not None

    @property
    def refusal(self) -> str:
        """What a request is told that is not even tried."""
        return f"{self._last}; it failed {self._failures} times in a row, and is asked again every {PAUSE_S_MAX:g} s"

    def failed(self, error: Exception) -> None:
        """A request found nobody there."""
        self._failures += 1
        self._last = str(error)
        if self._failures >= FAILURES_MAX and self._probing is None:
            log.warning("%s is given up on until it answers again: %s", self._what, error)
            self._probing = asyncio.create_task(self._probe())

    def succeeded(self) -> None:
        """A request was answered."""
        self._failures = 0

    def close(self) -> None:
        """Ask no more."""
        if self._probing is not None:
            self._probing.cancel()

    async def _probe(self) -> None:
        pause_s = PAUSE_S
        try:
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                self._asking = True
                if await self._answers():
                    break
                self._asking = False
            log.warning("%s answers again", self._what)
        finally:  # a defect while asking is met by the next request, instead of keeping all away
            self._failures, self._asking, self._probing = 0, False, None
