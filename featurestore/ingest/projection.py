"""A projection in digests: what the online store must hold, in 40 bytes an entity, found again by the hash of its key.

Repair and verify compare a whole online store with history through it. The rows themselves come from history again, and
only those that differ: two rows of equal digests are taken for equal, which 128 bits make safe against chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.clock import timedelta_us
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import EVENT, SEQUENCE
from featurestore.feature_view import FeatureView
from featurestore.offline.base import OfflineStore
from featurestore.online.keys import SECOND_SEED, encode_keys, key_hash
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_encoder import RowEncoder

Packed = tuple[pa.BinaryArray, pa.BinaryArray]


#: Rows packed at a time: their columns and bytes stay in the processor's caches, and memory is used again.
PACK_ROWS = 1 << 13


def pack(view: FeatureView, encoder: RowEncoder, rows: pa.Table) -> Packed:
    """(online keys, packed rows) of history rows."""
    columns = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    keys = encode_keys([columns[name] for name in view.join_keys], list(view.join_keys.values()))
    return keys, encoder.encode(OrderKeys.of(rows), [columns[field.name] for field in view.schema])


def packed_latest(
    query: LatestRows, offline: OfflineStore, encoder: RowEncoder, batch_rows: int
) -> Iterator[tuple[pa.Table, Packed]]:
    """(history rows, packed) of the projection by `query`, a few rows at a time; the offline store stays open."""
    with offline.latest(query, min(batch_rows, PACK_ROWS)) as reader:
        for batch in reader:
            rows = pa.Table.from_batches([batch])
            yield rows, pack(query.view, encoder, rows)


@dataclass(frozen=True, slots=True, eq=False)
class RowDigests:
    """Online rows in 24 bytes each: the hash of the key, and the digest of the row."""

    hashes: NDArray[np.uint64]
    digests: NDArray[np.uint64]

    @classmethod
    def of(cls, batches: Iterable[Packed]) -> RowDigests:
        """Of batches of (keys, rows), in their order."""
        parts = [(key_hash(keys), row_digests(rows)) for keys, rows in batches]
        hashes, digests = (np.concatenate(column) for column in zip(_NONE[:2], *parts, strict=True))
        return cls(hashes, digests)

    def below(self, limit: np.uint64 | None) -> RowDigests:
        """Those whose key hash is less than `limit`; all without one."""
        if limit is None:
            return self
        kept = self.hashes < limit
        return RowDigests(self.hashes[kept], self.digests[kept])


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Online rows beside the projection: where each key stands in it (-1: nowhere), and if rows agree."""

    places: NDArray[np.int64]
    equal: NDArray[np.bool_]


class Projection:
    """The projection of one view by `query`. Entities stand in the order of their keys' hashes."""

    def __init__(self, query: LatestRows, offline: OfflineStore, encoder: RowEncoder, batch_rows: int) -> None:
        """Reads history once; the offline store is open for as long as the projection is used."""
        self._query, self._offline, self._encoder, self._batch_rows = query, offline, encoder, batch_rows
        parts = [_digests(rows, *packed) for rows, packed in self._stream()]
        hashes, digests, sequences, events = (np.concatenate(column) for column in zip(_NONE, *parts, strict=True))
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.sequences, self.event_us = hashes[order], sequences[order], events[order]
        self._digests = digests[order]

    def __len__(self) -> int:
        return len(self.hashes)

    def cut(self, count: int | None) -> np.uint64 | None:
        """Keep the `count` entities of the least hashes; returns the hash they stay below, None when all stay."""
        if count is None or count >= len(self):
            return None
        limit: np.uint64 = self.hashes[count]
        kept = slice(0, count)
        self.hashes, self.sequences, self.event_us = self.hashes[kept], self.sequences[kept], self.event_us[kept]
        self._digests = self._digests[kept]
        return limit

    def compared(self, online: RowDigests) -> Compared:
        """Compare online rows. A key whose hash another key has too is never equal here: look closer."""
        places = np.searchsorted(self.hashes, online.hashes)
        inside = places < len(self.hashes)
        inside[inside] = self.hashes[places[inside]] == online.hashes[inside]
        places[~inside] = -1
        equal = inside.copy()
        equal[inside] = np.all(self._digests[places[inside]] == online.digests[inside], axis=1)
        return Compared(places, equal)

    def expired(self, now_us: int) -> NDArray[np.bool_]:
        """Which entities are past their ttl, so that a store may have let their rows go."""
        ttl = self._query.view.ttl
        if ttl is None:
            return np.zeros(len(self), dtype=bool)
        past: NDArray[np.bool_] = now_us - self.event_us > timedelta_us(ttl)
        return past

    def rows(self, places: NDArray[np.int64]) -> Iterator[tuple[pa.Table, Packed]]:
        """(history rows, packed) of the entities at `places`, in batches, in any order."""
        wanted = self.sequences[places]
        if len(wanted) <= self._batch_rows:
            # One look-up by sequence; many are cheaper to find by reading the projection once more.
            rows = self._offline.rows_of(self._query.view, pa.array(wanted)) if len(wanted) else None
            if rows is not None:
                yield rows, pack(self._query.view, self._encoder, rows)
            return
        wanted = np.sort(wanted)
        for rows, (keys, packed) in self._stream():
            chosen = pa.array(np.isin(rows.column(SEQUENCE).to_numpy(), wanted))
            yield rows.filter(chosen), (keys.filter(chosen), packed.filter(chosen))

    def _stream(self) -> Iterator[tuple[pa.Table, Packed]]:
        return packed_latest(self._query, self._offline, self._encoder, self._batch_rows)


def row_digests(rows: pa.BinaryArray) -> NDArray[np.uint64]:
    """(rows, 2) digests of packed rows: two hashes of different seeds."""
    return np.stack([key_hash(rows), key_hash(rows, SECOND_SEED)], axis=1)


def _digests(rows: pa.Table, keys: pa.BinaryArray, packed: pa.BinaryArray) -> _Part:
    event_us = rows.column(EVENT).combine_chunks().cast(pa.int64()).to_numpy()
    return key_hash(keys), row_digests(packed), rows.column(SEQUENCE).to_numpy(), event_us


_Part = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]
_NONE: Sequence[NDArray[np.generic]] = (
    np.zeros(0, dtype=np.uint64),
    np.zeros((0, 2), dtype=np.uint64),
    np.zeros(0, dtype=np.int64),
    np.zeros(0, dtype=np.int64),
)
