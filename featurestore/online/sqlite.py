"""The embedded online store: one SQLite file that several processes read and write at once (WAL).

Rows are stored under (view, bucket + key), so a publish in bucket order walks the table from front to back (3 to 5
times as fast as a shuffled one at a million rows), and `scan` returns that order. The compare-and-set is the database's
own. A batch goes in as one statement: SQLite cuts the rows out of one buffer.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.errors import StoreBusy, StoreError, StoreFull, StoreUnreachable
from featurestore.online import packing
from featurestore.online import sqlite_statements as sql
from featurestore.online.base import ALL_BUCKETS
from featurestore.online.keys import KEY_BYTES_MAX, bucket_of
from featurestore.online.row_layout import ORDER_KEY_BYTES
from featurestore.online.sqlite_reader import SqliteReader

FORMAT_VERSION = 1
#: "fson" in the file's header: another program's database is never written to.
APPLICATION_ID = 0x66736F6E
#: A page holds some 30 rows of 50 float32, and rows of up to 2 kB need no overflow page.
PAGE_BYTES = 8192
#: Page cache of each connection.
CACHE_KIB = 65_536
#: Pages that are read without a system call and shared between connections; beyond it, and in the log, they are not.
MMAP_BYTES = 256 << 20
#: The log is folded into the file at 32 MiB: pages that change twice meanwhile are copied once.
WAL_PAGES = 4096
#: Rows removed by one transaction of `drop`: others wait for it some tens of milliseconds.
DROP_ROWS_MAX = 10_000
BUSY_TIMEOUT_S = 10.0
#: It has json_each as a matter of course, and RETURNING.
SQLITE_VERSION_MIN = (3, 38, 0)

_BUCKET_BYTES = 2
_ROW_MASK = (1 << sql.ROW_BITS) - 1
_RECORDS_BYTES_MAX = (1 << sql.START_BITS) - 1
assert _BUCKET_BYTES + KEY_BYTES_MAX < 1 << sql.KEY_BITS


class SqliteOnlineStore:
    """Online rows of one project in a SQLite file, created when missing; used by many threads and processes at once.

    Every commit is on disk before the call returns. Waits at most `busy_timeout_s` for another writer, then
    StoreBusy. Open it after forking, never before: SQLite connections do not survive a fork.
    """

    def __init__(self, path: Path | str, project: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
            needed = ".".join(map(str, SQLITE_VERSION_MIN))
            raise StoreError(
                f"the online store needs SQLite {needed} or newer, this Python has {sqlite3.sqlite_version}"
            )
        self._path = Path(path)
        self._project = project
        self._busy_timeout_s = busy_timeout_s
        self._view_ids: dict[str, int] = {}
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        with self._connection():
            pass  # an unusable file is found here, not at the first row

    def write(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """Keep each row that is later than the stored one, in one transaction; returns how many were written."""
        assert int(np.diff(packing.byte_offsets(rows)).min(initial=ORDER_KEY_BYTES)) >= ORDER_KEY_BYTES
        return self._change(ref, sql.WRITE, keys, rows)

    def overwrite(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """For repair: store the rows whatever is stored, in one transaction; returns how many differed."""
        return self._change(ref, sql.OVERWRITE, keys, rows)

    def delete(self, ref: str, keys: pa.BinaryArray) -> int:
        """For repair: remove rows, in one transaction; returns how many there were."""
        return self._change(ref, sql.DELETE, keys)

    def read(self, ref: str, keys: pa.BinaryArray) -> pa.BinaryArray:
        """The row of each key, aligned with `keys`; null where the key is null or nothing is stored."""
        with self._connection() as connection:
            view = self._view_id(connection, ref)
            if view is None or len(keys) == 0:
                return pa.nulls(len(keys), pa.binary())
            found: list[bytes | None] = []
            for records in _records(keys):
                found.extend(map(itemgetter(0), connection.execute(sql.READ, records.parameters(view))))
        return pa.array(found, pa.binary())

    def scan(
        self, ref: str, batch_rows: int, buckets: range = ALL_BUCKETS
    ) -> Iterator[tuple[pa.BinaryArray, pa.BinaryArray]]:
        """All (keys, rows) by bucket, then by key; each batch is its own short read, so writers never wait for it."""
        end = buckets.stop.to_bytes(_BUCKET_BYTES, "big")
        after: bytes | None = buckets.start.to_bytes(_BUCKET_BYTES, "big")
        count = batch_rows
        while after is not None:
            with self._connection() as connection:
                view = self._view_id(connection, ref)
                try:
                    asked = {"view": view, "after": after, "end": end, "count": count}
                    after, sizes, data = connection.execute(sql.SCAN, asked).fetchone()
                except sqlite3.DataError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_TOOBIG or count == 1:
                        raise
                    count //= 2
                    continue
            if sizes is not None:
                yield _scanned(sizes, data)

    def count(self, ref: str) -> int:
        """How many rows are stored."""
        with self._connection() as connection:
            return _number(connection.execute(sql.COUNT, {"view": self._view_id(connection, ref)}))

    def tokens(self, ref: str, buckets: NDArray[np.uint16]) -> NDArray[np.int64]:
        """The token of each bucket, aligned with `buckets`; it grows with every change of a row there, 0 before."""
        with self._connection() as connection:
            asked = {"view": self._view_id(connection, ref), "buckets": str(buckets.tolist())}
            tokens = map(itemgetter(0), connection.execute(sql.READ_TOKENS, asked))
            return np.fromiter(tokens, dtype=np.int64, count=len(buckets))

    def drop(self, ref: str) -> int:
        """Remove every row of the view, in transactions of `DROP_ROWS_MAX` rows; returns how many there were."""
        dropped = 0
        while count := self._transaction(ref, _drop_first):
            dropped += count
        return dropped

    def evictions(self) -> int:
        """0: SQLite keeps every row."""
        return 0

    def reader(self, timeout_s: float) -> SqliteReader:
        """Reads from an event loop, over connections of its own; a locked file is waited for so long."""
        return SqliteReader(partial(SqliteOnlineStore, self._path, self._project, busy_timeout_s=0), timeout_s)

    def close(self) -> None:
        """Close every connection; no other call may be under way."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _change(self, ref: str, statement: str, keys: pa.BinaryArray, rows: pa.BinaryArray | None = None) -> int:
        """Run `statement` over all records in one transaction, and raise the tokens of the buckets that changed."""
        assert keys.null_count == 0, "a null key is never stored"
        assert rows is None or (len(rows) == len(keys) and rows.null_count == 0)
        if len(keys) == 0:
            return 0

        def change(connection: sqlite3.Connection, view: int) -> int:
            return sum(_change_records(connection, view, statement, records) for records in _records(keys, rows))

        return self._transaction(ref, change)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction for statements of one's own and `write_within`; it has the write lock from its start."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements of one's own that only read."""
        with self._connection() as connection:
            yield connection

    def write_within(self, connection: sqlite3.Connection, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """`write` as a part of a `transaction`."""
        view = self._added_view(connection, ref)
        return sum(_change_records(connection, view, sql.WRITE, records) for records in _records(keys, rows))

    def _transaction(self, ref: str, work: Callable[[sqlite3.Connection, int], int]) -> int:
        """`work(connection, view id)` in one transaction that has the write lock from its start."""
        with self.transaction() as connection:
            return work(connection, self._added_view(connection, ref))

    def _added_view(self, connection: sqlite3.Connection, ref: str) -> int:
        connection.execute(sql.ADD_VIEW, {"project": self._project, "ref": ref})
        view = self._view_id(connection, ref)
        assert view is not None
        return view

    def _view_id(self, connection: sqlite3.Connection, ref: str) -> int | None:
        """The number of a view in this file, None before its first row; a number stays a view's for ever."""
        view = self._view_ids.get(ref)
        if view is None:
            row = connection.execute(sql.VIEW_ID, {"project": self._project, "ref": ref}).fetchone()
            view = row[0] if row else None
            if view is not None and not connection.in_transaction:  # inside, it may be rolled back and given away
                self._view_ids[ref] = view
        return view

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own for a while; what SQLite raises comes out as our errors, nothing half done."""
        connection: sqlite3.Connection | None = None
        try:
            connection = self._taken() or self._connected()
            yield connection
        except sqlite3.Error as error:
            raise _store_error(self._path, error, self._busy_timeout_s) from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _taken(self) -> sqlite3.Connection | None:
        with self._lock:
            assert not self._closed, "the store is closed"
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.rollback()
        except sqlite3.Error:
            connection.close()  # which rolls back too; the error that led here is already on its way
            return
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make an empty file ours, refuse everybody else's."""
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES:d}")  # only an empty file listens
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB:d}")
        connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES:d}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES:d}")
        # FULL: a publish state or the answer to a push may say that a row is stored only when it is on disk.
        connection.execute("PRAGMA synchronous = FULL")
        if _number(connection.execute("PRAGMA application_id")) != APPLICATION_ID:
            self._create(connection)
        version = _number(connection.execute("PRAGMA user_version"))
        if version != FORMAT_VERSION:
            raise StoreError(
                f"online store {self._path}: format {version}, this featurestore knows {FORMAT_VERSION}; "
                "upgrade featurestore, or move the file away and publish again with --repair"
            )
        self._keep_log(connection)

    def _keep_log(self, connection: sqlite3.Connection) -> None:
        """Switch a new file to WAL; when several processes try at once SQLite refuses some without waiting."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if _number(connection.execute("PRAGMA application_id")) != APPLICATION_ID:  # else somebody was faster
            if _number(connection.execute("SELECT count(*) FROM sqlite_schema")):
                raise StoreError(
                    f"online store {self._path}: this is another program's SQLite database; "
                    "name a file of its own for the online store in featurestore.toml"
                )
            for statement in sql.SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION:d}")
        connection.execute("COMMIT")


@dataclass(frozen=True, slots=True)
class _Records:
    """A batch as the statements take it (see `sqlite_statements`)."""

    data: NDArray[np.uint8]
    places: str
    buckets: NDArray[np.uint16]

    def parameters(self, view: int) -> dict[str, object]:
        """What a statement over these records is given."""
        return {"view": view, "data": self.data, "places": self.places}


def _scanned(sizes: str, data: bytes) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """(keys, rows) of records (bucket, key, row) one after the other."""
    places = np.fromstring(sizes, dtype=np.int64, sep=",")
    edges = np.zeros((len(places), 3), dtype=np.int64)
    edges[:, 1] = places >> sql.ROW_BITS
    edges[:, 0] = np.minimum(edges[:, 1], _BUCKET_BYTES)  # a key that is shorter is not ours
    edges[:, 2] = edges[:, 1] + (places & _ROW_MASK)
    edges[1:] += np.cumsum(edges[:-1, 2])[:, None]
    ends = np.append(0, edges.ravel()).astype(np.int32)
    pieces = packing.from_offsets(ends, pa.py_buffer(data))
    first = np.arange(0, len(pieces), 3)
    return pieces.take(pa.array(first + 1)), pieces.take(pa.array(first + 2))


def _records(keys: pa.BinaryArray, rows: pa.BinaryArray | None = None) -> Iterator[_Records]:
    """The batch, in pieces of 64 MiB: rows to be written in the order of the table, keys to be read as they come."""
    buckets = bucket_of(keys)
    prefix = packing.from_matrix(buckets.astype(">u2").view(np.uint8).reshape(-1, _BUCKET_BYTES))
    records = packing.join([prefix, keys] if rows is None else [prefix, keys, rows])
    order = None if rows is None else pc.array_sort_indices(packing.join([prefix, keys])).to_numpy().astype(np.int64)
    offsets = packing.byte_offsets(records).astype(np.int64)
    key_offsets = packing.byte_offsets(keys)
    key_bytes = (key_offsets[1:] - key_offsets[:-1] + _BUCKET_BYTES).astype(np.int64)
    if keys.null_count:
        key_bytes[packing.null_mask(keys)] = 0  # no key is empty, so none is found
    row_bytes = offsets[1:] - offsets[:-1] - key_bytes
    for first, last in _pieces(offsets):
        starts = offsets[first:last] - offsets[first]
        places = starts << (sql.KEY_BITS + sql.ROW_BITS) | key_bytes[first:last] << sql.ROW_BITS | row_bytes[first:last]
        if order is not None:
            places = places[order[(first <= order) & (order < last)] - first]
        data = packing.data_bytes(records)[offsets[first] : offsets[last]]
        yield _Records(data, str(places.tolist()), buckets[first:last])


def _pieces(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where to cut records so that each piece has at most `_RECORDS_BYTES_MAX`; StoreError when one is larger."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + _RECORDS_BYTES_MAX, side="right")) - 1
        if last == first:
            size = int(offsets[first + 1] - offsets[first])
            raise StoreError(
                f"an online row takes {size:,} bytes, at most {_RECORDS_BYTES_MAX:,} fit; use shorter values"
            )
        yield first, last
        first = last


def _change_records(connection: sqlite3.Connection, view: int, statement: str, records: _Records) -> int:
    """How many records changed something; the tokens of their buckets are raised."""
    parameters = records.parameters(view)
    connection.execute("SAVEPOINT records")
    before = connection.total_changes
    connection.execute(statement, parameters)
    changed = connection.total_changes - before
    if changed == len(records.buckets):
        _raise_tokens(connection, view, np.unique(records.buckets).tolist())
    elif changed:
        # Only RETURNING tells which records changed something, at twice the cost: asked for when not all did.
        connection.execute("ROLLBACK TO records")
        _raise_tokens(connection, view, _buckets(connection.execute(statement + sql.RETURNING_BUCKETS, parameters)))
    connection.execute("RELEASE records")
    return changed


def _drop_first(connection: sqlite3.Connection, view: int) -> int:
    keys = connection.execute(sql.FIRST_KEYS, {"view": view, "count": DROP_ROWS_MAX}).fetchall()
    if keys:
        connection.execute(sql.DELETE_UP_TO, {"view": view, "last": keys[-1][0]})
        _raise_tokens(connection, view, _buckets(keys))
    return len(keys)


def _buckets(keys: Iterable[tuple[bytes]]) -> list[int]:
    """The distinct buckets of stored keys, which begin with them."""
    return sorted({int.from_bytes(bucket, "big") for bucket in {key[:_BUCKET_BYTES] for (key,) in keys}})


def _raise_tokens(connection: sqlite3.Connection, view: int, buckets: list[int]) -> None:
    connection.execute(sql.RAISE_TOKENS, {"view": view, "buckets": str(buckets)})


def _number(cursor: sqlite3.Cursor) -> int:
    return int(cursor.fetchone()[0])


#: How SQLite reports a disk or a quota that ends in the middle of a write.
_CANNOT_GROW = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
)


def _store_error(path: Path, error: sqlite3.Error, busy_timeout_s: float) -> StoreError:
    where = f"online store {path}"
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _CANNOT_GROW:
        return StoreFull(f"{where}: no space left to write ({error}); free some disk space and run this again")
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(
                f"{where}: another process has been writing for {busy_timeout_s:g} s; try again when it is done"
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return StoreError(
                f"{where}: not a SQLite database, or a damaged one ({error}); move the file away and publish again "
                "with --repair: all of it comes from history"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_IOERR:
            return StoreUnreachable(
                f"{where}: cannot be opened, read or written ({error}); check that its folder exists and who may write"
            )
        case _:
            return StoreError(f"{where}: {error}")
