"""The inbox: pushed rows, durable in SQLite, until the next holder of the DuckDB file takes them into history.

DuckDB lets one process in, and a push cannot wait for it. With the SQLite online store the inbox lies in its file, so a
row comes into both by one transaction. The inbox also remembers the digests of the rows it took last, and of rows that
history corrected: a row sent again is known by them, long after it has left.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.arrow_types import arrow_type
from featurestore.compiler.names import SEQUENCE
from featurestore.feature_view import FeatureView
from featurestore.ingest.row_digests import DIGEST_BYTES, Digests, place_digests, value_digests
from featurestore.offline.base import Mask
from featurestore.online.sqlite import SqliteOnlineStore

_T = TypeVar("_T")

#: Rows of a view that are known after they have become history, some 80 bytes each.
KNOWN_MAX = 1_000_000

_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS inbox_batch (
        view TEXT NOT NULL, sequence_from INTEGER NOT NULL, rows BLOB NOT NULL, refused BLOB,
        PRIMARY KEY (view, sequence_from)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS inbox_known (
        view TEXT NOT NULL, place BLOB NOT NULL, said BLOB NOT NULL, number INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (view, place, said)
    ) WITHOUT ROWID
    """,
)
#: Files of the first release have no numbers: their rows are the oldest.
_NUMBERED = "SELECT 1 FROM pragma_table_info('inbox_known') WHERE name = 'number'"
_ADD_NUMBER = "ALTER TABLE inbox_known ADD COLUMN number INTEGER NOT NULL DEFAULT 0"
_INDEX = "CREATE INDEX IF NOT EXISTS inbox_known_by_number ON inbox_known (view, number)"
_IS_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'inbox_batch'"
_PUT = "INSERT INTO inbox_batch (view, sequence_from, rows, refused) VALUES (:view, :first, :rows, :refused)"
_BATCHES = """
SELECT sequence_from, rows, refused FROM inbox_batch WHERE view = :view ORDER BY sequence_from LIMIT :count
"""
_WAITING = "SELECT count(*) FROM inbox_batch WHERE view = :view"
_REMOVE = """
DELETE FROM inbox_batch WHERE view = :view AND sequence_from IN (SELECT value FROM json_each(:numbers))
"""
# `:places` and `:said` hold digests one after the other, `:numbers` is the list 0, 1, ...
_KNOWN = """
SELECT asked.value, known.said FROM json_each(:numbers) AS asked
CROSS JOIN inbox_known AS known ON known.view = :view AND known.place = substr(:places, 1 + 16 * asked.value, 16)
"""
_REMEMBER = """
INSERT INTO inbox_known (view, place, said, number)
SELECT :view, substr(:places, 1 + 16 * asked.value, 16), substr(:said, 1 + 16 * asked.value, 16),
    1 + asked.value + :last
FROM json_each(:numbers) AS asked WHERE true ON CONFLICT DO NOTHING
"""
_LAST = "SELECT coalesce(max(number), 0) FROM inbox_known WHERE view = :view"
# A row that waits must stay known: sent again, it would wait twice, and come into history twice.
_TRIM = """
DELETE FROM inbox_known WHERE view = :view AND number <= :last - :most
AND NOT EXISTS (SELECT 1 FROM inbox_batch WHERE view = :view)
"""
_FORGET = ("DELETE FROM inbox_batch WHERE view = :view", "DELETE FROM inbox_known WHERE view = :view")


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxBatch:
    """What one push left: rows with their `_sequence`, and what goes into quarantine."""

    first: int
    rows: pa.Table
    refused: pa.Table | None


