"""The SQLite file of registry and job state: connections, transactions, migrations, and faults in our words.

Several processes share the file: WAL, writers take the write lock at once (BEGIN IMMEDIATE), waiting is bounded.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import ConnectionPoolEntry

from featurestore.errors import StoreBusy, StoreError, StoreFull
from featurestore.registry.schema import REVISIONS

WAIT_S = 10.0
RETRY_S = 0.02


class Database:
    """One registry file. `read()` and `write()` are transactions; safe across threads, processes and forks."""

    def __init__(self, path: Path, engine: Engine, wait_s: float) -> None:
        self.path, self.wait_s = path, wait_s
        self._reader = engine
        self._writer = engine.execution_options(immediate=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the file."""
        with store_errors(self.path, self.wait_s), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its first moment; durable once it returns."""
        with store_errors(self.path, self.wait_s), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self._reader.dispose()


def open_database(path: Path, wait_s: float = WAIT_S) -> Database:
    """Open the file, made and migrated when needed; StoreError when it is not ours to read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"registry {path}: its folder cannot be made ({error.strerror}); set another [registry] path"
        ) from error
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": wait_s})
    _listen(engine)
    database = Database(path, engine, wait_s)
    try:
        with database.read() as connection:
            _revision(connection, path)  # another program's file is refused before anything of it changes
        _use_wal(database)
        _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _listen(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute("PRAGMA synchronous=FULL")
        entry.info["pid"] = os.getpid()

    @event.listens_for(engine, "checkout")
    def checkout(connection: sqlite3.Connection, entry: Any, proxy: Any) -> None:
        # An SQLite connection must not cross a fork: the child lets go of it and opens its own.
        if entry.info["pid"] != os.getpid():
            entry.dbapi_connection = proxy.dbapi_connection = None
            raise exc.DisconnectionError("opened by another process")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _use_wal(database: Database) -> None:
    """WAL is a property of the file. SQLite does not wait by itself while others hold the file, so we do."""
    deadline = time.monotonic() + database.wait_s
    while True:
        with store_errors(database.path, database.wait_s):
            raw = database._reader.raw_connection()
            try:
                cursor = raw.cursor()
                if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                    return
                if cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                    return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
            finally:
                raw.close()
        time.sleep(RETRY_S)


# ------------------------------------------------------------------ migrations


def _migrate(database: Database) -> None:
    with database.read() as connection:
        if _revision(connection, database.path) == REVISIONS[-1]:
            return
    with database.write() as connection:
        if _revision(connection, database.path) != REVISIONS[-1]:  # another process may have been quicker
            upgrade(connection)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision` in the transaction of `connection`."""
    from alembic import command  # 0.2 s, and needed once in the life of a file

    command.upgrade(migrations(connection), revision)


def migrations(connection: Connection | None = None) -> Any:
    """Alembic's configuration of our scripts."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection, path: Path) -> str | None:
    """The revision of the tables, None for a new file."""
    tables = {name for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in tables:
        if tables:
            raise StoreError(
                f"registry {path} is an SQLite file of something else (it holds {', '.join(sorted(tables)[:3])}); "
                "set another [registry] path"
            )
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if revision is not None and revision not in REVISIONS:
        raise StoreError(
            f"registry {path} was written by a newer featurestore (its tables are at {revision}, this release knows "
            f"{REVISIONS[-1]}); upgrade featurestore"
        )
    return revision


# ------------------------------------------------------------------ faults


@contextmanager
def store_errors(path: Path, wait_s: float) -> Iterator[None]:
    """Faults of SQLite as StoreError, StoreBusy or StoreFull, with the way out."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        raise _in_our_words(cause, path, wait_s) from error


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
