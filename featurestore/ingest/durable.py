"""Where pushed rows become durable before they are acknowledged: history itself, or the inbox before it.

A shared offline store takes rows at once, under the view's lock. DuckDB's file is never taken by a push: its rows wait
in the inbox. What is a duplicate, and what a correction, is then told from the inbox, from what it remembers, and from
the online row of the entity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from featurestore.errors import StoreError
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.ingest.inbox import Inbox
from featurestore.ingest.projection import Packed, pack
from featurestore.ingest.row_digests import Digests, place_digests, value_digests
from featurestore.offline.base import ArrivedRows, Mask, OfflineStore
from featurestore.offline.history_rules import entities_known
from featurestore.online.base import OnlineStore
from featurestore.online.keys import encode_keys
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_decoder import RowDecoder
from featurestore.online.row_encoder import RowEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class PushedRows:
    """A push past gate and sequence. `due` marks the rows that are visible by now."""

    view: FeatureView
    schemas: Mapping[int, Sequence[Field]]
    rows: pa.Table
    refused: pa.Table | None
    first: int
    due: Mask

    @property
    def schema_id(self) -> int:
        """The id of today's schema."""
        return max(self.schemas)

    def packed(self, chosen: Mask) -> Packed:
        """(keys, rows) for the online store, in bucket order."""
        encoder = RowEncoder(self.schema_id, self.view.schema)
        return pack(self.view, encoder, self.rows.filter(pa.array(chosen)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a push left behind: per row what it is; and how many rows came online with it, None when that is to do."""

    duplicate: Mask
    correction: Mask
    rows_online: int | None = None


class Durable(Protocol):
    """Keeps pushed rows so that nothing acknowledged is lost."""

    def keep(self, pushed: PushedRows) -> Kept:
        """Keep the rows that are not known, in one step that is durable on return."""
        ...

    def known(self, view: FeatureView, keys: pa.Table) -> Mask:
        """Which rows of join keys of `view` are entities that a pushed row may refer to."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryDurable:
    """Straight into history, for offline stores that many processes write."""

    offline: OfflineStore

    def keep(self, pushed: PushedRows) -> Kept:
        """One commit, under the view's lock; every duplicate is found."""
        arrived = ArrivedRows(
            rows=pushed.rows, schema_id=pushed.schema_id, refused=pushed.refused, by_row=True, answered=True
        )
        counts = self.offline.append(pushed.view, arrived)
        assert counts.duplicate is not None
        assert counts.correction is not None
        return Kept(duplicate=counts.duplicate, correction=counts.correction)

    def known(self, view: FeatureView, keys: pa.Table) -> Mask:
        """The entities of its history."""
        return entities_known(self.offline, view, keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxDurable:
    """Into the inbox; where it lies in the file of the online store, online by the same transaction."""

    inbox: Inbox
    online: OnlineStore

    def keep(self, pushed: PushedRows) -> Kept:
        """One transaction of SQLite."""
        view, rows = pushed.view, pushed.rows
        places, said = place_digests(view, rows), value_digests(view, rows)
        together = self.inbox.file is self.online
        online = None if together else self._online(pushed)
        with self.inbox.transaction() as inside:
            same, met = inside.known(view.ref, places, said)
            at_place, values = (self._online(pushed) if together else online) or (np.zeros_like(met), said)
            same |= at_place & (values == said).all(axis=1)
            fresh = ~same
            # What a correction replaces online is known from now on: sent again, it is a duplicate.
            replaced = at_place & fresh
            inside.remember(view.ref, places[replaced], values[replaced])
            inside.remember(view.ref, places[fresh], said[fresh])
            if fresh.any() or pushed.refused is not None:
                inside.put(view.ref, pushed.first, rows.filter(pa.array(fresh)), pushed.refused)
            written = None
            if together:
                written = self.inbox.file.write_within(inside.connection, view.ref, *pushed.packed(fresh & pushed.due))
            failpoint("push.before_commit")
        return Kept(duplicate=same, correction=fresh & (met | at_place), rows_online=written)

    def known(self, view: FeatureView, keys: pa.Table) -> Mask:
        """The entities with an online row: a push never takes the file of the history."""
        encoded = encode_keys(
            [keys.column(name).combine_chunks() for name in view.join_keys], [*view.join_keys.values()]
        )
        return self.online.read(view.ref, encoded).is_valid().to_numpy(zero_copy_only=False)

    def _online(self, pushed: PushedRows) -> tuple[Mask, Digests] | None:
        """(whether the online row of the entity stands at the row's place, what that row says); None: nobody knows."""
        view, rows = pushed.view, pushed.rows
        keys = encode_keys(
            [rows.column(name).combine_chunks() for name in view.join_keys], list(view.join_keys.values())
        )
        try:
            stored = self.online.read(view.ref, keys)
        except StoreError:
            return None  # the write that follows will find the same
        present = stored.is_valid()
        decoded = RowDecoder(pushed.schemas, view.schema).decode(stored.drop_null())
        there = np.flatnonzero(present.to_numpy(zero_copy_only=False))
        ours = OrderKeys.of(rows)
        at_place = np.zeros(rows.num_rows, dtype=bool)
        at_place[there] = (decoded.order.event_us == ours.event_us[there]) & (
            decoded.order.created_us == ours.created_us[there]
        )
        values = np.zeros((rows.num_rows, 2), dtype=np.uint64)
        columns = dict(zip((field.name for field in view.schema), decoded.columns, strict=True))
        values[there] = value_digests(view, pa.table(columns))
        return at_place, values
