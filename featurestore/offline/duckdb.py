"""The embedded offline store: one DuckDB file, one writing process at a time.

DuckDB locks its file to a process, so a connection lives as long as one operation (or one `open` block) and waiting
for the lock is bounded; the error then names the holder. Readers open the file read-only and share it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.clock import from_us
from featurestore.compiler import compile, history_table, names
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.errors import NotFoundError, StoreBusy, StoreUnreachable
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.offline.base import (
    NO_HISTORY,
    AppendCounts,
    ArrivedRows,
    Pending,
    Question,
    RowStream,
    history_schema,
)
from featurestore.offline.duckdb_connection import registered, transaction
from featurestore.offline.duckdb_faults import holder_of, translated
from featurestore.offline.duckdb_quarantine import DuckDBQuarantine
from featurestore.offline.interrupts import interruptible
from featurestore.offline.quarantine import ROWS_MAX
from featurestore.offline.served import Stretch

#: Times in UTC; no progress bar, which DuckDB would write to stdout, where the one JSON document goes.
SESSION = "SET TimeZone = 'UTC'; SET enable_progress_bar = false"
LOCK_POLL_S = 0.05
#: A sixth of the time that an append takes, for a few hundredths of a file of floats.
NO_COMPRESSION = "alprd"


class DuckDBOfflineStore:
    """History of one project in a DuckDB file. Safe for threads; a second process waits at most `wait_s` seconds."""

    engine = f"duckdb {duckdb.__version__}"

    def __init__(
        self,
        path: Path,
        project: str,
        *,
        threads: int = 2,
        memory_limit: str = "512MB",
        wait_s: float = 10.0,
        on_correction: Callable[[FeatureView, pa.Table], None] | None = None,
        on_drop: Callable[[str], None] | None = None,
        quarantine_rows_max: int = ROWS_MAX,
    ) -> None:
        """`on_correction` is told of rows (in the columns of `latest`) before a batch that corrects them commits,
        `on_drop` of a view whose history goes. `quarantine_rows_max` rows a view are kept in quarantine."""
        self._path = path
        self._on_correction, self._on_drop = on_correction, on_drop
        self._project = project
        self._config: dict[str, Any] = {"threads": threads, "memory_limit": memory_limit, "async_threads": 1}
        self._config["disabled_compression_methods"] = NO_COMPRESSION
        self._wait_s = wait_s
        self._lock = _file_lock(path)
        self._connection: duckdb.DuckDBPyConnection | None = None
        #: SQL that is asked for once a batch, by view and fields: building it costs as much as a small batch.
        self._known_rows: dict[tuple[str, ...], str] = {}
        self._writable = False
        writing = partial(self._session, write=True)
        self.quarantine = DuckDBQuarantine(project, self._reading, writing, quarantine_rows_max)
        #: Whether the book-keeping was seen to be as it is today: an earlier release may have made it.
        self._grown = False

    @contextmanager
    def open(self, *, write: bool) -> Iterator[None]:
        """Keep the file open for the block; nested blocks share the connection."""
        with self._session(write=write):
            yield

    def close(self) -> None:
        """Nothing is kept open between calls: other processes take their turns at the file."""

    def ensure_history(self, view: FeatureView) -> None:
        """Create the view's history table, or add the fields it lacks, in one transaction."""
        with self._session(write=True) as connection, transaction(connection):
            for statement in _BOOK_KEEPING:
                connection.execute(statement.format(schema=_quoted(self._project)))
            self.quarantine.grow(connection)
            connection.execute(DUCKDB.sql(history_table.create_history(self._project, view, DUCKDB)))
            present = set(self._columns(connection, names.history_name(view.ref)))
            for field in view.schema:
                if field.name not in present:
                    for change in history_table.add_column(self._project, view, field, DUCKDB):
                        connection.execute(DUCKDB.sql(change))

    def drop_history(self, ref: str) -> None:
        """Remove the history of `view@version` and its book-keeping, if there is one."""
        if self._on_drop is not None:
            self._on_drop(ref)
        if not self._path.exists():
            return
        with self._session(write=True) as connection, transaction(connection):
            connection.execute(DUCKDB.sql(history_table.drop_history(self._project, ref)))
            for name, key in ((names.POSITIONS, "view"), (names.LOADS, "view"), (names.QUARANTINE, "view")):
                if self._has_table(connection, name):
                    target = names.table(self._project, name)
                    connection.execute(DUCKDB.sql(exp.delete(target).where(f"{key} = ?")), [ref])

    def history_rows(self, ref: str) -> int:
        """How many rows the history holds; 0 when there is none."""
        with self._reading() as connection:
            if connection is None or not self._has_table(connection, names.history_name(ref)):
                return 0
            table = names.table(self._project, names.history_name(ref))
            return int(_scalar(connection, DUCKDB.sql(exp.select(exp.Count(this=exp.Star())).from_(table))) or 0)

    def position(self, ref: str) -> int:
        """The position of the newest committed row; 0 before the first."""
        with self._reading() as connection:
            return 0 if connection is None else self._last_position(connection, ref)

    def rows_done(self, load_id: str) -> int:
        """How many source rows of a load are settled; 0 for an unknown load."""
        with self._reading() as connection:
            if connection is None or not self._has_table(connection, names.LOADS):
                return 0
            return int(_scalar(connection, self._select(names.LOADS, "rows_done", "load_id"), load_id) or 0)

    def breached(self, load_id: str) -> tuple[int, int]:
        """(rows judged, rows that broke the contract) of what is settled of a load; zeros for an unknown one."""
        with self._reading() as connection:
            if connection is None or "broken" not in self._columns(connection, names.LOADS):
                return 0, 0
            counted = (self._select(names.LOADS, count, "load_id") for count in ("checked", "broken"))
            checked, broken = (int(_scalar(connection, statement, load_id) or 0) for statement in counted)
            return checked, broken

    def append(self, view: FeatureView, arrived: ArrivedRows) -> AppendCounts:
        """Commit one batch; positions are given under DuckDB's single writer, so they become visible in order."""
        with self._session(write=True) as connection, transaction(connection):
            arrived.confirm()
            self._require(connection, view.ref)
            if not self._grown:
                self.quarantine.grow(connection)
            duplicate, correction = self._known(connection, view, arrived.rows)
            added = arrived.rows.filter(pa.array(~duplicate)) if duplicate.any() else arrived.rows
            if correction.any() and self._on_correction is not None:
                places = arrived.rows.filter(pa.array(correction)).select([*view.join_keys, names.EVENT, names.CREATED])
                self._on_correction(view, self.rows_at(view, places))
            self._insert(connection, view, added, arrived.schema_id)
            self.quarantine.set_aside(connection, view.ref, arrived.refused, spill=arrived.answered)
            self.quarantine.release(connection, arrived.released_from or view.ref, arrived.released)
            self._settle(connection, view.ref, arrived)
            failpoint("append.before_commit")
        self._grown = True
        failpoint("append.after_commit")
        return AppendCounts(
            added=added.num_rows,
            corrections=int(correction.sum()),
            duplicates=int(np.count_nonzero(duplicate)),
            duplicate=duplicate if arrived.by_row else None,
            correction=correction if arrived.by_row else None,
        )

    def point_in_time(self, join: PointInTimeJoin, spine: pa.Table, served: Stretch | None = None) -> pa.Table:
        """Answers to spine rows, in any order; see the protocol."""
        chosen = {name: arrow_type(join.view.fields[name].dtype) for name in join.fields}
        schema = pa.schema([(names.ROW, pa.int64()), (names.EVENT, TIMESTAMP), *chosen.items()])
        with self._session(write=False) as connection:
            self._require(connection, join.view.ref)
            with ExitStack() as stack:
                for name, table in _relations(spine, served).items():
                    stack.enter_context(registered(connection, name, table))
                answers = connection.sql(compile.point_in_time_join(join, DUCKDB)).to_arrow_table()
        return answers.cast(schema)

    def latest(self, query: LatestRows, batch_rows: int) -> RowStream:
        """The greatest qualifying row per entity, streamed; the file stays open for the block."""
        return self._streamed(query.view, compile.latest(query, DUCKDB), batch_rows)

    def rows_up_to(self, view: FeatureView, position: int, batch_rows: int) -> RowStream:
        """All history rows up to a position, streamed; the file stays open for the block."""
        return self._streamed(view, compile.rows_up_to(self._project, view, position, DUCKDB), batch_rows)

    def pending(self, query: LatestRows) -> Pending:
        """What qualifies, in numbers; times in microseconds."""
        with self._session(write=False) as connection:
            self._require(connection, query.view.ref)
            table = connection.sql(compile.pending(query, DUCKDB)).to_arrow_table()
        newest, oldest = (pc.cast(table.column(at).cast(TIMESTAMP), pa.int64())[0].as_py() for at in (1, 2))
        return Pending(rows=int(table.column(0)[0].as_py()), newest_us=newest, oldest_visible_us=oldest)

    def entities(self, query: LatestRows) -> pa.Table:
        """The distinct join keys of the qualifying rows."""
        keys = pa.schema([(name, arrow_type(dtype)) for name, dtype in query.view.join_keys.items()])
        return self.ask(query.view, lambda project, dialect: compile.entities(query, dialect), keys)

    def rows_of(self, view: FeatureView, sequences: pa.Array) -> pa.Table:
        """The history rows with the given sequences, in the columns of `latest`, in any order."""
        return self.ask(
            view, partial(compile.rows_of, view=view), history_schema(view), pa.table({names.SEQUENCE: sequences})
        )

    def rows_at(self, view: FeatureView, places: pa.Table) -> pa.Table:
        """The history rows with the join keys and times of `places`, in the columns of `latest`, in any order."""
        return self.ask(view, partial(compile.rows_at, view=view), history_schema(view), places)

    def ask(
        self, view: FeatureView, question: Question, answer: pa.Schema, incoming: pa.Table | None = None
    ) -> pa.Table:
        """The answer to SQL about the view's history; see the protocol."""
        with self._session(write=False) as connection, ExitStack() as stack:
            self._require(connection, view.ref)
            if incoming is not None:
                stack.enter_context(registered(connection, names.INCOMING, incoming))
            return connection.sql(question(self._project, dialect=DUCKDB)).to_arrow_table().cast(answer)

    @contextmanager
    def _streamed(self, view: FeatureView, query: str, batch_rows: int) -> Iterator[pa.RecordBatchReader]:
        with self._session(write=False) as connection:
            self._require(connection, view.ref)
            cursor = connection.cursor()
            cursor.execute(SESSION)
            try:
                reader = cursor.sql(query).to_arrow_reader(batch_rows)
                yield pa.RecordBatchReader.from_batches(history_schema(view), _cast(reader, view))
            finally:
                cursor.close()

    def _known(
        self, connection: duckdb.DuckDBPyConnection, view: FeatureView, rows: pa.Table
    ) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """(duplicate, correction) per row, from what history holds with the same keys and times."""
        duplicate, correction = np.zeros(rows.num_rows, dtype=bool), np.zeros(rows.num_rows, dtype=bool)
        if rows.num_rows == 0 or self._last_position(connection, view.ref) == 0:
            return duplicate, correction
        numbered = rows.append_column(names.ROW, pa.array(np.arange(rows.num_rows)))
        span = pc.min_max(pc.cast(rows.column(names.EVENT), pa.int64())).as_py()
        with registered(connection, names.INCOMING, numbered):
            statement = self._known_rows_sql(view)
            known = connection.sql(statement, params=[from_us(span["min"]), from_us(span["max"])]).to_arrow_table()
        places = known.column(names.ROW).to_numpy()
        same = known.column("_same").to_numpy()
        duplicate[places[same]] = True
        correction[places[~same]] = True
        return duplicate, correction

    def _known_rows_sql(self, view: FeatureView) -> str:
        # All that the statement says: a view that was torn down may come back with other types.
        fields = {field.name: str(field.dtype) for field in view.schema}
        key = (view.ref, str(view.join_keys), str(fields))
        if key not in self._known_rows:
            self._known_rows[key] = compile.known_rows(self._project, view, DUCKDB)
        return self._known_rows[key]

    def _insert(self, connection: duckdb.DuckDBPyConnection, view: FeatureView, rows: pa.Table, schema_id: int) -> None:
        if rows.num_rows == 0:
            return
        first = self._last_position(connection, view.ref) + 1
        positions = pa.array(np.arange(first, first + rows.num_rows, dtype=np.int64))
        placed = rows.append_column(names.POSITION, positions)
        placed = placed.append_column(names.SCHEMA_ID, pa.array(np.full(rows.num_rows, schema_id, dtype=np.int32)))
        history = names.history(self._project, view)
        target = exp.Schema(this=history, expressions=[exp.to_identifier(n, quoted=True) for n in placed.column_names])
        with registered(connection, names.INCOMING, placed):
            chosen = exp.select("*").from_(exp.to_identifier(names.INCOMING, quoted=True))
            connection.execute(DUCKDB.sql(exp.Insert(this=target, expression=chosen)))
        self._upsert(connection, names.POSITIONS, {"view": view.ref}, {"last": first + rows.num_rows - 1})

    def _settle(self, connection: duckdb.DuckDBPyConnection, ref: str, arrived: ArrivedRows) -> None:
        if arrived.load_id is not None:
            # One load a view: an earlier one is over, and its row with it.
            done = {"load_id": arrived.load_id, "rows_done": arrived.rows_done}
            done |= {"checked": arrived.checked, "broken": arrived.broken}
            self._upsert(connection, names.LOADS, {"view": ref}, done)

    def _upsert(
        self, connection: duckdb.DuckDBPyConnection, table: str, keys: dict[str, Any], values: dict[str, Any]
    ) -> None:
        target = names.table(self._project, table)
        where = exp.and_(*(names.column(name).eq(exp.Placeholder()) for name in keys))
        connection.execute(DUCKDB.sql(exp.delete(target).where(where)), list(keys.values()))
        row = {**keys, **values}
        columns = exp.Schema(this=target, expressions=[exp.to_identifier(name, quoted=True) for name in row])
        inserted = exp.values([tuple(exp.Placeholder() for _ in row)])
        connection.execute(DUCKDB.sql(exp.Insert(this=columns, expression=inserted)), list(row.values()))

    def _last_position(self, connection: duckdb.DuckDBPyConnection, ref: str) -> int:
        if not self._has_table(connection, names.POSITIONS):
            return 0
        return int(_scalar(connection, self._select(names.POSITIONS, "last", "view"), ref) or 0)

    def _select(self, table: str, value: str, key: str) -> str:
        chosen = exp.select(names.column(value)).from_(names.table(self._project, table))
        return DUCKDB.sql(chosen.where(names.column(key).eq(exp.Placeholder())))

    def _has_table(self, connection: duckdb.DuckDBPyConnection, name: str) -> bool:
        """Asked by its name: the catalog's own list reads what every table holds, which takes 10 ms."""
        nothing = exp.select("1").from_(names.table(self._project, name)).limit(0)
        with connection.cursor() as apart:  # whose transaction the answer no may end
            try:
                apart.execute(DUCKDB.sql(nothing))
            except duckdb.CatalogException:
                return False
        return True

    def _columns(self, connection: duckdb.DuckDBPyConnection, table: str) -> list[str]:
        rows = connection.execute(_COLUMNS, [self._project, table]).fetchall()
        return [row[0] for row in rows]

    def _require(self, connection: duckdb.DuckDBPyConnection, ref: str) -> None:
        if not self._has_table(connection, names.history_name(ref)):
            known = connection.execute(_TABLES, [self._project]).fetchall()
            raise NotFoundError("history", ref, ["@".join(row[0].rsplit("__v", 1)) for row in known], NO_HISTORY)

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection | None]:
        """A connection, or None when the file was never made."""
        if self._connection is None and not self._path.exists():
            yield None
            return
        with self._session(write=False) as connection:
            yield connection

    @contextmanager
    def _session(self, *, write: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._held(), translated(self._path), interruptible():
            if self._connection is not None:
                assert self._writable or not write, "a block opened for reading cannot be written in"
                yield self._connection
                return
            # A file that does not exist yet cannot be opened read-only.
            self._writable = write or not self._path.exists()
            self._connection = self._connect(read_only=not self._writable)
            try:
                yield self._connection
            finally:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The file's turn in this process: DuckDB would let the writers of one process run into each other."""
        if not self._lock.acquire(timeout=self._wait_s):
            raise StoreBusy(
                f"the offline store {self._path} is held by another thread of this process ({os.getpid()}); waited "
                f"{self._wait_s:g} s; let it finish, or raise offline.wait_s in featurestore.toml"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnreachable(
                f"cannot make the folder of the offline store {self._path}: {error.strerror or error}"
            ) from error
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                connection = duckdb.connect(str(self._path), read_only=read_only, config=self._config)
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                holder = holder_of(error)
                if holder is None:
                    raise
                if time.monotonic() >= deadline:
                    raise StoreBusy(
                        f"the offline store {self._path} is held by {holder}; waited {self._wait_s:g} s; let it "
                        f"finish, or raise offline.wait_s in featurestore.toml"
                    ) from error
            else:
                # A setting of the icu extension, which is loaded only once the connection stands.
                connection.execute(SESSION)
                return connection
            time.sleep(LOCK_POLL_S)


_LOCKS: dict[Path, threading.RLock] = {}
_LOCKS_GUARD = threading.Lock()


def _file_lock(path: Path) -> threading.RLock:
    """The lock of a file, the same for all stores of this process that have it open."""
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(path.resolve(), threading.RLock())


_TABLES = "SELECT table_name FROM duckdb_tables() WHERE schema_name = ? AND table_name NOT LIKE '\\_%' ESCAPE '\\'"
_COLUMNS = "SELECT column_name FROM duckdb_columns() WHERE schema_name = ? AND table_name = ?"
_BOOK_KEEPING = (
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    "CREATE TABLE IF NOT EXISTS {schema}._positions (view VARCHAR NOT NULL, last BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS {schema}._loads"
    " (load_id VARCHAR NOT NULL, view VARCHAR NOT NULL, rows_done BIGINT NOT NULL)",
)


def _relations(spine: pa.Table, served: Stretch | None) -> dict[str, pa.Table]:
    """What a point-in-time join reads beside history."""
    if served is None:
        return {names.SPINE: spine}
    return {
        names.SPINE: spine,
        names.PUBLISHED_POSITIONS: served.positions,
        names.PUBLISHED_HORIZONS: served.horizons,
        names.PUSHED_ROWS: served.pushes,
    }


def _scalar(connection: duckdb.DuckDBPyConnection, statement: str, *parameters: object) -> Any:
    # All rows are fetched: an unfinished result would keep the connection from its next statement.
    rows = connection.execute(statement, list(parameters)).fetchall()
    return rows[0][0] if rows else None


def _quoted(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql(dialect="duckdb")


def _cast(reader: pa.RecordBatchReader, view: FeatureView) -> Iterator[pa.RecordBatch]:
    schema = history_schema(view)
    for batch in reader:
        yield batch if batch.schema == schema else batch.cast(schema)
