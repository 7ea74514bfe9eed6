"""The registry in a SQLite file: WAL, so that several processes share it, and what SQLite says in our words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, event, exc

from featurestore.errors import StoreBusy, StoreError, StoreFull
from featurestore.registry.database import WAIT_S, Database

RETRY_S = 0.02


def open_file(path: Path, wait_s: float = WAIT_S) -> Database:
    """Open the file, made and migrated when needed; StoreError when it is not ours to read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"registry {path}: its folder cannot be made ({error.strerror}); set another [registry] path"
        ) from error
    database = _File(path, wait_s)
    try:
        with database.read() as connection:
            database.revision(connection)  # another program's file is refused before anything of it changes
        database.use_wal()
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


class _File(Database):
    def __init__(self, path: Path, wait_s: float) -> None:
        self._path = path
        engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": wait_s})
        event.listen(engine, "connect", _prepare)
        super().__init__(engine, wait_s, begin_read="BEGIN", begin_write="BEGIN IMMEDIATE")

    def __str__(self) -> str:
        return str(self._path)

    @contextmanager
    def faults(self) -> Iterator[None]:
        try:
            yield
        except (exc.DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, exc.DBAPIError) else error
            raise _in_our_words(cause, self._path, self.wait_s) from error

    def foreign(self, tables: str) -> StoreError:
        return StoreError(
            f"registry {self} is an SQLite file of something else (it holds {tables}); set another [registry] path"
        )

    def use_wal(self) -> None:
        """WAL is a property of the file. SQLite does not wait by itself while others hold the file, so we do; where it
        cannot be, it goes on with another log and says so in its answer alone."""
        deadline = time.monotonic() + self.wait_s
        while True:
            with self.faults():
                raw = self._reader.raw_connection()
                try:
                    cursor = raw.cursor()
                    if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                        return
                    found = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                    if found != "wal":
                        raise StoreError(
                            f"registry {self}: SQLite keeps no write-ahead log there (but {found}), which processes "
                            "that share a registry need; set [registry] path to a file on a local disk"
                        )
                    return
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() > deadline:
                        raise
                finally:
                    raw.close()
            time.sleep(RETRY_S)


def _prepare(connection: sqlite3.Connection, entry: Any) -> None:
    del entry
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute("PRAGMA synchronous=FULL")


def _in_our_words(cause: BaseException | None, path: Path, wait_s: float) -> StoreError:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # extended codes keep the primary one in the low byte
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"registry {path}: another process has been writing for {wait_s:g} s; try again")
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"registry {path}: no space left on its disk; free some and try again")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(
            f"registry {path} is not a readable SQLite file ({cause}); restore it from a backup, or move it away "
            "and run `featurestore apply` to begin a new one"
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return StoreError(f"registry {path} cannot be opened for writing ({cause}); check the path and its permissions")
    return StoreError(f"registry {path}: {cause}; check the disk it lies on")


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
