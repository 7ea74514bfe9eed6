"""Compares the online store with the projection, recomputed from history and never from what the publisher wrote.

The projection stands at (position P, horizon T) of the view's last publish. An online row that is ahead of it is equal
when history holds that very row; rows that are not yet due or not yet published are pending, which is no fault. A key
that differs is read once more before it counts, since a publish may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.clock import timedelta_us
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import EVENT
from featurestore.errors import ParityError, StoreError
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.ingest.publish import pack
from featurestore.offline.base import OfflineStore
from featurestore.online.base import OnlineStore
from featurestore.online.keys import bucket_of, key_hash
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_decoder import DecodedRows, RowDecoder
from featurestore.online.row_encoder import RowEncoder
from featurestore.registry.state import PublishState

EXAMPLES_MAX = 5
#: The kinds of difference, each with what it says of the online row.
DIFFERENCES = {
    "missing": "history has a row for this entity, the online store has none",
    "stale": "the online row is older than the projection",
    "different": "the online row holds other values than the projection, or cannot be read",
    "ahead": "the online row is newer than the projection, and history does not hold it or it is not visible yet",
    "extra": "the online store has a row for this entity, history has none",
}

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One entity that is online otherwise than in history."""

    kind: str
    key: Mapping[str, object]

    @property
    def says(self) -> str:
        """The difference in words."""
        return DIFFERENCES[self.kind]


