"""A push: rows from a client through gate, sequence, durable store and online store, and then the acknowledgement.

Every step may fail or die, and the push be sent again: rows that are durable are duplicates then. Nothing here knows
who asks; the command, the facade and the servers call the same `Pusher`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.clock import Clock, to_us
from featurestore.compiler.names import CREATED, EVENT, ROW, SEQUENCE
from featurestore.errors import InputError, SourceError, StoreError
from featurestore.failpoint import failpoint
from featurestore.ingest.durable import Durable, Kept, PushedRows
from featurestore.ingest.gate import Gate, Rejections
from featurestore.ingest.sequence import in_sequence
from featurestore.ingest.source_batch import SourceBatch
from featurestore.offline.base import Mask
from featurestore.offline.frames import frame_to_table, is_frame
from featurestore.offline.quarantine import numbered
from featurestore.online.base import OnlineStore
from featurestore.online.keys import encode_keys
from featurestore.registry.registry import Registry
from featurestore.registry.state import StateStore

#: The run that quarantined rows name.
RUN = "push"


class RowResult(IntEnum):
    """What became of a pushed row. All but REJECTED are durable."""

    #: New, and online as far as it is due.
    ACCEPTED = 1
    #: History or the inbox holds this very row already.
    DUPLICATE = 2
    #: New values for known keys and times; online as far as it is due.
    CORRECTION = 3
    #: Durable; the online store could not be written, and the next publish delivers it.
    PENDING = 4
    #: Breaks the contract; nothing of it was kept, but in quarantine where the view says so.
    REJECTED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PushResult:
    """The answer to a push: `results` holds a RowResult per row, in the order of the rows."""

    view: str
    results: NDArray[np.uint8]
    rejections: Rejections
    #: Why rows are pending; empty when none is.
    pending_reason: str = ""

    def count(self, result: RowResult) -> int:
        """How many rows have that result."""
        return int(np.count_nonzero(self.results == result))

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each result, by its name in lower case."""
        return {result.name.lower(): self.count(result) for result in RowResult}


@dataclass(frozen=True, kw_only=True)
class Pusher:
    """Pushes rows into the views of one project."""

    registry: Registry
    state: StateStore
    durable: Durable
    online: OnlineStore
    clock: Clock

    def push(self, name: str, rows: pa.Table) -> PushResult:
        """Push a table to the view `name` (or `name@version`); see `push_batch`."""
        numbers = np.arange(rows.num_rows, dtype=np.int64)
        return self.push_batch(name, SourceBatch(rows=rows, source="push", row_numbers=numbers))

    def push_batch(self, name: str, batch: SourceBatch) -> PushResult:
        """Push one batch, each row of which stands for itself.

        The columns are named as in the view's source. InputError when one is missing; NotFoundError for an unknown
        view. Other errors come from a store that failed before all was settled: sent again, no row counts twice.
        """
        snapshot = self.registry.snapshot()  # one moment: a row is laid out by the schema whose id it carries
        view = snapshot.view(name)
        started_us = to_us(self.clock.now())
        try:
            gate = Gate(view, RUN, started_us, lambda ref, keys: self.durable.known(snapshot.view(ref), keys))
            sorted_out = gate.sort_out(batch)
        except SourceError as error:
            raise InputError(str(error)) from error
        # A key that is too long for the online store is refused before anything is kept.
        keys = [sorted_out.rows.column(key).combine_chunks() for key in view.join_keys]
        encode_keys(keys, list(view.join_keys.values()), list(view.join_keys))
        failpoint("push.gated")
        rows = sorted_out.rows.append_column(ROW, pa.array(sorted_out.places))
        sequenced = in_sequence(view, rows)
        results = np.full(batch.rows.num_rows, RowResult.DUPLICATE, dtype=np.uint8)
        results[~np.isin(np.arange(len(results)), sorted_out.places)] = RowResult.REJECTED
        if rows.num_rows == 0 and sorted_out.refused is None:
            return PushResult(view=view.ref, results=results, rejections=sorted_out.rejections)
        # Refused rows too have their place among all that arrived, behind those that passed.
        refused_rows = 0 if sorted_out.refused is None else sorted_out.refused.num_rows
        first = self.state.begin_push(view.ref, rows.num_rows + refused_rows, started_us)
        failpoint("push.sequenced")
        places = sequenced.rows.column(ROW).to_numpy()
        fresh = sequenced.rows.drop_columns([ROW]).append_column(SEQUENCE, pa.array(sequenced.offsets + first))
        pushed = PushedRows(
            view=view,
            schemas=snapshot.row_schemas[view.ref],
            rows=fresh,
            refused=numbered(sorted_out.refused, first + rows.num_rows),
            first=first,
            due=_visible_from_us(fresh) <= started_us,
        )
        kept, reason = self._settled(pushed, started_us)
        results[places] = _results(kept, pushed.due if reason else None)
        failpoint("push.settled")
        return PushResult(view=view.ref, results=results, rejections=sorted_out.rejections, pending_reason=reason)

    def _settled(self, pushed: PushedRows, started_us: int) -> tuple[Kept, str]:
        """Durable, online, logged; (what the rows are, why the online store was not written)."""
        ref = pushed.view.ref
        try:
            kept = self.durable.keep(pushed)
        except StoreError:
            self.state.leave_push(ref, pushed.first)
            raise
        failpoint("push.durable")
        fresh = ~kept.duplicate
        online = fresh & pushed.due
        written = kept.rows_online
        if written is None:
            try:
                written = self.online.write(ref, *pushed.packed(online)) if online.any() else 0
            except StoreError as error:
                self.state.leave_push(ref, pushed.first)
                return kept, str(error)
        failpoint("push.online")
        events_us = pushed.rows.column(EVENT).combine_chunks().cast(pa.int64()).to_numpy()
        sequences = pushed.rows.column(SEQUENCE).to_numpy()
        self.state.commit_push(
            ref,
            pushed.first,
            int(sequences.max()) if fresh.any() else None,
            started_at_us=started_us,
            watermark_us=int(events_us[online].max()) if online.any() else None,
            rows_written=written,
            now_us=lambda: to_us(self.clock.now()),
        )
        return kept, ""


def as_table(data: object) -> pa.Table:
    """Rows as callers have them: an Arrow table or batch, a data frame, or name -> column of values."""
    try:
        match data:
            case pa.Table():
                return data
            case pa.RecordBatch():
                return pa.Table.from_batches([data])
            case Mapping():
                return pa.table(dict(data))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise InputError(
            f"the rows to push are no table: {error}; give columns of one length, of one type each"
        ) from error
    if is_frame(data):
        return frame_to_table(data)
    raise InputError(
        f"rows to push are a {type(data).__name__}; give an Arrow table, a pandas or polars frame, or a dict of columns"
    )


def _visible_from_us(rows: pa.Table) -> NDArray[np.int64]:
    times = [rows.column(name).combine_chunks().cast(pa.int64()).to_numpy() for name in (EVENT, CREATED)]
    latest: NDArray[np.int64] = np.maximum(*times)
    return latest


def _results(kept: Kept, undelivered: Mask | None) -> NDArray[np.uint8]:
    results = np.full(len(kept.duplicate), RowResult.ACCEPTED, dtype=np.uint8)
    results[kept.correction] = RowResult.CORRECTION
    if undelivered is not None:
        results[undelivered] = RowResult.PENDING
    results[kept.duplicate] = RowResult.DUPLICATE
    return results
