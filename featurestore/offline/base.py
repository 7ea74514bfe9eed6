"""What every offline store does: keep history, answer as-of questions, stream projections.

Rows cross this boundary as Arrow tables of canonical types (`arrow_types.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.compiler import names
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.feature_view import FeatureView
from featurestore.offline.quarantine import Quarantine
from featurestore.offline.served import Stretch

Mask = NDArray[np.bool_]
#: Writes SQL about a history: question(project, dialect=...).
Question = Callable[..., str]
#: Rows as they come; the store works for as long as the block lasts.
RowStream = AbstractContextManager[pa.RecordBatchReader]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrivedRows:
    """One batch past the gate, in sequence order, ready to become history in one transaction.

    `rows` holds join keys, event_timestamp, created_timestamp, `_sequence` and the fields; no two of its rows are
    equal. `refused` holds what the gate set aside, in the shape of the quarantine table; `released` are the ids of rows
    that leave the quarantine of `released_from` (the view itself when empty) with the same commit, since they are
    among `rows`, or duplicates. When `load_id` is given the store remembers with the same commit that `rows_done`
    source rows of that load are settled, `checked` of them were judged and `broken` of these broke the contract.

    `confirm` is called while the store keeps other writers of the view out, before anything is kept; what it raises
    undoes the batch. A writer that was paused, and lost its lease meanwhile, is stopped there.
    """

    rows: pa.Table
    schema_id: int
    refused: pa.Table | None = None
    load_id: str | None = None
    rows_done: int = 0
    checked: int = 0
    broken: int = 0
    released: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    released_from: str = ""
    #: Whether the sender was told which rows were refused: where quarantine is full, it then goes without them.
    answered: bool = False
    confirm: Callable[[], None] = lambda: None
    #: Whether the counts are to tell of each row what became of it.
    by_row: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendCounts:
    """What became of the rows of one batch: `added` are new, `corrections` among them replace known values."""

    added: int = 0
    corrections: int = 0
    duplicates: int = 0
    #: Which of the rows are duplicates, and which corrections; None unless it was asked for.
    duplicate: Mask | None = field(default=None, compare=False, repr=False)
    correction: Mask | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """Qualifying rows: how many, their greatest event time, and when the first of them became visible (None: none)."""

    rows: int
    newest_us: int | None
    oldest_visible_us: int | None


#: What to do about a view that is applied and has no history: job state belongs to the stores it was made with.
NO_HISTORY = (
    "the views were applied with another offline store; set [offline] back to it, or begin a new registry ([registry] "
    "path) for this one and run apply and materialize-incremental"
)


class OfflineStore(Protocol):
    """History of one project. Methods open the store for as long as they run; `open` keeps it for several."""

    @property
    def quarantine(self) -> Quarantine:
        """The rows that were set aside."""
        ...

    @property
    def engine(self) -> str:
        """Engine and version, as training-set manifests record it."""
        ...

    def open(self, *, write: bool) -> AbstractContextManager[None]:
        """Keep the store open across calls; StoreBusy, naming the holder, when it stays locked."""
        ...

    def close(self) -> None:
        """Let go of what is kept open between calls; the next one opens it again."""
        ...

    def ensure_history(self, view: FeatureView) -> None:
        """Create the view's history table, or add the fields it lacks; does nothing when all is there."""
        ...

    def drop_history(self, ref: str) -> None:
        """Remove the history of `view@version` and its book-keeping, if there is one."""
        ...

    def history_rows(self, ref: str) -> int:
        """How many rows the history holds; 0 when there is none."""
        ...

    def position(self, ref: str) -> int:
        """The position of the newest committed row; 0 before the first."""
        ...

    def append(self, view: FeatureView, arrived: ArrivedRows) -> AppendCounts:
        """Commit a batch: new rows and corrections get positions, duplicates are dropped (rule 6 of time)."""
        ...

    def rows_done(self, load_id: str) -> int:
        """How many source rows of a load are settled; 0 for an unknown load."""
        ...

    def breached(self, load_id: str) -> tuple[int, int]:
        """(rows judged, rows that broke the contract) of what is settled of a load; zeros for an unknown one."""
        ...

    def point_in_time(self, join: PointInTimeJoin, spine: pa.Table, served: Stretch | None = None) -> pa.Table:
        """Answers to spine rows (`_row`, join keys, `_as_of`), as (`_row`, event_timestamp, fields), in any order.

        `served` comes with `knowledge="as_served"` alone; `_as_of` then counts its publishes.
        """
        ...

    def latest(self, query: LatestRows, batch_rows: int) -> RowStream:
        """The greatest qualifying row per entity, streamed: keys, event, created, `_sequence`, `_schema`, fields."""
        ...

    def rows_up_to(self, view: FeatureView, position: int, batch_rows: int) -> RowStream:
        """All history rows up to a position, streamed in the columns of `latest`, in any order."""
        ...

    def pending(self, query: LatestRows) -> Pending:
        """What qualifies, in numbers; times in microseconds."""
        ...

    def entities(self, query: LatestRows) -> pa.Table:
        """The distinct join keys of the qualifying rows."""
        ...

    def rows_of(self, view: FeatureView, sequences: pa.Array) -> pa.Table:
        """The history rows with the given sequences, in the columns of `latest`, in any order."""
        ...

    def rows_at(self, view: FeatureView, places: pa.Table) -> pa.Table:
        """The history rows with the join keys and times of `places`, in the columns of `latest`, in any order."""
        ...

    def ask(
        self, view: FeatureView, question: Question, answer: pa.Schema, incoming: pa.Table | None = None
    ) -> pa.Table:
        """The answer to SQL about the view's history, in the types of `answer`.

        `incoming` stands in `_incoming`; its columns are some of the history's, and the compiler's own.
        """
        ...


def history_schema(view: FeatureView, fields: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Arrow schema of streamed history rows: keys, times, sequence, schema id, then the fields."""
    keys = [(name, arrow_type(dtype)) for name, dtype in view.join_keys.items()]
    system = [(names.EVENT, TIMESTAMP), (names.CREATED, TIMESTAMP), (names.SEQUENCE, pa.int64())]
    chosen = fields if fields is not None else {field.name: arrow_type(field.dtype) for field in view.schema}
    return pa.schema([*keys, *system, (names.SCHEMA_ID, pa.int32()), *chosen.items()])
