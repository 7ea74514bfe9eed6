"""What every online store does: packed rows by (project, view, key), written by compare-and-set on the order of rows.

A store knows bytes only: the 24-byte order key at the start of each row, and the bucket of each key.
The project is fixed when a store is made; `ref` is a view's `name@version`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.online.keys import BUCKETS
from featurestore.online.reading import AsyncReader

ALL_BUCKETS = range(BUCKETS)


class OnlineStore(Protocol):
    """The projection of every view's history, one row an entity."""

    def write(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """Keep each row whose order key is greater than the stored one's; returns how many were written.

        All in one atomic step per bucket or better, the tokens of the buckets written to raised in the same step,
        so retries, replays and shuffles change nothing. Neither array holds nulls; a key may occur more than once.
        """
        ...

    def read(self, ref: str, keys: pa.BinaryArray) -> pa.BinaryArray:
        """The row of each key, aligned with `keys`; null where the key is null or nothing is stored."""
        ...

    def scan(
        self, ref: str, batch_rows: int, buckets: range = ALL_BUCKETS
    ) -> Iterator[tuple[pa.BinaryArray, pa.BinaryArray]]:
        """All (keys, rows) of adjoining buckets in batches; a row written meanwhile may or may not be seen, every
        other one exactly once."""
        ...

    def count(self, ref: str) -> int:
        """How many rows are stored."""
        ...

    def tokens(self, ref: str, buckets: NDArray[np.uint16]) -> NDArray[np.int64]:
        """A number per bucket that grows with every change of a row in it; 0 before the first."""
        ...

    def delete(self, ref: str, keys: pa.BinaryArray) -> int:
        """For repair: remove rows; returns how many there were."""
        ...

    def overwrite(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """For repair: store rows whatever is stored; returns how many differed."""
        ...

    def drop(self, ref: str) -> int:
        """Remove every row of the view; returns how many there were. Tokens grow, so that no cache keeps a row."""
        ...

    def evictions(self) -> int:
        """How many rows the store says it gave up for want of memory, of any project; 0 where it never does."""
        ...

    def reader(self, timeout_s: float) -> AsyncReader:
        """What reads the same rows from an event loop; the store stays open meanwhile."""
        ...

    def close(self) -> None:
        """Let go of the store; it is not used afterwards."""
        ...
