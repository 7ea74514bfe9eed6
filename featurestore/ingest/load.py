"""Source rows into history, a batch at a time: gate, sequence, append. A batch is one commit of the offline store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.compiler.names import CREATED, EVENT, SEQUENCE
from featurestore.errors import FeatureStoreError
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.ingest.gate import Gate, Passed
from featurestore.ingest.sequence import Sequenced, in_sequence
from featurestore.ingest.source_batch import RowWindow, SourceBatch
from featurestore.offline.base import ArrivedRows, OfflineStore


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadCounts:
    """What became of source rows. Every row read is outside the window, quarantined, a duplicate, or added.

    `corrections` and `ambiguous` are among the added; `warned` rows broke a rule of a view that says `warn`.
    """

    read: int = 0
    outside: int = 0
    added: int = 0
    corrections: int = 0
    duplicates: int = 0
    ambiguous: int = 0
    quarantined: int = 0
    warned: int = 0

    def __add__(self, other: LoadCounts) -> LoadCounts:
        return LoadCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A batch that is history now, and the newest times seen in it (microseconds; None when it added nothing)."""

    counts: LoadCounts
    rows_done: int
    newest_event_us: int | None
    newest_created_us: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowedBatch:
    """A source batch and the window that says which of its rows are meant."""

    batch: SourceBatch
    window: RowWindow


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """Brings batches of one view's source into its history.

    `take_sequences(count)` gives the first number of a block of this view's own, for good, before anything is written.
    `confirm` raises when the view has another writer by now; no batch is committed then.
    """

    view: FeatureView
    schema_id: int
    store: OfflineStore
    take_sequences: Callable[[int], int]
    gate: Gate
    load_id: str | None = None
    confirm: Callable[[], None] = lambda: None

    def load(self, batches: Iterable[WindowedBatch], *, already_done: int = 0) -> Iterator[Settled]:
        """Settle batch after batch; the first `already_done` source rows were settled by an earlier try.

        The next batch is read and checked while the last one is committed; whoever takes a result sees nothing under
        way, and what is wrong with a batch is raised after the batches before it are settled.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="load") as writer:
            under_way: Future[Settled] | None = None
            try:
                for fresh, done in _fresh(batches, already_done):
                    checked = self._checked(fresh, done)
                    if under_way is not None:
                        before, under_way = under_way, None
                        yield before.result()
                    under_way = writer.submit(self._committed, checked)
            except FeatureStoreError:
                if under_way is not None:
                    yield under_way.result()
                raise
            if under_way is not None:
                yield under_way.result()

    def settle(self, windowed: WindowedBatch, *, rows_done: int = 0) -> Settled:
        """One batch through gate, sequence and history."""
        return self._committed(self._checked(windowed, rows_done))

    def _checked(self, windowed: WindowedBatch, rows_done: int) -> _Checked:
        passed = self.gate.check(windowed.batch, windowed.window)
        return _Checked(windowed.batch.rows.num_rows, rows_done, passed, in_sequence(self.view, passed.rows))

    def _committed(self, checked: _Checked) -> Settled:
        passed, sequenced = checked.passed, checked.sequenced
        first = self.take_sequences(passed.rows.num_rows) if passed.rows.num_rows else 0
        rows = sequenced.rows.append_column(SEQUENCE, pa.array(sequenced.offsets + first))
        failpoint("append.begin")
        appended = self.store.append(
            self.view,
            ArrivedRows(
                rows=rows,
                schema_id=self.schema_id,
                refused=passed.refused,
                load_id=self.load_id,
                rows_done=checked.rows_done,
                confirm=self.confirm,
            ),
        )
        counts = LoadCounts(
            read=checked.read,
            outside=passed.outside,
            added=appended.added,
            corrections=appended.corrections,
            duplicates=appended.duplicates + sequenced.repeated,
            ambiguous=sequenced.ambiguous,
            quarantined=0 if passed.refused is None else passed.refused.num_rows,
            warned=passed.warned,
        )
        newest = {name: newest_us(rows.column(name)) for name in (EVENT, CREATED)}
        return Settled(
            counts=counts, rows_done=checked.rows_done, newest_event_us=newest[EVENT], newest_created_us=newest[CREATED]
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """A batch that is through the gate and in order, and not written yet."""

    read: int
    rows_done: int
    passed: Passed
    sequenced: Sequenced


def _fresh(batches: Iterable[WindowedBatch], already_done: int) -> Iterator[tuple[WindowedBatch, int]]:
    """(batch, source rows up to its end), without the first `already_done` source rows."""
    done = 0
    for windowed in batches:
        before, done = done, done + windowed.batch.rows.num_rows
        if done <= already_done:
            continue
        fresh = windowed
        if before < already_done:
            keep = np.arange(before, done) >= already_done
            fresh = WindowedBatch(batch=windowed.batch.filtered(keep), window=windowed.window)
        yield fresh, done


def newest_us(times: pa.ChunkedArray) -> int | None:
    """The greatest of some timestamps in microseconds, None of none."""
    return pc.max(times.cast(pa.int64())).as_py()