class Inbox:
    """The inbox of one project, in a SQLite file; used by many threads and processes at once."""

    def __init__(self, file: SqliteOnlineStore, project: str) -> None:
        self.file, self._project = file, project
        self._made = False

    @contextmanager
    def transaction(self) -> Iterator[InboxTransaction]:
        """All or nothing, and nobody else writes meanwhile; on disk once it is left."""
        with self.file.transaction() as connection:
            if not self._made:
                for statement in _TABLES:
                    connection.execute(statement)
                if connection.execute(_NUMBERED).fetchone() is None:
                    connection.execute(_ADD_NUMBER)
                connection.execute(_INDEX)
            yield InboxTransaction(connection, self._project)
        self._made = True

    def waiting(self, ref: str) -> int:
        """How many batches of a view wait to become history."""
        return self._read(lambda connection: int(connection.execute(_WAITING, self._of(ref)).fetchone()[0])) or 0

    def batches(self, ref: str, count: int) -> list[InboxBatch]:
        """The first batches of a view that wait, by sequence."""
        asked = self._of(ref) | {"count": count}
        found = self._read(lambda connection: connection.execute(_BATCHES, asked).fetchall()) or []
        return [
            InboxBatch(first=first, rows=_table(rows), refused=None if refused is None else _table(refused))
            for first, rows, refused in found
        ]

    def rows_of(self, view: FeatureView, sequences: pa.Array) -> pa.Table | None:
        """The waiting rows with the given sequences; None when nothing waits."""
        waiting = self.batches(view.ref, -1)
        if not waiting:
            return None
        rows = whole_rows(view, [batch.rows for batch in waiting])
        return rows.filter(pc.is_in(rows.column(SEQUENCE), sequences))

    def remove(self, ref: str, batches: Sequence[InboxBatch]) -> None:
        """Drop batches that are history now; their rows stay known, the last KNOWN_MAX of the view at least."""
        with self.transaction() as inside:
            inside.connection.execute(_REMOVE, self._of(ref) | {"numbers": str([batch.first for batch in batches])})
            last = inside.connection.execute(_LAST, self._of(ref)).fetchone()[0]
            inside.connection.execute(_TRIM, self._of(ref) | {"last": last, "most": KNOWN_MAX})

    def remember(self, view: FeatureView, rows: pa.Table) -> None:
        """Know rows of history, so that they are duplicates when they are pushed."""
        with self.transaction() as inside:
            inside.remember(view.ref, place_digests(view, rows), value_digests(view, rows))

    def forget(self, ref: str) -> None:
        """Drop everything of a view whose history goes."""
        if self._read(lambda connection: True) is None:
            return
        with self.transaction() as inside:
            for statement in _FORGET:
                inside.connection.execute(statement, self._of(ref))

    def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """What `work` finds; None where no inbox was ever made in the file."""
        with self.file.reading() as connection:
            if not self._made and connection.execute(_IS_THERE).fetchone() is None:
                return None
            return work(connection)

    def _of(self, ref: str) -> dict[str, object]:
        return {"view": f"{self._project}/{ref}"}


class InboxTransaction:
    """Statements of one transaction on the inbox."""

    def __init__(self, connection: sqlite3.Connection, project: str) -> None:
        self.connection, self._project = connection, project

    def known(self, ref: str, places: Digests, said: Digests) -> tuple[Mask, Mask]:
        """Per row: whether this very row is known, and whether any is at its place."""
        same, met = np.zeros(len(places), dtype=bool), np.zeros(len(places), dtype=bool)
        found = self.connection.execute(_KNOWN, self._digests(ref, places)).fetchall()
        if found:
            numbers, digests = zip(*found, strict=True)
            rows = np.array(numbers, dtype=np.int64)
            words = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
            met[rows] = True
            same[rows[(words == said[rows]).all(axis=1)]] = True
        return same, met

    def remember(self, ref: str, places: Digests, said: Digests) -> None:
        """Know rows from now on."""
        asked = self._digests(ref, places)
        last = self.connection.execute(_LAST, {"view": asked["view"]}).fetchone()[0]
        self.connection.execute(_REMEMBER, asked | {"said": said.tobytes(), "last": last})

    def put(self, ref: str, first: int, rows: pa.Table, refused: pa.Table | None) -> None:
        """Leave a batch for history."""
        batch = {"rows": _stream(rows), "refused": None if refused is None else _stream(refused)}
        self.connection.execute(_PUT, {"view": f"{self._project}/{ref}", "first": first, **batch})

    def _digests(self, ref: str, places: Digests) -> dict[str, object]:
        assert places.shape[1] * places.itemsize == DIGEST_BYTES
        numbers = str(list(range(len(places))))
        return {"view": f"{self._project}/{ref}", "places": places.tobytes(), "numbers": numbers}


def whole_rows(view: FeatureView, tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several batches with every field that the view has today: those added since hold their defaults."""
    whole = []
    for table in tables:
        for field in view.schema:
            if field.name not in table.column_names:
                default = pa.scalar(field.default, arrow_type(field.dtype))
                table = table.append_column(field.name, pa.repeat(default, table.num_rows))
        whole.append(
            table.select([*(name for name in tables[0].column_names if name not in view.fields), *view.fields])
        )
    return pa.concat_tables(whole)


def _stream(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _table(stream: bytes) -> pa.Table:
    return pa.ipc.open_stream(stream).read_all()
