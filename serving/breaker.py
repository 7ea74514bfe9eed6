"""A circuit breaker before the store: when it fails again and again, requests fail at once until it answers.

No request is risked to find out: a task of its own asks the store now and then. (purgatory, which fits asyncio, sends
callers ahead instead, all that come once its time is over, and passes each call through a unit of work and a bus.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurestore.errors import FeatureStoreError, StoreBusy, StoreUnreachable
from featurestore.online.keys import BUCKETS
from featurestore.online.reading import AsyncReader, Fetched, Wanted, WantedTokens
from serving.circuit import Circuit, CircuitState

#: What is looked at: tokens spread over all servers of a Cluster, of a view that need not exist.
_PROBE = (WantedTokens("probe@0", np.arange(0, BUCKETS, BUCKETS // 64, dtype=np.uint16)),)


class Breaker:
    """A reader that gives up on a store for a while; closes by itself when the store is back."""

    def __init__(self, reader: AsyncReader) -> None:
        self._reader = reader
        self._circuit = Circuit("the store", self._answers)

    @property
    def state(self) -> CircuitState:
        """How it stands."""
        return self._circuit.state

    async def connect(self) -> None:
        """Connect the reader."""
        await self._reader.connect()

    async def fetch(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens] = ()) -> Fetched:
        """What the reader fetches; StoreUnreachable at once while it is open."""
        if self._circuit.is_open:
            raise StoreUnreachable(self._circuit.refusal)
        try:
            fetched = await self._reader.fetch(wanted, tokens)
        except (StoreUnreachable, StoreBusy) as error:
            self._circuit.failed(error)
            raise
        self._circuit.succeeded()
        return fetched

    async def close(self) -> None:
        """Close the reader."""
        self._circuit.close()
        await self._reader.close()

    async def _answers(self) -> bool:
        try:
            await self._reader.fetch((), _PROBE)
        except (StoreUnreachable, StoreBusy):
            return False
        except FeatureStoreError:
            return True  # it answers, if with a refusal (of our password, say): requests are told its words
        return True
