"""A circuit breaker before the store: when it fails again and again, requests fail at once until it answers.

No request is risked to find out: a task of its own asks the store now and then. (purgatory, which fits asyncio, sends
callers ahead instead, all that come once its time is over, and passes each call through a unit of work and a bus.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from featurestore.errors import StoreBusy, StoreUnreachable
from featurestore.online.keys import BUCKETS
from featurestore.online.reading import AsyncReader, Fetched, Wanted, WantedTokens

log = logging.getLogger(__name__)

#: Failures in a row, without one success between them, that open it.
FAILURES_MAX = 5
#: Pauses between two looks at the store grow from here to there.
PAUSE_S, PAUSE_S_MAX = 0.1, 2.0
#: What is looked at: tokens spread over all servers of a Cluster, of a view that need not exist.
_PROBE = (WantedTokens("probe@0", np.arange(0, BUCKETS, BUCKETS // 64, dtype=np.uint16)),)


class BreakerState(IntEnum):
    """Whether requests reach the store; in OPEN and HALF_OPEN they fail at once, in HALF_OPEN the store is asked."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """A reader that gives up on a store for a while; closes by itself when the store is back."""

    def __init__(self, reader: AsyncReader) -> None:
        self._reader = reader
        self._failures = 0
        self._last: StoreUnreachable | StoreBusy | None = None
        self._probing: asyncio.Task[None] | None = None
        self._asking = False

    @property
    def state(self) -> BreakerState:
        """How it stands."""
        if self._probing is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._asking else BreakerState.OPEN

    async def connect(self) -> None:
        """Connect the reader."""
        await self._reader.connect()

    async def fetch(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens] = ()) -> Fetched:
        """What the reader fetches; StoreUnreachable at once while it is open."""
        if self._probing is not None:
            raise StoreUnreachable(
                f"{self._last}; it failed {self._failures} times in a row, and is asked again every {PAUSE_S_MAX:g} s"
            )
        try:
            fetched = await self._reader.fetch(wanted, tokens)
        except (StoreUnreachable, StoreBusy) as error:
            self._failures += 1
            self._last = error.with_traceback(None)
            if self._failures >= FAILURES_MAX and self._probing is None:
                log.warning("the store is given up on until it answers again: %s", error)
                self._probing = asyncio.create_task(self._probe())
            raise
        self._failures = 0
        return fetched

    async def close(self) -> None:
        """Close the reader."""
        if self._probing is not None:
            self._probing.cancel()
        await self._reader.close()

    async def _probe(self) -> None:
        pause_s = PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            self._asking = True
            with contextlib.suppress(StoreUnreachable, StoreBusy):
                await self._reader.fetch((), _PROBE)
                break
            self._asking = False
        log.warning("the store answers again")
        self._failures, self._probing, self._asking = 0, None, False
