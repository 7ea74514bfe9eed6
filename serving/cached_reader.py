"""The near cache in front of a reader: what is current is answered at once, the rest in one exchange with the store.

The tokens of the buckets in use are read again and again, a few at a time, so that requests find them young enough.
While the store is away, rows that cannot be confirmed are answered as such, if the settings say so, for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import FeatureStoreError, StoreBusy, StoreUnreachable
from featurestore.online.reading import AsyncReader, Fetched, Standing, Wanted, WantedTokens
from featurestore.trouble import Trouble
from serving.near_cache import Look, NearCache, as_rows

log = logging.getLogger(__name__)

#: Buckets whose tokens are read in one go, some 0.3 ms of the event loop.
TOKENS_AT_A_TIME = 256
#: After so many requests the share of hits is logged once: what a preload was worth.
FIRST_REQUESTS = 1_000
_NO_ROW = pa.scalar(None, pa.binary())


class CachedReader:
    """A reader with a near cache; `unconfirmed_max_s`: how long rows are answered without a store, 0 for never."""

    def __init__(self, reader: AsyncReader, cache: NearCache, unconfirmed_max_s: float = 0.0) -> None:
        self._reader, self.cache, self._unconfirmed_max_s = reader, cache, unconfirmed_max_s
        self._following: asyncio.Task[None] | None = None
        self._requests = 0

    async def connect(self) -> None:
        """Connect, and keep the tokens in use current from now on."""
        await self._reader.connect()
        self._following = asyncio.create_task(self._follow())

    async def fetch(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens] = ()) -> Fetched:
        """As the store would answer, at most `bound_s` ago; rows of a store that is away have their standing told."""
        looks = [self.cache.look(asked) for asked in wanted]
        self._requests += 1
        if self._requests == FIRST_REQUESTS:
            self._tell_first()
        if not tokens and all(look.whole for look in looks):
            return Fetched([as_rows(look.rows()) for look in looks], [])
        try:
            return await self._completed(looks, tokens)
        except (StoreUnreachable, StoreBusy):
            if not self._unconfirmed_max_s or tokens:
                raise
            standings = [self.cache.standings(look, self._unconfirmed_max_s) for look in looks]
            # Of what nothing is known any more, no old value is shown either.
            known = [pa.array(standing != Standing.UNKNOWN) for standing in standings]
            rows = [pc.if_else(which, as_rows(look.rows()), _NO_ROW) for which, look in zip(known, looks, strict=True)]
            return Fetched(rows, [], standings)

    async def confirm(self) -> None:
        """Read all tokens in use now."""
        for ref in self.cache.refs():
            buckets = self.cache.used_buckets(ref)
            asked_at = self.cache.now()
            fetched = await self._reader.fetch([], [WantedTokens(ref, buckets)])
            self.cache.heard(ref, buckets, fetched.tokens[0], asked_at)

    def count_anew(self) -> None:
        """Count requests and hits from here on: what was asked so far was made up."""
        self.cache.counts.clear()
        self._requests = 0

    async def stop(self) -> None:
        """Stop following tokens."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    async def close(self) -> None:
        """Stop following tokens, and close the reader."""
        await self.stop()
        await self._reader.close()

    async def _completed(self, looks: Sequence[Look], tokens: Sequence[WantedTokens]) -> Fetched:
        """What is not current comes from the store, with the tokens of its buckets."""
        missing = [look for look in looks if not look.whole]
        places = [np.flatnonzero(~look.current) for look in missing]
        wanted = [_part(look, own) for look, own in zip(missing, places, strict=True)]
        distinct = [np.unique(part.buckets) for part in wanted]
        asked = [WantedTokens(part.ref, buckets) for part, buckets in zip(wanted, distinct, strict=True)]
        asked_at = self.cache.now()
        fetched = await self._reader.fetch(wanted, [*asked, *tokens])
        for part, own, told in zip(wanted, asked, fetched.tokens, strict=False):
            self.cache.heard(part.ref, own.buckets, told, asked_at)
        found = {}
        for look, part, own, told, rows in zip(missing, wanted, asked, fetched.tokens, fetched.rows, strict=False):
            values = rows.to_pylist()
            self.cache.keep(part.ref, part.keys.to_pylist(), values, told[np.searchsorted(own.buckets, part.buckets)])
            found[id(look)] = values
        answers = []
        for look in looks:
            row_list = look.rows()
            if not look.whole:
                for place, row in zip(np.flatnonzero(~look.current).tolist(), found[id(look)], strict=True):
                    row_list[place] = row
            answers.append(as_rows(row_list))
        return Fetched(answers, fetched.tokens[len(asked) :])

    def _tell_first(self) -> None:
        hits, misses = (sum(getattr(one, kind) for one in self.cache.counts.values()) for kind in ("hits", "misses"))
        share = 100 * hits / max(1, hits + misses)
        log.info("near cache: %.1f %% of the rows of the first %s requests were there", share, f"{FIRST_REQUESTS:,}")

    async def _follow(self) -> None:
        """Read the tokens of the buckets in use, each twice within the bound."""
        period_s = self.cache.bound_s / 2
        loop = asyncio.get_running_loop()
        due = loop.time()
        trouble = Trouble(log, "near cache: tokens cannot be read", "near cache: tokens are read again")
        while True:
            met: FeatureStoreError | None = None
            parts = [
                WantedTokens(ref, buckets[first : first + TOKENS_AT_A_TIME])
                for ref in self.cache.refs()
                for buckets in (self.cache.used_buckets(ref),)
                for first in range(0, len(buckets), TOKENS_AT_A_TIME)
            ]
            for part in parts:
                asked_at = self.cache.now()
                try:
                    told = (await self._reader.fetch([], [part])).tokens[0]
                    self.cache.heard(part.ref, part.buckets, told, asked_at)
                except FeatureStoreError as error:
                    met = error
                    trouble.met(error)
                # By the clock: what reading takes is part of the period.
                due = max(due + period_s / len(parts), loop.time())
                await asyncio.sleep(due - loop.time())
            if not parts:
                await asyncio.sleep(period_s)
            elif met is None:
                trouble.passed()


def _part(look: Look, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Wanted:
    wanted = look.wanted
    if len(places) == len(look.keys):
        return wanted
    return Wanted(wanted.ref, wanted.keys.take(places), wanted.buckets[places])
