"""The shared offline store: history tables in a schema of the project's name, several writing processes.

Writers of one view take turns: the view's lock is held from before its newest position is read until the commit that
makes the next ones visible, so positions become visible in order. Readers wait for nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import errors, sql

from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.clock import from_us
from featurestore.compiler import compile, history_table, names
from featurestore.compiler.dialects.postgres import POSTGRES
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.errors import NotFoundError, StoreBusy, StoreError
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.offline.base import (
    NO_HISTORY,
    AppendCounts,
    ArrivedRows,
    Mask,
    Pending,
    Question,
    RowStream,
    history_schema,
)
from featurestore.offline.postgres_connection import Connection, Connections
from featurestore.offline.postgres_copy import batches, copy_in, queried, sent_rows
from featurestore.offline.postgres_quarantine import PostgresQuarantine
from featurestore.offline.quarantine import ROWS_MAX
from featurestore.offline.served import Stretch

#: A history of at most so many rows per spine row is read whole: a lookup costs 11 us, a row in the sort 4 us.
HISTORY_ROWS_PER_ASK = 1


class PostgresOfflineStore:
    """History of one project in a Postgres database. Safe for threads and processes; waits at most `wait_s` seconds.

    `url` is an address as libpq takes it, best without a password, which goes into `password`.
    """

    def __init__(
        self,
        url: str,
        project: str,
        *,
        password: str | None = None,
        wait_s: float = 10.0,
        quarantine_rows_max: int = ROWS_MAX,
    ) -> None:
        self._project = project
        self._wait_s = wait_s
        self._connections = Connections(url, password, wait_s=wait_s, name=f"featurestore {project}")
        self._address = self._connections.address
        self.quarantine = PostgresQuarantine(project, self._transaction, self._lock, quarantine_rows_max)
        #: Whether the book-keeping was seen to be as it is today: an earlier release may have made it.
        self._grown = False

    @property
    def engine(self) -> str:
        """Engine and version; asks the server."""
        with self._connections.lent() as connection:
            return f"postgres {connection.info.parameter_status('server_version')}"

    @contextmanager
    def open(self, *, write: bool) -> Iterator[None]:
        """See that the server answers; connections are kept in any case."""
        with self._connections.lent():
            pass
        yield

    def close(self) -> None:
        """Close the connections; the next operation opens one again."""
        self._connections.close()

    # ------------------------------------------------------------------ tables

    def ensure_history(self, view: FeatureView) -> None:
        """Create the view's history table, or add the fields it lacks, in one transaction."""
        with self._transaction() as connection:
            self._lock(connection, "")
            for statement in _BOOK_KEEPING:
                connection.execute(sql.SQL(statement).format(schema=sql.Identifier(self._project)))
            self.quarantine.grow(connection)
            connection.execute(POSTGRES.sql(history_table.create_history(self._project, view, POSTGRES)))
            present = self._columns(connection, view.ref)
            for field in view.schema:
                if field.name not in present:
                    for change in history_table.add_column(self._project, view, field, POSTGRES):
                        connection.execute(POSTGRES.sql(change))
            self._require(connection, view)
            history = names.history(self._project, view)
            indexed = {row[0] for row in connection.execute(_INDEXES, (self._project, history.name)).fetchall()}
            for index in POSTGRES.indexes(history, view):
                # Not left to IF NOT EXISTS, which waits for every writer of the view before it looks.
                if index.this.name not in indexed:
                    connection.execute(POSTGRES.sql(index))

    def drop_history(self, ref: str) -> None:
        """Remove the history of `view@version` and its book-keeping, if there is one."""
        with self._transaction() as connection:
            if not self._has_table(connection, names.POSITIONS):
                return
            self._lock(connection, "")
            self._lock(connection, ref)
            connection.execute(POSTGRES.sql(history_table.drop_history(self._project, ref)))
            for name in (names.POSITIONS, names.LOADS, names.QUARANTINE):
                connection.execute(self._sql("DELETE FROM {table} WHERE view = $1", table=name), (ref,))

    def history_rows(self, ref: str) -> int:
        """How many rows the history holds; 0 when there is none."""
        with self._connections.lent() as connection:
            if not self._has_table(connection, names.history_name(ref)):
                return 0
            counted = self._sql("SELECT count(*) FROM {table}", table=names.history_name(ref))
            return int(_scalar(connection, counted) or 0)

    def position(self, ref: str) -> int:
        """The position of the newest committed row; 0 before the first."""
        with self._connections.lent() as connection:
            return self._last_position(connection, ref)

    def rows_done(self, load_id: str) -> int:
        """How many source rows of a load are settled; 0 for an unknown load."""
        with self._connections.lent() as connection:
            if not self._has_table(connection, names.LOADS):
                return 0
            done = self._sql("SELECT rows_done FROM {table} WHERE load_id = $1", table=names.LOADS)
            return int(_scalar(connection, done, load_id) or 0)

    def breached(self, load_id: str) -> tuple[int, int]:
        """(rows judged, rows that broke the contract) of what is settled of a load; zeros for an unknown one."""
        with self._connections.lent() as connection:
            if not self.quarantine.is_grown(connection):
                return 0, 0
            counted = self._sql("SELECT checked, broken FROM {table} WHERE load_id = $1", table=names.LOADS)
            found = connection.execute(counted, (load_id,)).fetchone()
            return (0, 0) if found is None else (int(found[0]), int(found[1]))

    # ------------------------------------------------------------------ append

    def append(self, view: FeatureView, arrived: ArrivedRows) -> AppendCounts:
        """Commit one batch. It travels before the view's lock is taken, so that writers wait for commits alone."""
        if not self._grown:
            self.quarantine.ensure_grown()
            self._grown = True
        with self._transaction() as connection:
            self._require(connection, view)
            self._place(connection, view, names.INCOMING, _numbered(arrived.rows))
            self._lock(connection, view.ref)
            arrived.confirm()
            last = int(_scalar(connection, self._sql(_LAST, table=names.POSITIONS), view.ref) or 0)
            duplicates, corrections = self._known(connection, view, arrived.rows, last)
            told = _known_by_row(connection, arrived.rows.num_rows) if arrived.by_row else {}
            added = self._insert(connection, view, arrived, last)
            self.quarantine.set_aside(connection, view.ref, arrived.refused, spill=arrived.answered)
            self.quarantine.release(connection, arrived.released_from or view.ref, arrived.released)
            self._settle(connection, view.ref, arrived)
            failpoint("append.before_commit")
        failpoint("append.after_commit")
        return AppendCounts(added=added, corrections=corrections, duplicates=duplicates, **told)

    def _known(self, connection: Connection, view: FeatureView, rows: pa.Table, last: int) -> tuple[int, int]:
        """(duplicates, corrections) of the incoming rows, which then stand in `_known`."""
        connection.execute("CREATE TEMPORARY TABLE _known (_row bigint, _same boolean) ON COMMIT DROP")
        if rows.num_rows == 0 or last == 0:
            return 0, 0
        span = pc.min_max(pc.cast(rows.column(names.EVENT), pa.int64())).as_py()
        known = sql.SQL("INSERT INTO pg_temp._known " + compile.known_rows(self._project, view, POSTGRES))
        with _by_lookups(connection):
            connection.execute(known, (from_us(span["min"]), from_us(span["max"])))
        counts = "SELECT count(*) FILTER (WHERE _same), count(*) FILTER (WHERE NOT _same) FROM pg_temp._known"
        duplicates, corrections = connection.execute(counts).fetchall()[0]
        return int(duplicates), int(corrections)

    def _insert(self, connection: Connection, view: FeatureView, arrived: ArrivedRows, last: int) -> int:
        """The incoming rows that are not known into history, in their order; returns how many."""
        if arrived.rows.num_rows == 0:
            return 0
        statement = self._sql(
            "INSERT INTO {table} ({columns}, _position, _schema)"
            " SELECT {columns}, $1 + row_number() OVER (ORDER BY _row), $2 FROM pg_temp._incoming AS fresh"
            " WHERE NOT EXISTS (SELECT FROM pg_temp._known AS known WHERE known._row = fresh._row AND known._same)"
            " ORDER BY _row",
            table=names.history_name(view.ref),
            columns=arrived.rows.column_names,
        )
        added = connection.execute(statement, (last, arrived.schema_id)).rowcount
        moved = self._sql(
            "INSERT INTO {table} (view, last) VALUES ($1, $2) ON CONFLICT (view) DO UPDATE SET last = excluded.last",
            table=names.POSITIONS,
        )
        connection.execute(moved, (view.ref, last + added))
        return added

    def _settle(self, connection: Connection, ref: str, arrived: ArrivedRows) -> None:
        if arrived.load_id is not None:
            # One load a view: an earlier one is over, and its row with it.
            settled = self._sql(
                "INSERT INTO {table} (view, load_id, rows_done, checked, broken) VALUES ($1, $2, $3, $4, $5)"
                " ON CONFLICT (view) DO UPDATE SET load_id = excluded.load_id, rows_done = excluded.rows_done,"
                " checked = excluded.checked, broken = excluded.broken",
                table=names.LOADS,
            )
            counts = (arrived.rows_done, arrived.checked, arrived.broken)
            connection.execute(settled, (ref, arrived.load_id, *counts))

    # ------------------------------------------------------------------ questions

    def point_in_time(self, join: PointInTimeJoin, spine: pa.Table, served: Stretch | None = None) -> pa.Table:
        """Answers to spine rows, in any order; by lookups, or over all rows where that is less work (decision 6)."""
        chosen = {name: arrow_type(join.view.fields[name].dtype) for name in join.fields}
        schema = pa.schema([(names.ROW, pa.int64()), (names.EVENT, TIMESTAMP), *chosen.items()])
        with self._transaction() as connection:
            self._require(connection, join.view)
            self._place(connection, join.view, names.SPINE, spine)
            if served is not None:
                # An index orders rows by time, not by publish: nothing to look up.
                self._place(connection, join.view, names.PUBLISHED_POSITIONS, served.positions)
                self._place(connection, join.view, names.PUBLISHED_HORIZONS, served.horizons)
                self._place(connection, join.view, names.PUSHED_ROWS, served.pushes)
            if served is not None or join.position <= spine.num_rows * HISTORY_ROWS_PER_ASK:
                return queried(connection, compile.point_in_time_join(join, POSTGRES), schema)
            with _by_lookups(connection):
                marked = schema.append(pa.field(names.FAR, pa.bool_()))
                looked_up = queried(connection, compile.nearest(join, POSTGRES), marked)
            far = looked_up.column(names.FAR)
            answers = looked_up.filter(pc.invert(far)).drop_columns([names.FAR])
            if answers.num_rows == looked_up.num_rows:
                return answers
            rest = pc.is_in(spine.column(names.ROW), looked_up.column(names.ROW).filter(far).combine_chunks())
            self._place(connection, join.view, names.SPINE, spine.filter(rest))
            more = queried(connection, compile.point_in_time_join(join, POSTGRES), schema)
        return pa.concat_tables([answers, more])

    def latest(self, query: LatestRows, batch_rows: int) -> RowStream:
        """The greatest qualifying row per entity, streamed over a connection of its own."""
        return self._streamed(query.view, compile.latest(query, POSTGRES), batch_rows)

    def rows_up_to(self, view: FeatureView, position: int, batch_rows: int) -> RowStream:
        """All history rows up to a position, streamed over a connection of its own."""
        return self._streamed(view, compile.rows_up_to(self._project, view, position, POSTGRES), batch_rows)

    def pending(self, query: LatestRows) -> Pending:
        """What qualifies, in numbers; times in microseconds."""
        schema = pa.schema([("rows", pa.int64()), ("newest", TIMESTAMP), ("oldest", TIMESTAMP)])
        with self._connections.lent() as connection:
            self._require(connection, query.view)
            table = queried(connection, compile.pending(query, POSTGRES), schema)
        newest, oldest = (table.column(at).cast(pa.int64())[0].as_py() for at in (1, 2))
        return Pending(rows=int(table.column(0)[0].as_py()), newest_us=newest, oldest_visible_us=oldest)

    def entities(self, query: LatestRows) -> pa.Table:
        """The distinct join keys of the qualifying rows."""
        keys = pa.schema([(name, arrow_type(dtype)) for name, dtype in query.view.join_keys.items()])
        return self.ask(query.view, lambda project, dialect: compile.entities(query, dialect), keys)

    def rows_of(self, view: FeatureView, sequences: pa.Array) -> pa.Table:
        """The history rows with the given sequences, in the columns of `latest`, in any order."""
        places = pa.table({names.SEQUENCE: sequences})
        return self.ask(view, partial(compile.rows_of, view=view), history_schema(view), places)

    def rows_at(self, view: FeatureView, places: pa.Table) -> pa.Table:
        """The history rows with the join keys and times of `places`, in the columns of `latest`, in any order."""
        return self.ask(view, partial(compile.rows_at, view=view), history_schema(view), places)

    def ask(
        self, view: FeatureView, question: Question, answer: pa.Schema, incoming: pa.Table | None = None
    ) -> pa.Table:
        """The answer to SQL about the view's history; see the protocol."""
        with self._transaction() as connection:
            self._require(connection, view)
            if incoming is not None:
                self._place(connection, view, names.INCOMING, incoming)
            return queried(connection, question(self._project, dialect=POSTGRES), answer)

    @contextmanager
    def _streamed(self, view: FeatureView, query: str, batch_rows: int) -> Iterator[pa.RecordBatchReader]:
        schema = history_schema(view)
        with self._connections.lent() as connection:
            self._require(connection, view)
            with sent_rows(connection, query, schema) as rows:
                yield pa.RecordBatchReader.from_batches(schema, batches(rows, schema, batch_rows))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._connections.lent() as connection, connection.transaction():
            yield connection

    def _sql(self, text: str, *, table: str, columns: Sequence[str] = (), **parts: sql.Literal) -> sql.Composed:
        """A statement on a table of the project."""
        listed = sql.SQL(", ").join(map(sql.Identifier, columns))
        return sql.SQL(text).format(table=sql.Identifier(self._project, table), columns=listed, **parts)

    def _place(self, connection: Connection, view: FeatureView, name: str, rows: pa.Table) -> None:
        """Rows into a temporary table that queries know by `name`, its columns typed as those of history."""
        columns = [
            sql.SQL("{} AS {}").format(sql.Identifier(_like(column)), sql.Identifier(column.name))
            for column in rows.schema
        ]
        connection.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.{}").format(sql.Identifier(name)))
        made = "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
        history = sql.Identifier(self._project, names.history_name(view.ref))
        connection.execute(sql.SQL(made).format(sql.Identifier(name), sql.SQL(", ").join(columns), history))
        copy_in(connection, name, rows)

    def _lock(self, connection: Connection, ref: str) -> None:
        """The lock of a view, or of the project's tables (""), until the transaction ends; StoreBusy names a holder."""
        digest = hashlib.blake2b(f"featurestore {self._project}/{ref}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "big", signed=True)
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock($1)", (key,))
        except errors.LockNotAvailable as error:
            holders = connection.execute(_HOLDERS, (key,)).fetchall()
            named = ", ".join(f"{name or 'a session'} (backend {pid})" for pid, name in holders) or "another session"
            raise StoreBusy(
                f"{ref or 'the tables of ' + self._project} in {self._address} is held by {named}; waited "
                f"{self._wait_s:g} s; let it finish, or raise offline.wait_s in featurestore.toml"
            ) from error

    def _last_position(self, connection: Connection, ref: str) -> int:
        if not self._has_table(connection, names.POSITIONS):
            return 0
        return int(_scalar(connection, self._sql(_LAST, table=names.POSITIONS), ref) or 0)

    def _has_table(self, connection: Connection, name: str) -> bool:
        return bool(_scalar(connection, _TABLE_EXISTS, self._project, name))

    def _columns(self, connection: Connection, ref: str) -> dict[str, tuple[str, str | None]]:
        """The columns of a history as (type, collation); empty when there is none."""
        rows = connection.execute(_COLUMNS, (self._project, names.history_name(ref))).fetchall()
        return {name: (kind, collation) for name, kind, collation in rows}

    def _require(self, connection: Connection, view: FeatureView) -> None:
        """NotFoundError when the view has no history; StoreError when somebody altered its table."""
        present = self._columns(connection, view.ref)
        if not present:
            known = connection.execute(_TABLES, (self._project,)).fetchall()
            raise NotFoundError("history", view.ref, ["@".join(row[0].rsplit("__v", 1)) for row in known], NO_HISTORY)
        for name, expected in _expected(view).items():
            if (found := present.get(name)) != expected:
                table = f"{self._project}.{names.history_name(view.ref)}"
                says = f"has no column {name}" if found is None else f"holds {name} as {_spoken(*found)}"
                raise StoreError(
                    f"table {table} in {self._address} {says}, featurestore made it {_spoken(*expected)}; undo what "
                    f"was altered by hand, restore the table, or declare a new version of {view.ref}"
                )


def _known_by_row(connection: Connection, rows: int) -> dict[str, Mask]:
    """Which incoming rows are duplicates and which corrections."""
    duplicate, correction = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
    for row, same in connection.execute("SELECT _row, _same FROM pg_temp._known").fetchall():
        (duplicate if same else correction)[row] = True
    return {"duplicate": duplicate, "correction": correction}


def _expected(view: FeatureView) -> Mapping[str, tuple[str, str | None]]:
    """What Postgres calls the types of a history's columns."""
    dtypes = {**view.join_keys, **history_table.SYSTEM_COLUMNS, **{field.name: field.dtype for field in view.schema}}
    return {
        name: (_catalog_name(POSTGRES.type_text(dtype)), POSTGRES.collation(dtype)) for name, dtype in dtypes.items()
    }


def _catalog_name(text: str) -> str:
    name = text.lower().replace("decimal", "numeric").replace(", ", ",")
    return name.replace("timestamptz", "timestamp with time zone")


def _spoken(kind: str, collation: str | None) -> str:
    return kind if collation is None else f'{kind} COLLATE "{collation}"'


def _numbered(rows: pa.Table) -> pa.Table:
    return rows.append_column(names.ROW, pa.array(np.arange(rows.num_rows, dtype=np.int64)))


#: Columns of relations that stand beside history, which has none of their name.
_BESIDE = (names.ROW, names.AS_OF, names.UP_TO, names.PUBLISH, names.FIRST, names.LAST, names.HORIZON)


def _like(column: pa.Field) -> str:
    """The column of history that has the type of a column beside it."""
    if column.name not in _BESIDE:
        return str(column.name)
    return names.EVENT if pa.types.is_timestamp(column.type) else names.SEQUENCE


@contextmanager
def _by_lookups(connection: Connection) -> Iterator[None]:
    """Plans of index lookups only. Statistics would choose to read all of history for a batch, again for each batch,
    and have nothing to say of temporary tables and before the first ANALYZE."""
    connection.execute(_PLANS, ("off",))
    yield
    connection.execute(_PLANS, ("on",))


def _scalar(connection: Connection, statement: str | sql.Composed, *parameters: object) -> Any:
    row = connection.execute(statement, parameters).fetchone()
    return row[0] if row else None


_PLANS = (
    "SELECT set_config(plan, $1, true)"
    " FROM unnest(ARRAY['enable_seqscan', 'enable_bitmapscan', 'enable_hashjoin', 'enable_mergejoin']) AS plan"
)
_LAST = "SELECT last FROM {table} WHERE view = $1"
_INDEXES = "SELECT indexname FROM pg_indexes WHERE schemaname = $1 AND tablename = $2"
_TABLE_EXISTS = "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = $2"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename NOT LIKE '\\_%'"
_COLUMNS = (
    "SELECT a.attname, format_type(a.atttypid, a.atttypmod), nullif(c.collname, 'default')"
    " FROM pg_attribute AS a LEFT JOIN pg_collation AS c ON c.oid = a.attcollation"
    " JOIN pg_class AS r ON r.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = r.relnamespace"
    " WHERE n.nspname = $1 AND r.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped"
)
#: An advisory lock of 64 bits is shown as two halves.
_HOLDERS = (
    "SELECT l.pid, a.application_name FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()"
    " AND (l.classid::bigint << 32 | l.objid::bigint) = $1"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_BOOK_KEEPING = (
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    'CREATE TABLE IF NOT EXISTS {schema}._positions (view text COLLATE "C" NOT NULL PRIMARY KEY, last bigint NOT NULL)',
    "CREATE TABLE IF NOT EXISTS {schema}._loads"
    ' (view text COLLATE "C" NOT NULL PRIMARY KEY, load_id text COLLATE "C" NOT NULL, rows_done bigint NOT NULL)',
)