@dataclass(kw_only=True)
class ViewParity:
    """The comparison of one view. `pending` counts history rows not published yet; None when never published."""

    view: str
    position: int | None = None
    horizon_us: int | None = None
    equal: int = 0
    #: Of the equal ones, entities whose expired row the store has let go.
    evicted: int = 0
    pending: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIFFERENCES, 0))
    examples: list[Difference] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many entities differ."""
        return sum(self.counts.values())

    def add(self, kind: str, count: int, keys: Sequence[Mapping[str, object]]) -> None:
        """Count some entities that differ, and keep a few as examples."""
        self.counts[kind] += count
        room = max(0, EXAMPLES_MAX - sum(example.kind == kind for example in self.examples))
        self.examples += [Difference(kind=kind, key=key) for key in keys[:room]]


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Verifies one view; `schemas` are the field lists of every schema id its rows may carry."""

    project: str
    view: FeatureView
    schema_id: int
    schemas: Mapping[int, Sequence[Field]]
    offline: OfflineStore
    online: OnlineStore
    batch_rows: int

    def verify(self, state: PublishState | None, now_us: int) -> ViewParity:
        """Compare every entity; streaming, with 8 bytes of memory per entity."""
        parity = ViewParity(view=self.view.ref)
        if state is not None and state.repairing:
            raise ParityError(
                f"feature view {self.view.ref}: a repair was cut short, so the online store holds no projection; run "
                f"materialize-incremental --publish-only --views {self.view.ref} to finish it"
            )
        with self.offline.open(write=False):
            newest = self.offline.position(self.view.ref)
            parity.pending, _ = self.offline.pending(self._query(newest, now_us, state))
            if state is None:
                self._extras(parity, np.zeros(0, dtype=np.uint64), now_us)
                return parity
            parity.position, parity.horizon_us = state.position, state.horizon_us
            expected: list[NDArray[np.uint64]] = []
            with self.offline.latest(self._query(state.position, state.horizon_us, None), self.batch_rows) as reader:
                for batch in reader:
                    expected.append(self._compare(pa.Table.from_batches([batch]), parity, now_us))
            hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *expected])
            self._extras(parity, hashes, now_us)
        return parity

    def _query(self, position_to: int, horizon_us: int, since: PublishState | None) -> LatestRows:
        return LatestRows(
            project=self.project,
            view=self.view,
            position_to=position_to,
            horizon_to_us=horizon_us,
            position_from=since.position if since else None,
            horizon_from_us=since.horizon_us if since else None,
        )

    def _compare(self, rows: pa.Table, parity: ViewParity, now_us: int) -> NDArray[np.uint64]:
        """Compare a batch of expected rows; returns the hashes of their keys."""
        keys, packed = pack(self.view, RowEncoder(self.schema_id, self.view.schema), rows)
        # In the order of the store's own pages, a third of the time goes.
        order = pa.array(np.argsort(bucket_of(keys), kind="stable"))
        keys, packed, rows = keys.take(order), packed.take(order), rows.take(order)
        stored = self.online.read(self.view.ref, keys)
        equal = self._equal(stored, packed, rows, now_us)
        parity.evicted += int(np.count_nonzero(equal & stored.is_null().to_numpy(zero_copy_only=False)))
        differing = np.flatnonzero(~equal)
        parity.equal += len(keys) - len(differing)
        if len(differing):
            places = pa.array(differing)
            again = self._again(keys.take(places), packed.take(places), rows.take(places), now_us)
            parity.equal += int(np.count_nonzero(again == ""))
            for kind in DIFFERENCES:
                chosen = differing[again == kind]
                parity.add(kind, len(chosen), self._join_keys(rows, chosen))
        return key_hash(keys)

    def _equal(self, stored: pa.BinaryArray, packed: pa.BinaryArray, rows: pa.Table, now_us: int) -> Mask:
        same = pc.equal(stored, packed).fill_null(False).to_numpy(zero_copy_only=False)
        if self.view.ttl is None:
            return same
        # A store may evict a row once it is past its ttl; then its absence is no fault.
        event_us = pc.cast(rows.column(EVENT), pa.int64()).to_numpy()
        expired = now_us - event_us > timedelta_us(self.view.ttl)
        return same | (expired & stored.is_null().to_numpy(zero_copy_only=False))

    def _again(self, keys: pa.BinaryArray, packed: pa.BinaryArray, rows: pa.Table, now_us: int) -> NDArray[np.str_]:
        """The kind of difference of each row after a second read, "" where there is none any more."""
        stored = self.online.read(self.view.ref, keys)
        kinds = np.full(len(keys), "different", dtype="<U9")
        absent = stored.is_null().to_numpy(zero_copy_only=False)
        kinds[absent] = "missing"
        readable, decoded = self._decoded(stored)
        present = pa.array(np.flatnonzero(readable))
        wanted = RowDecoder(self.schemas, self.view.schema).decode(packed.take(present))
        sides = _order(decoded.order, wanted.order)
        kinds[readable] = np.select([sides < 0, sides > 0], ["stale", "ahead"], "different")
        # A row written with an older schema has other bytes and may hold the same values.
        encoder = RowEncoder(self.schema_id, self.view.schema)
        rewritten = encoder.encode(decoded.order, list(decoded.columns))
        same = pc.equal(rewritten, packed.take(present)).to_numpy(zero_copy_only=False)
        held = self._held(keys.take(present), decoded.order, rewritten, now_us)
        kinds[np.flatnonzero(readable)[same | ((sides > 0) & held)]] = ""
        kinds[self._equal(stored, packed, rows, now_us)] = ""
        return kinds

    def _decoded(self, stored: pa.BinaryArray) -> tuple[Mask, DecodedRows]:
        """(which rows are there and can be read, those rows): a damaged row is a finding, no reason to stop."""
        decoder = RowDecoder(self.schemas, self.view.schema)
        readable = stored.is_valid().to_numpy(zero_copy_only=False).copy()
        _mark_unreadable(decoder, stored, readable)
        return readable, decoder.decode(stored.filter(pa.array(readable)))

    def _held(self, keys: pa.BinaryArray, order: OrderKeys, rewritten: pa.BinaryArray, now_us: int) -> Mask:
        """Which online rows history holds, bit for bit, wherever their position; none that is not visible by now."""
        held = np.maximum(order.event_us, order.created_us) <= now_us
        if not held.any():
            return held
        found = self.offline.rows_of(self.view, pa.array(order.sequence))
        known_keys, known_rows = pack(self.view, RowEncoder(self.schema_id, self.view.schema), found)
        known = dict(zip(known_rows.to_pylist(), known_keys.to_pylist(), strict=True))
        pairs = zip(rewritten.to_pylist(), keys.to_pylist(), strict=True)
        return held & np.array([known.get(row) == key for row, key in pairs], dtype=bool)

    def _extras(self, parity: ViewParity, expected: NDArray[np.uint64], now_us: int) -> None:
        """Online rows of entities that the projection does not have."""
        present = parity.equal - parity.evicted + parity.faults - parity.counts["missing"]
        if self.online.count(self.view.ref) <= present:
            return
        for keys, rows in self.online.scan(self.view.ref, self.batch_rows):
            unknown = pa.array(np.flatnonzero(~np.isin(key_hash(keys), expected)))
            readable, decoded = self._decoded(rows.take(unknown))
            encoder = RowEncoder(self.schema_id, self.view.schema)
            rewritten = encoder.encode(decoded.order, list(decoded.columns))
            held = np.zeros(len(unknown), dtype=bool)
            readable_keys = keys.take(unknown).filter(pa.array(readable))
            held[readable] = self._held(readable_keys, decoded.order, rewritten, now_us)
            parity.equal += int(np.count_nonzero(held))
            strange = keys.take(unknown).filter(pa.array(~held)).to_pylist()
            parity.add("extra", len(strange), [{"key": key.hex()} for key in strange[:EXAMPLES_MAX]])

    def _join_keys(self, rows: pa.Table, places: NDArray[np.int64]) -> list[Mapping[str, object]]:
        chosen = rows.select(list(self.view.join_keys)).take(pa.array(places[:EXAMPLES_MAX]))
        return list(chosen.to_pylist())


def _mark_unreadable(decoder: RowDecoder, rows: pa.BinaryArray, readable: Mask) -> None:
    """Clear `readable` where a row cannot be decoded; such rows are few, so they are found by halving."""
    try:
        decoder.decode(rows)
    except StoreError:
        if len(rows) == 1:
            readable[:] = False
            return
        middle = len(rows) // 2
        _mark_unreadable(decoder, rows.slice(0, middle), readable[:middle])
        _mark_unreadable(decoder, rows.slice(middle), readable[middle:])


def _order(left: OrderKeys, right: OrderKeys) -> NDArray[np.int8]:
    """-1, 0 or 1 per row as the left order key is less, equal or greater."""
    sides = np.zeros(len(left), dtype=np.int8)
    columns = ((left.event_us, right.event_us), (left.created_us, right.created_us), (left.sequence, right.sequence))
    for ours, theirs in columns:
        sides = np.where(sides != 0, sides, np.sign(ours - theirs).astype(np.int8))
    return sides
