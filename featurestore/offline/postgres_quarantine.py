"""The quarantine in the schema of a project, in the Postgres database of its history."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa
from psycopg import sql

from featurestore.compiler import names
from featurestore.offline import quarantine as shared
from featurestore.offline.postgres_connection import Connection
from featurestore.offline.postgres_copy import copy_in, queried
from featurestore.offline.quarantine import COUNTS_SCHEMA, QUARANTINE_SCHEMA, Chosen, full


class PostgresQuarantine:
    """Quarantined rows; `transaction` lends a connection for one, `lock` is the store's, of a view or of all tables."""

    def __init__(
        self,
        project: str,
        transaction: Callable[[], AbstractContextManager[Connection]],
        lock: Callable[[Connection, str], None],
        rows_max: int,
    ) -> None:
        self._project, self._transaction, self._lock, self._rows_max = project, transaction, lock, rows_max
        columns = sql.SQL(", ").join(map(sql.Identifier, QUARANTINE_SCHEMA.names))
        self._parts: dict[str, sql.Composable] = {
            "table": sql.Identifier(project, names.QUARANTINE),
            "loads": sql.Identifier(project, names.LOADS),
            "fresh": sql.SQL("pg_temp._refused"),
            "columns": columns,
            "text": sql.SQL('text COLLATE "C"'),
        }

    # ------------------------------------------------------------------ questions

    def rows(self, chosen: Chosen, *, limit: int | None = None, after: tuple[int, str] = (-1, "")) -> pa.Table:
        """Rows in the order of their arrival; see the protocol."""
        asked = {
            "after_sequence": after[0],
            "after_id": after[1],
            "limit": shared.LIMIT_MAX if limit is None else limit,
        }
        return self._table(self._sql(shared.ROWS, **chosen.document(), **asked), QUARANTINE_SCHEMA)

    def forms(self, chosen: Chosen) -> list[str]:
        """Each form that rows have, once, in the order of arrival."""
        found = self._table(self._sql(shared.FORMS, **chosen.document()), shared.FORMS_SCHEMA)
        return list(found.column(0).to_pylist())

    def counts(self, chosen: Chosen) -> pa.Table:
        """How many there are by view, rule, field and run."""
        return self._table(self._sql(shared.COUNTS, **chosen.document()), COUNTS_SCHEMA)

    def totals(self) -> dict[str, int]:
        """How many there are of each view that has any."""
        found = self._table(self._sql(shared.TOTALS), shared.TOTALS_SCHEMA)
        return dict(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def drop(self, chosen: Chosen) -> int:
        """Remove rows for good; returns how many."""
        self.ensure_grown()
        with self._transaction() as connection:
            if not self.is_grown(connection):
                return 0
            return connection.execute(self._sql(shared.DROP, **chosen.document())).rowcount

    def require_room(self, ref: str) -> None:
        """TooManyBreaches when the view has as many quarantined rows as may be kept."""
        with self._transaction() as connection:
            kept = self._count(connection, ref) if self.is_grown(connection) else 0
        if kept >= self._rows_max:
            raise full(ref, kept + 1, self._rows_max)

    # ------------------------------------------------------------------ the table

    def is_grown(self, connection: Connection) -> bool:
        """Whether the table, and that of loads, are there and as they are today."""
        found = connection.execute(_NEWEST, (self._project,)).fetchall()
        return {row[0] for row in found} == {names.QUARANTINE, names.LOADS}

    def ensure_grown(self) -> None:
        """Give the tables of an earlier release what they lack; does nothing where there are none."""
        with self._transaction() as connection:
            if self.is_grown(connection) or not connection.execute(_MADE, (self._project,)).fetchall():
                return
            self._lock(connection, "")
            self.grow(connection)

    def grow(self, connection: Connection) -> None:
        """Make the table, or give that of an earlier release, and the table of loads, what they lack."""
        connection.execute(self._sql(shared.CREATE))
        if not self.is_grown(connection):
            for statement in (*shared.GROW, *shared.GROW_LOADS):
                connection.execute(self._sql(statement))
        # Not left to IF NOT EXISTS alone, which waits for every writer before it looks.
        if not connection.execute(_INDEXED, (self._project,)).fetchall():
            connection.execute(self._sql(_INDEX))

    # ------------------------------------------------------------------ within the commit of a batch

    def set_aside(self, connection: Connection, ref: str, refused: pa.Table | None, *, spill: bool) -> None:
        """Keep refused rows; where there is no room, `spill` leaves out the last ones, else TooManyBreaches."""
        if refused is None or refused.num_rows == 0:
            return
        kept = self._count(connection, ref)
        room = max(0, self._rows_max - kept) if spill else shared.LIMIT_MAX
        connection.execute(self._sql("CREATE TEMPORARY TABLE _refused (LIKE {table}) ON COMMIT DROP"))
        copy_in(connection, "_refused", refused)
        connection.execute(self._sql(shared.JUDGE))
        kept += connection.execute(self._sql(shared.SET_ASIDE, room=room)).rowcount
        connection.execute("DROP TABLE pg_temp._refused")
        if kept > self._rows_max and not spill:
            raise full(ref, kept, self._rows_max)

    def release(self, connection: Connection, ref: str, ids: pa.Array) -> None:
        """Let go of rows that are history by the same commit."""
        if len(ids):
            connection.execute("CREATE TEMPORARY TABLE _refused (id text) ON COMMIT DROP")
            copy_in(connection, "_refused", pa.table({"id": ids}))
            connection.execute(self._sql(shared.RELEASE, view=ref))

    # ------------------------------------------------------------------ parts

    def _table(self, query: sql.Composed, schema: pa.Schema) -> pa.Table:
        self.ensure_grown()
        with self._transaction() as connection:
            return queried(connection, query, schema) if self.is_grown(connection) else schema.empty_table()

    def _count(self, connection: Connection, ref: str) -> int:
        row = connection.execute(self._sql(shared.COUNT, view=ref)).fetchone()
        return int(row[0]) if row else 0

    def _sql(self, text: str, **values: Any) -> sql.Composed:
        literals = {name: sql.Literal(value) for name, value in values.items()}
        return sql.SQL(text).format(**self._parts, **literals)


_INDEX = "CREATE INDEX IF NOT EXISTS _quarantine_arrival ON {table} (view, sequence, id)"
_INDEXED = "SELECT 1 FROM pg_indexes WHERE schemaname = $1 AND indexname = '_quarantine_arrival'"
_MADE = "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = '_quarantine'"
_NEWEST = (
    "SELECT r.relname FROM pg_attribute AS a JOIN pg_class AS r ON r.oid = a.attrelid"
    " JOIN pg_namespace AS n ON n.oid = r.relnamespace WHERE n.nspname = $1 AND NOT a.attisdropped"
    " AND (r.relname, a.attname) IN (('_quarantine', 'raw_form'), ('_loads', 'broken'))"
)
