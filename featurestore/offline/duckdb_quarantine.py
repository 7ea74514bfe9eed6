"""The quarantine in the DuckDB file of a project's history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import duckdb
import pyarrow as pa
from sqlglot import exp

from featurestore.compiler import names
from featurestore.offline import quarantine as shared
from featurestore.offline.duckdb_connection import registered, transaction
from featurestore.offline.quarantine import COUNTS_SCHEMA, QUARANTINE_SCHEMA, Chosen, full

Connection = duckdb.DuckDBPyConnection


class DuckDBQuarantine:
    """Quarantined rows; `reading` and `writing` open the file, `reading` gives None where there is none."""

    def __init__(
        self,
        project: str,
        reading: Callable[[], AbstractContextManager[Connection | None]],
        writing: Callable[[], AbstractContextManager[Connection]],
        rows_max: int,
    ) -> None:
        self._project, self._reading, self._writing, self._rows_max = project, reading, writing, rows_max
        schema, columns = _quoted(project), ", ".join(map(_quoted, QUARANTINE_SCHEMA.names))
        self._parts = {
            "table": f"{schema}.{names.QUARANTINE}",
            "loads": f"{schema}.{names.LOADS}",
            "fresh": names.INCOMING,
            "columns": columns,
            "text": "VARCHAR",
        }

    # ------------------------------------------------------------------ questions

    def rows(self, chosen: Chosen, *, limit: int | None = None, after: tuple[int, str] = (-1, "")) -> pa.Table:
        """Rows in the order of their arrival; see the protocol."""
        asked = {
            "after_sequence": after[0],
            "after_id": after[1],
            "limit": shared.LIMIT_MAX if limit is None else limit,
        }
        return self._table(shared.ROWS, chosen.document() | asked, QUARANTINE_SCHEMA)

    def forms(self, chosen: Chosen) -> list[str]:
        """Each form that rows have, once, in the order of arrival."""
        return list(self._table(shared.FORMS, chosen.document(), shared.FORMS_SCHEMA).column(0).to_pylist())

    def counts(self, chosen: Chosen) -> pa.Table:
        """How many there are by view, rule, field and run."""
        return self._table(shared.COUNTS, chosen.document(), COUNTS_SCHEMA)

    def totals(self) -> dict[str, int]:
        """How many there are of each view that has any."""
        found = self._table(shared.TOTALS, {}, shared.TOTALS_SCHEMA)
        return dict(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def drop(self, chosen: Chosen) -> int:
        """Remove rows for good; returns how many."""
        with self._ready() as there:
            if there is None:
                return 0
        with self._writing() as connection, transaction(connection):
            return self._changed(connection, shared.DROP, **chosen.document())

    def require_room(self, ref: str) -> None:
        """TooManyBreaches when the view has as many quarantined rows as may be kept."""
        with self._ready() as connection:
            kept = 0 if connection is None else self._count(connection, ref)
        if kept >= self._rows_max:
            raise full(ref, kept + 1, self._rows_max)

    # ------------------------------------------------------------------ within the commit of a batch

    def grow(self, connection: Connection) -> None:
        """Make the table, or give that of an earlier release, and the table of loads, what they lack."""
        connection.execute(shared.CREATE.format(**self._parts))
        if self._lacks(connection, names.QUARANTINE, "raw_form"):
            for statement in shared.GROW:
                connection.execute(statement.format(**self._parts))
        if self._lacks(connection, names.LOADS, "broken"):
            for statement in shared.GROW_LOADS:
                connection.execute(statement.format(**self._parts))

    def set_aside(self, connection: Connection, ref: str, refused: pa.Table | None, *, spill: bool) -> None:
        """Keep refused rows; where there is no room, `spill` leaves out the last ones, else TooManyBreaches."""
        if refused is None or refused.num_rows == 0:
            return
        kept = self._count(connection, ref)
        room = max(0, self._rows_max - kept) if spill else shared.LIMIT_MAX
        with registered(connection, names.INCOMING, refused):
            connection.execute(shared.JUDGE.format(**self._parts))
            kept += self._changed(connection, shared.SET_ASIDE, room=room)
        if kept > self._rows_max and not spill:
            raise full(ref, kept, self._rows_max)

    def release(self, connection: Connection, ref: str, ids: pa.Array) -> None:
        """Let go of rows that are history by the same commit."""
        if len(ids):
            with registered(connection, names.INCOMING, pa.table({"id": ids})):
                self._changed(connection, shared.RELEASE, view=ref)

    # ------------------------------------------------------------------ parts

    def _table(self, statement: str, values: dict[str, Any], schema: pa.Schema) -> pa.Table:
        with self._ready() as connection:
            if connection is None:
                return schema.empty_table()
            found = connection.sql(self._sql(statement, values), params=values).to_arrow_table()
            return found.rename_columns(schema.names).cast(schema)

    def _count(self, connection: Connection, ref: str) -> int:
        return self._changed(connection, shared.COUNT, view=ref)

    def _changed(self, connection: Connection, statement: str, **values: Any) -> int:
        """The one number that a statement answers with: rows it changed, or counted."""
        return int(connection.execute(self._sql(statement, values), values).fetchall()[0][0])

    def _sql(self, statement: str, values: dict[str, Any]) -> str:
        return statement.format(**self._parts, **{name: f"${name}" for name in values})

    @contextmanager
    def _ready(self) -> Iterator[Connection | None]:
        """The file, its table as it is today; None where there is no table."""
        with self._reading() as connection:
            if connection is None or not _columns(connection, self._project, names.QUARANTINE):
                yield None
                return
            if not self._lacks(connection, names.QUARANTINE, "raw_form"):
                yield connection
                return
        with self._writing() as connection, transaction(connection):
            self.grow(connection)
        with self._reading() as connection:
            yield connection

    def _lacks(self, connection: Connection, table: str, column: str) -> bool:
        return column not in _columns(connection, self._project, table)


def _columns(connection: Connection, project: str, table: str) -> list[str]:
    found = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE schema_name = ? AND table_name = ?", [project, table]
    )
    return [row[0] for row in found.fetchall()]


def _quoted(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql(dialect="duckdb")
