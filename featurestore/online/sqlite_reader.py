"""SQLite read from an event loop: inline, since a hundred rows take less time than a thread does to wake up.

A locked file is asked again between other requests, never waited for inside SQLite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from featurestore.errors import StoreBusy
from featurestore.online.base import OnlineStore
from featurestore.online.reading import Fetched, Wanted, WantedTokens

#: Keys that are read inline, some 3 ms; more are read in a thread.
INLINE_KEYS_MAX = 1_000
#: Between two tries of a locked file.
PAUSE_S = 0.01

Result = TypeVar("Result")


class SqliteReader:
    """Reads through a store of its own, which `opened` makes and which does not wait for locks."""

    def __init__(self, opened: Callable[[], OnlineStore], timeout_s: float) -> None:
        self._opened, self._timeout_s = opened, timeout_s
        self._store: OnlineStore | None = None

    async def connect(self) -> None:
        """Open the file."""
        self._store = await self._patiently(self._opened, in_thread=True)

    async def fetch(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens] = ()) -> Fetched:
        """The rows and tokens; StoreBusy when the file stays locked for as long as the store may take."""
        large = sum(len(asked.keys) for asked in wanted) > INLINE_KEYS_MAX
        return await self._patiently(lambda: self._read(wanted, tokens), in_thread=large)

    async def close(self) -> None:
        """Close the file, if it was opened."""
        if self._store is not None:
            self._store.close()

    def _read(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens]) -> Fetched:
        store = self._store
        assert store is not None, "connect() comes first"
        found = [store.tokens(asked.ref, asked.buckets) for asked in tokens]
        return Fetched([store.read(asked.ref, asked.keys) for asked in wanted], found)

    async def _patiently(self, work: Callable[[], Result], *, in_thread: bool) -> Result:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._timeout_s
        while True:
            try:
                return await asyncio.to_thread(work) if in_thread else work()
            except StoreBusy:
                if loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(PAUSE_S)
