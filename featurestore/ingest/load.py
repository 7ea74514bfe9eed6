"""Source rows into history, a batch at a time: gate, sequence, append. A batch is one commit of the offline store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields

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
from featurestore.offline.quarantine import numbered


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
    #: "field:rule" -> rows that break it, kept or not; a row may break several.
    breaches: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __add__(self, other: LoadCounts) -> LoadCounts:
        numbers = (f.name for f in fields(self) if f.name != "breaches")
        rules = {**self.breaches, **other.breaches}
        return LoadCounts(
            **{name: getattr(self, name) + getattr(other, name) for name in numbers},
            breaches={rule: self.breaches.get(rule, 0) + other.breaches.get(rule, 0) for rule in rules},
        )

    @property
    def checked(self) -> int:
        """Rows that were judged."""
        return self.read - self.outside

    @property
    def broken(self) -> int:
        """Rows that break the contract, set aside or kept with a warning."""
        return self.quarantined + self.warned


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

    def load(
        self, batches: Iterable[WindowedBatch], *, already_done: int = 0, breached: tuple[int, int] = (0, 0)
    ) -> Iterator[Settled]:
        """Settle batch after batch; the first `already_done` source rows were settled by an earlier try, which left
        the counts `breached` (see `OfflineStore.breached`).

        The next batch is read and checked while the last one is committed; whoever takes a result sees nothing under
        way, and what is wrong with a batch is raised after the batches before it are settled.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="load") as writer:
            under_way: Future[Settled] | None = None
            try:
                for fresh, done in _fresh(batches, already_done):
                    checked = self._checked(fresh, done, breached)
                    breached = checked.breached
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

    def _checked(self, windowed: WindowedBatch, rows_done: int, before: tuple[int, int] = (0, 0)) -> _Checked:
        passed = self.gate.check(windowed.batch, windowed.window)
        read = windowed.batch.rows.num_rows
        breached = (before[0] + read - passed.outside, before[1] + passed.quarantined + passed.warned)
        return _Checked(read, rows_done, passed, in_sequence(self.view, passed.rows), breached)

    def _committed(self, checked: _Checked) -> Settled:
        passed, sequenced = checked.passed, checked.sequenced
        taken = passed.rows.num_rows + passed.quarantined
        first = self.take_sequences(taken) if taken else 0
        rows = sequenced.rows.append_column(SEQUENCE, pa.array(sequenced.offsets + first))
        failpoint("append.begin")
        appended = self.store.append(
            self.view,
            ArrivedRows(
                rows=rows,
                schema_id=self.schema_id,
                refused=numbered(passed.refused, first + passed.rows.num_rows),
                load_id=self.load_id,
                rows_done=checked.rows_done,
                checked=checked.breached[0],
                broken=checked.breached[1],
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
            quarantined=passed.quarantined,
            warned=passed.warned,
            breaches=passed.breaches,
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
    #: (rows judged, rows that broke the contract) of the load up to the end of this batch.
    breached: tuple[int, int]


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
