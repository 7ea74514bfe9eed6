"""Replay: quarantined rows through the gate again, in the order of their arrival, into history.

A row that passes leaves quarantine by the commit that makes it history, with the sequence of its arrival: it stands
behind whatever came later for the same keys and times. A row that still breaks the contract stays, with its new
reason. So a replay can be cut short anywhere, and done twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.compiler.names import ROW, SEQUENCE
from featurestore.errors import InputError
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.ingest.gate import Gate, Sorted
from featurestore.ingest.load import LoadCounts
from featurestore.ingest.raw_rows import column_names, rows_of
from featurestore.ingest.sequence import in_sequence
from featurestore.ingest.source_batch import SourceBatch
from featurestore.offline.base import ArrivedRows, OfflineStore
from featurestore.offline.quarantine import Chosen, pages

#: What `LoadCounts.breaches` calls rows that were not kept in a form that reads back.
UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayer:
    """Replays quarantined rows into `view`; where they are of another version, they get new sequences of this one.

    `confirm` raises when the view has another writer by now; nothing is committed then.
    """

    view: FeatureView
    schema_id: int
    store: OfflineStore
    take_sequences: Callable[[int], int]
    gate: Gate
    batch_rows: int
    confirm: Callable[[], None] = lambda: None

    def replay(self, chosen: Chosen) -> Iterator[LoadCounts]:
        """Settle batch after batch of the chosen rows; InputError when rows of another version lack a column."""
        if chosen.view != self.view.ref:
            for part in self._parts(chosen):
                self._need_columns(part)
        for part in self._parts(chosen):
            yield self._settle(part)

    def _parts(self, chosen: Chosen) -> Iterator[pa.Table]:
        for page in pages(self.store.quarantine, chosen, self.batch_rows):
            yield from _of_one_form(page)

    def _need_columns(self, kept: pa.Table) -> None:
        """InputError when rows of another version of the view lack a column of this one."""
        form = kept.column("raw_form")[0].as_py()
        source = self.view.source
        needed = [*self.view.join_keys, source.timestamp_field, *self.view.fields]
        if source.created_timestamp_column is not None:
            needed.append(source.created_timestamp_column)
        if form and (lacking := [name for name in needed if name not in column_names(form)]):
            raise InputError(
                f"rows in the quarantine of {kept.column('view')[0]} lack {', '.join(map(repr, lacking))}, which "
                f"{self.view.ref} has; they cannot become its rows: load its source instead"
            )

    def _settle(self, kept: pa.Table) -> LoadCounts:
        form = kept.column("raw_form")[0].as_py()
        if not form:
            return LoadCounts(read=kept.num_rows, quarantined=kept.num_rows, breaches={UNREADABLE: kept.num_rows})
        rows, text = rows_of(kept.column("raw").to_pylist(), form)
        of = kept.column("view")[0].as_py()
        numbers = np.arange(rows.num_rows, dtype=np.int64)
        batch = SourceBatch(rows=self._whole(rows), source=f"quarantine of {of}", row_numbers=numbers, text=text)
        judged = self.gate.sort_out(batch, keep_refused=True)
        sequenced = in_sequence(self.view, judged.rows.append_column(ROW, pa.array(judged.places)))
        arrived = self._in_order(sequenced.rows, kept, of)
        failpoint("replay.gated")
        appended = self.store.append(
            self.view,
            ArrivedRows(
                rows=arrived,
                schema_id=self.schema_id,
                refused=_judged_again(kept, judged),
                released=kept.column("id").take(pa.array(judged.places)).combine_chunks(),
                released_from=of,
                confirm=self.confirm,
                answered=True,
            ),
        )
        rejections = judged.rejections
        named = zip(rejections.fields, rejections.rules, strict=True)
        return LoadCounts(
            read=kept.num_rows,
            added=appended.added,
            corrections=appended.corrections,
            duplicates=appended.duplicates + sequenced.repeated,
            ambiguous=sequenced.ambiguous,
            quarantined=len(rejections),
            breaches=dict(Counter(f"{field}:{rule}" for field, rule in named)),
        )

    def _whole(self, rows: pa.Table) -> pa.Table:
        """The rows with the fields that the view has got since they were set aside: these hold their defaults."""
        for field in self.view.schema:
            if field.name in rows.column_names:
                continue
            default = pa.scalar(field.default, arrow_type(field.dtype))
            rows = rows.append_column(field.name, pa.repeat(default, rows.num_rows))
        return rows

    def _in_order(self, rows: pa.Table, kept: pa.Table, of: str) -> pa.Table:
        """The rows in the order of their arrival, with their sequences."""
        places = rows.column(ROW).to_numpy()
        order = np.argsort(places, kind="stable")
        sequences = kept.column("sequence").to_numpy()[places[order]]
        if of != self.view.ref and len(order):
            sequences = self.take_sequences(len(order)) + np.arange(len(order))
        ordered = rows.take(pa.array(order)).drop_columns([ROW])
        return ordered.append_column(SEQUENCE, pa.array(sequences, pa.int64()))


def _of_one_form(page: pa.Table) -> Iterator[pa.Table]:
    """The page in pieces of neighbours that have one form, none of them split."""
    forms = page.column("raw_form").combine_chunks()
    changes: NDArray[np.int64] = (
        np.flatnonzero(forms.to_numpy(zero_copy_only=False)[1:] != forms[:-1].to_numpy(zero_copy_only=False)) + 1
    )
    bounds = [0, *changes.tolist(), page.num_rows]
    for start, end in zip(bounds, bounds[1:], strict=False):
        yield page.slice(start, end - start)


def _judged_again(kept: pa.Table, judged: Sorted) -> pa.Table | None:
    """The rows that stay, as they were kept but for the judgement."""
    if judged.refused is None:
        return None
    refused = np.setdiff1d(np.arange(kept.num_rows), judged.places)
    staying = kept.take(pa.array(refused))
    for name in ("rule", "field", "reason", "definition"):
        place = staying.column_names.index(name)
        staying = staying.set_column(place, staying.schema.field(name), judged.refused.column(name))
    return staying
