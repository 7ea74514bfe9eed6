"""The inbox into history: what was pushed while nobody could write history keeps its sequence and gets a position.

Whoever is about to use the history of a view drains first. A drain can be cut short anywhere and begun again, by
several processes at once: a row with its sequence in history is done.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurestore.compiler.names import CREATED, EVENT, SEQUENCE
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.ingest.inbox import Inbox, InboxBatch, whole_rows
from featurestore.ingest.projection import pack
from featurestore.ingest.row_digests import place_digests, value_digests
from featurestore.offline.base import ArrivedRows, OfflineStore
from featurestore.offline.quarantine import grown
from featurestore.online.base import OnlineStore
from featurestore.online.row_encoder import RowEncoder
from featurestore.online.row_layout import ORDER_KEY_BYTES

#: Batches that become history by one commit.
BATCHES_MAX = 1000


def drain(inbox: Inbox, view: FeatureView, schema_id: int, offline: OfflineStore, online: OnlineStore) -> int:
    """Take what waits for the view into its history; returns how many rows became history."""
    added = 0
    while batches := inbox.batches(view.ref, BATCHES_MAX):
        added += _settle(batches, view, schema_id, offline, online)
        failpoint("drain.before_remove")
        inbox.remove(view.ref, batches)
    return added


def _settle(
    batches: list[InboxBatch], view: FeatureView, schema_id: int, offline: OfflineStore, online: OnlineStore
) -> int:
    rows = whole_rows(view, [batch.rows for batch in batches])
    refused = [grown(batch.refused) for batch in batches if batch.refused is not None]
    arrived = ArrivedRows(
        rows=rows,
        schema_id=schema_id,
        refused=pa.concat_tables(refused) if refused else None,
        by_row=True,
        answered=True,
    )
    with offline.open(write=True):
        counts = offline.append(view, arrived)
        failpoint("drain.appended")
        assert counts.duplicate is not None
        if counts.duplicate.any():
            _yield_to_history(rows.filter(pa.array(counts.duplicate)), view, schema_id, offline, online)
    return counts.added


def _yield_to_history(
    dropped: pa.Table, view: FeatureView, schema_id: int, offline: OfflineStore, online: OnlineStore
) -> None:
    """Rows that history held before they were pushed, and that a push could not see there: online, history's stand.

    A row pushed to the same entity meanwhile may be taken away here; it gets a position, and the next publish
    brings it back.
    """
    held = offline.rows_at(view, dropped.select([*view.join_keys, EVENT, CREATED]))
    theirs = np.concatenate([place_digests(view, held), value_digests(view, held)], axis=1)
    ours = np.concatenate([place_digests(view, dropped), value_digests(view, dropped)], axis=1)
    known = {digest.tobytes(): place for place, digest in enumerate(theirs)}
    twins = np.array([known.get(digest.tobytes(), -1) for digest in ours], dtype=np.int64)
    done = np.isin(dropped.column(SEQUENCE).to_numpy(), held.column(SEQUENCE).to_numpy())
    other = np.flatnonzero(~done & (twins >= 0))
    if len(other) == 0:
        return
    encoder = RowEncoder(schema_id, view.schema)
    keys, rows = pack(view, encoder, dropped.take(pa.array(other)))
    _, historic = pack(view, encoder, held.take(pa.array(twins[other])))
    stored = online.read(view.ref, keys)
    stray = np.array(
        [
            there is not None and there[:ORDER_KEY_BYTES] == pushed[:ORDER_KEY_BYTES]
            for there, pushed in zip(stored.to_pylist(), rows.to_pylist(), strict=True)
        ],
        dtype=bool,
    )
    if stray.any():
        online.delete(view.ref, keys.filter(pa.array(stray)))
        online.write(view.ref, keys.filter(pa.array(stray)), historic.filter(pa.array(stray)))
