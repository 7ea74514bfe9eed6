"""What a serving process reads an online store with: many requests at a time, none waiting for another one's answer.

A reader belongs to one event loop. It has no deadlines of its own making: who asks gives up by cancelling, and the
answer that comes later is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Wanted(NamedTuple):
    """Rows of one view to fetch: encoded keys, none null, and the bucket of each."""

    ref: str
    keys: pa.BinaryArray
    buckets: NDArray[np.uint16]


class WantedTokens(NamedTuple):
    """Tokens of one view to fetch."""

    ref: str
    buckets: NDArray[np.uint16]


class Standing(IntEnum):
    """How sure it is that a row is the store's."""

    CONFIRMED = 0
    #: It was, before the store went away.
    UNCONFIRMED = 1
    #: The store is away, and nothing is known of the row.
    UNKNOWN = 2


class Fetched(NamedTuple):
    """Aligned with what was wanted: rows, null where nothing is stored, and tokens.

    `standings` has a Standing for each row; None means that all are confirmed.
    """

    rows: list[pa.BinaryArray]
    tokens: list[NDArray[np.int64]]
    standings: Sequence[NDArray[np.uint8]] | None = None


class AsyncReader(Protocol):
    """Reads rows and tokens, all that one request wants in one exchange with the store."""

    async def connect(self) -> None:
        """Get ready; raises what a store raises when it is made. Comes first, and once."""
        ...

    async def fetch(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens] = ()) -> Fetched:
        """The rows and tokens. Every token is read before any row, so that a row is at least as new as its token.

        StoreUnreachable or StoreBusy, soon, when the store does not answer.
        """
        ...

    async def close(self) -> None:
        """Let go; requests under way fail."""
        ...
