"""History into the online store: the projection, rule 7 of time.

What became due since the last publish is reduced to the greatest row per entity, packed, and written by
compare-and-set; retries, replays and shuffles of the same rows change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from featurestore.clock import from_us
from featurestore.compiler.latest_rows import LatestRows
from featurestore.errors import InputError
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.ingest.projection import Packed, Projection, RowDigests, packed_latest
from featurestore.offline.base import OfflineStore
from featurestore.online import packing
from featurestore.online.base import OnlineStore
from featurestore.online.row_encoder import RowEncoder
from featurestore.registry.state import PublishState

#: Rows and bytes of one write at most. Fewer rows raise every token more often; more leave the store idle meanwhile.
WRITE_ROWS, WRITE_BYTES = 100_000, 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a publish did: the projection now stands at (position, horizon)."""

    position: int
    horizon_us: int
    watermark_us: int | None
    rows_due: int
    entities: int
    rows_written: int
    #: Whether the projection was rewritten from nothing.
    repaired: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Publisher:
    """Publishes one view. `before_write` runs ahead of every batch and raises when the lease is lost."""

    project: str
    view: FeatureView
    schema_id: int
    offline: OfflineStore
    online: OnlineStore
    batch_rows: int
    before_write: Callable[[], None]
    before_repair: Callable[[], None]
    on_rows: Callable[[int], None]
    #: Brings rows that were pushed meanwhile into history.
    drain: Callable[[], None] = lambda: None

    def publish(self, last: PublishState | None, now_us: int, *, repair: bool = False) -> Published:
        """Bring the online store to everything visible at `now_us`; `repair` rewrites it, and removes what is strange.

        InputError when `now_us` lies before the last horizon, which only a repair may go behind.
        """
        # A repair that was cut short is begun again: what it left is no projection of any instant.
        repair = repair or (last is not None and last.repairing)
        if last is not None and now_us < last.horizon_us and not repair:
            raise InputError(
                f"feature view {self.view.ref} was published as of {from_us(last.horizon_us).isoformat()}, the clock "
                f"says {from_us(now_us).isoformat()}: a publish never goes back in time; pass a later --now, or "
                f"--repair to rebuild the projection"
            )
        since = None if repair else last
        with self.offline.open(write=False):
            query = LatestRows(
                project=self.project,
                view=self.view,
                position_to=self.offline.position(self.view.ref),
                horizon_to_us=now_us,
                position_from=since.position if since else None,
                horizon_from_us=since.horizon_us if since else None,
            )
            pending = self.offline.pending(query)
            if repair:
                self.before_repair()
                entities, written = self._rewrite(query)
            else:
                entities, written = self._write(query) if pending.rows else (0, 0)
        position = query.position_to
        if repair:
            position, more = self._catch_up(query)
            written += more
        marks = [mark for mark in (pending.newest_us, since.watermark_us if since else None) if mark is not None]
        return Published(
            position=position,
            horizon_us=now_us,
            watermark_us=max(marks, default=None),
            rows_due=pending.rows,
            entities=entities,
            rows_written=written,
            repaired=repair,
        )

    def _write(self, query: LatestRows) -> tuple[int, int]:
        """(entities, rows kept); the next batch is read and packed while the store takes the last one."""
        encoder = RowEncoder(self.schema_id, self.view.schema)
        entities = written = 0
        parts = (packed for _, packed in packed_latest(query, self.offline, encoder, self.batch_rows))
        with ThreadPoolExecutor(1, thread_name_prefix="publish") as writer:
            under_way: Future[int] | None = None
            for keys, rows in gathered(parts, self.batch_rows):
                written += self._finished(under_way)
                self.before_write()
                under_way = writer.submit(self.online.write, self.view.ref, keys, rows)
                entities += len(keys)
                self.on_rows(len(keys))
            written += self._finished(under_way)
        return entities, written

    def _finished(self, write: Future[int] | None) -> int:
        """Rows that a write under way has kept; raises what it raised."""
        if write is None:
            return 0
        kept = write.result()
        failpoint("publish.after_batch")
        return kept

    def _catch_up(self, rewritten: LatestRows) -> tuple[int, int]:
        """(position, rows written) after what was pushed during a rewrite, which may have taken it away, is back."""
        self.drain()
        with self.offline.open(write=False):
            position = self.offline.position(self.view.ref)
            since = replace(
                rewritten,
                position_to=position,
                position_from=rewritten.position_to,
                horizon_from_us=rewritten.horizon_to_us,
            )
            return position, self._write(since)[1] if position > rewritten.position_to else 0

    def _rewrite(self, query: LatestRows) -> tuple[int, int]:
        """(entities, rows that were missing, wrong or strange); only those that differ are written."""
        projection = Projection(query, self.offline, RowEncoder(self.schema_id, self.view.schema), self.batch_rows)
        settled = np.zeros(len(projection), dtype=bool)
        repaired = 0
        for keys, rows in self.online.scan(self.view.ref, self.batch_rows):
            compared = projection.compared(RowDigests.of([(keys, rows)]))
            settled[compared.places[compared.equal]] = True
            strange = compared.places < 0
            if strange.any():
                self.before_write()
                repaired += self.online.delete(self.view.ref, keys.filter(pa.array(strange)))
        self.on_rows(int(np.count_nonzero(settled)))
        for _, (keys, packed) in projection.rows(np.flatnonzero(~settled)):
            self.before_write()
            repaired += self.online.overwrite(self.view.ref, keys, packed)
            failpoint("publish.after_batch")
            self.on_rows(len(keys))
        return len(projection), repaired


def gathered(parts: Iterable[Packed], rows_max: int) -> Iterator[Packed]:
    """Packed rows put together, so that a bucket is touched once for several of its rows."""
    room = _Room()
    for keys, rows in parts:
        if room.rows and not room.fits(rows):
            yield room.packed()
            room = _Room()
        room.add(keys, rows)
        if room.rows >= min(rows_max, WRITE_ROWS):
            yield room.packed()
            room = _Room()
    if room.rows:
        yield room.packed()


class _Room:
    """Packed rows one after the other: each part is copied at once, so that its own memory serves the next."""

    def __init__(self) -> None:
        self._keys: list[pa.BinaryArray] = []
        self._ends = [np.zeros(1, dtype=np.int32)]
        self._data = np.zeros(0, dtype=np.uint8)
        self.rows = self._size = 0

    def fits(self, rows: pa.BinaryArray) -> bool:
        """Whether rows can be added; the first ones always can."""
        offsets = packing.byte_offsets(rows)
        return self._size + int(offsets[-1] - offsets[0]) <= len(self._data)

    def add(self, keys: pa.BinaryArray, rows: pa.BinaryArray) -> None:
        """Append rows."""
        offsets = packing.byte_offsets(rows)
        first, last = int(offsets[0]), int(offsets[-1])
        if self.rows == 0:
            self._data = np.empty(max(WRITE_BYTES, last - first), dtype=np.uint8)
        self._data[self._size : self._size + last - first] = packing.data_bytes(rows)[first:last]
        self._ends.append(offsets[1:] + np.int32(self._size - first))
        self._keys.append(keys)
        self.rows, self._size = self.rows + len(rows), self._size + last - first

    def packed(self) -> Packed:
        """All of them."""
        return pa.concat_arrays(self._keys), packing.from_offsets(np.concatenate(self._ends), self._data[: self._size])
