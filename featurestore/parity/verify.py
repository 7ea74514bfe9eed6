"""Compares the online store with the projection, recomputed from history and never from what the publisher wrote.

The projection stands at (position P, horizon T) of the view's last publish. An online row that is ahead of it is equal
when history holds that very row; rows that are not yet due or not yet published are pending, which is no fault. An
entity that differs is read once more before it counts, since a publish may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.clock import from_us, timedelta_us
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import EVENT
from featurestore.errors import ParityError
from featurestore.ingest.projection import PACK_ROWS, Projection, RowDigests
from featurestore.online.base import OnlineStore
from featurestore.online.keys import BUCKETS, bucket_of_hash, decode_key, first_buckets, key_hash
from featurestore.online.order_keys import OrderKeys
from featurestore.parity.report import (
    DIFFERENT,
    DUE,
    EVICTED,
    EVICTION,
    EXAMPLES_MAX,
    EXTRA,
    FOREIGN,
    LATE,
    LOST,
    MISSING,
    STALE,
    Difference,
    ViewParity,
)
from featurestore.parity.rows import OnlineRows, RowReader, order_sides, same_bytes
from featurestore.registry.state import PublishState


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Verifies one view. `sample`: only so many entities, those with the least key hashes, the same every time."""

    project: str
    reader: RowReader
    online: OnlineStore
    batch_rows: int
    sample: int | None = None

    def verify(self, state: PublishState | None, now_us: int) -> ViewParity:
        """Compare the view; streaming, with 64 bytes of memory an entity. ParityError while a repair is unfinished."""
        view, offline = self.reader.view, self.reader.offline
        parity = ViewParity(view=view.ref)
        if state is not None and state.repairing:
            raise ParityError(
                f"feature view {view.ref}: a repair was cut short, so the online store holds no projection; run "
                f"materialize-incremental --publish-only --views {view.ref} to finish it"
            )
        with offline.open(write=False):
            # Never published: nothing is expected, and whatever stands online is extra.
            query = self._query(0, now_us) if state is None else self._query(state.position, state.horizon_us)
            with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
                # Both sides are read at the same time, unless the sample has yet to tell which buckets are looked at.
                whole = pool.submit(self._online_digests) if self.sample is None else None
                self._count_pending(parity, state, now_us)
                projection = Projection(query, offline, self.reader.encoder, self.batch_rows)
                parity.entities = len(projection)
                limit = projection.cut(self.sample)
                parity.compared = len(projection)
                online = self._online_digests(limit) if whole is None else whole.result()
            if state is not None and state.published_to_us is not None:
                parity.position, parity.horizon_us = state.position, state.horizon_us
            self._compare(projection, online, parity, now_us)
        return parity

    def _count_pending(self, parity: ViewParity, state: PublishState | None, now_us: int) -> None:
        """Rows that are due and not published; the oldest waits since it became visible, or since the last publish."""
        offline, ref = self.reader.offline, self.reader.view.ref
        newest = offline.position(ref)
        pending = offline.pending(self._query(newest, now_us, state))
        late = 0
        if state is not None and pending.rows:
            late = offline.pending(self._query(newest, state.horizon_us, state)).rows
        for cause, rows in ((LATE, late), (DUE, pending.rows - late)):
            if rows:
                parity.pending[cause] = rows
        if pending.oldest_visible_us is not None:
            since_us = pending.oldest_visible_us if state is None else max(pending.oldest_visible_us, state.horizon_us)
            parity.pending_us = now_us - since_us

    def _query(self, position_to: int, horizon_us: int, since: PublishState | None = None) -> LatestRows:
        return LatestRows(
            project=self.project,
            view=self.reader.view,
            position_to=position_to,
            horizon_to_us=horizon_us,
            position_from=since.position if since else None,
            horizon_from_us=since.horizon_us if since else None,
        )

    def _online_digests(self, limit: np.uint64 | None = None) -> RowDigests:
        buckets = range(BUCKETS) if limit is None else first_buckets(limit)
        return RowDigests.of(self.online.scan(self.reader.view.ref, min(self.batch_rows, PACK_ROWS), buckets)).below(
            limit
        )

    def _compare(self, projection: Projection, online: RowDigests, parity: ViewParity, now_us: int) -> None:
        seen = np.zeros(len(projection), dtype=bool)
        settled = np.zeros(len(projection), dtype=bool)
        compared = projection.compared(online)
        unknown = compared.places < 0
        seen[compared.places[~unknown]] = True
        settled[compared.places[compared.equal]] = True
        gone = ~seen & projection.expired(now_us)
        parity.expired = int(np.count_nonzero(gone))
        parity.equal = int(np.count_nonzero(settled | gone))
        self._look_closer(projection, np.flatnonzero(~settled & ~gone), parity, now_us)
        if unknown.any():
            for keys in self._keys_of(online.hashes[unknown]):
                self._look_at_strange(keys, parity, now_us)

    def _keys_of(self, hashes: NDArray[np.uint64]) -> Iterator[pa.BinaryArray]:
        """The online keys of these hashes; they were not kept, since there are hardly ever any to be looked for."""
        buckets = bucket_of_hash(hashes)
        around = range(int(buckets.min()), int(buckets.max()) + 1)
        for keys, _ in self.online.scan(self.reader.view.ref, self.batch_rows, around):
            wanted = np.isin(key_hash(keys), hashes)
            if wanted.any():
                yield keys.filter(pa.array(wanted))

    def _look_closer(self, projection: Projection, places: NDArray[np.int64], parity: ViewParity, now_us: int) -> None:
        """Read the entities at `places` once more, and tell what each differs in."""
        evicting = None
        for rows, (keys, packed) in projection.rows(places):
            online = self.reader.read(keys, self.online.read(self.reader.view.ref, keys))
            kinds, causes = self._kinds(online, packed, rows, now_us)
            expired = (kinds == "") & ~online.present
            parity.expired += int(np.count_nonzero(expired))
            parity.equal += int(np.count_nonzero(kinds == ""))
            if (kinds == MISSING).any():
                evicting = self.online.evictions() > 0 if evicting is None else evicting
                if evicting:
                    causes[kinds == MISSING], kinds[kinds == MISSING] = EVICTION, EVICTED
            expected = OrderKeys.of(rows)
            self._add(parity, online, kinds, causes, expected)

    def _kinds(
        self, online: OnlineRows, packed: pa.BinaryArray, rows: pa.Table, now_us: int
    ) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
        """(kind, cause) per row, both "" where nothing differs."""
        kinds = np.where(online.present, DIFFERENT, MISSING).astype(object)
        causes = np.where(online.present, online.faults, LOST).astype(object)
        kinds[~online.present & self._expired(rows, now_us)] = ""
        expected = packed.filter(pa.array(online.readable))
        order = OrderKeys.of(rows.filter(pa.array(online.readable)))
        sides = order_sides(online.decoded.order, order)
        # A row written with an older schema has other bytes and may hold the same values.
        same = same_bytes(online.rewritten, expected)
        held = self.reader.held(online, now_us)
        readable = np.flatnonzero(online.readable)
        kinds[readable[sides < 0]] = STALE
        causes[readable] = np.where(held & (sides < 0), LOST, FOREIGN)
        kinds[readable[same | (held & (sides > 0))]] = ""
        causes[kinds == ""] = ""
        return kinds, causes

    def _expired(self, rows: pa.Table, now_us: int) -> NDArray[np.bool_]:
        """A store may let a row go once it is past its ttl; then its absence is no fault."""
        if self.reader.view.ttl is None:
            return np.zeros(rows.num_rows, dtype=bool)
        event_us = pc.cast(rows.column(EVENT), pa.int64()).to_numpy()
        expired: NDArray[np.bool_] = now_us - event_us > timedelta_us(self.reader.view.ttl)
        return expired

    def _look_at_strange(self, keys: pa.BinaryArray, parity: ViewParity, now_us: int) -> None:
        """Online rows of entities that the projection does not have: equal when history holds them by now."""
        online = self.reader.read(keys, self.online.read(self.reader.view.ref, keys))
        held = np.zeros(len(keys), dtype=bool)
        held[online.readable] = self.reader.held(online, now_us)
        parity.equal += int(np.count_nonzero(held))
        parity.compared += int(np.count_nonzero(online.present))
        kinds = np.where(online.present & ~held, EXTRA, "").astype(object)
        causes = np.where(online.readable, FOREIGN, online.faults).astype(object)
        self._add(parity, online, kinds, causes, None)

    def _add(
        self,
        parity: ViewParity,
        online: OnlineRows,
        kinds: NDArray[np.object_],
        causes: NDArray[np.object_],
        expected: OrderKeys | None,
    ) -> None:
        for kind, cause in sorted({pair for pair in zip(kinds, causes, strict=True) if pair[0]}):
            rows = np.flatnonzero((kinds == kind) & (causes == cause))
            shown = [self._difference(online, int(row), kind, cause, expected) for row in rows[:EXAMPLES_MAX]]
            parity.add(kind, cause, len(rows), shown)

    def _difference(
        self, online: OnlineRows, row: int, kind: str, cause: str, expected: OrderKeys | None
    ) -> Difference:
        view = self.reader.view
        return Difference(
            kind=kind,
            cause=cause,
            key=decode_key(online.keys[row].as_py(), view.join_keys),
            expected=None if expected is None else _order_key(expected.at(row)),
            online=_order_key(online.order_at(row)),
        )


def _order_key(order: tuple[int, int, int] | None) -> dict[str, object] | None:
    if order is None:
        return None
    event_us, created_us, sequence = order
    return {
        "event_timestamp": from_us(event_us),
        "created_timestamp": from_us(created_us),
        "sequence": sequence,
    }
