"""The database of registry and job state: transactions and migrations. `sqlite.py` and `postgres.py` are its two kinds;
statements and migrations are the same on both.

Several processes share it: writers of a project take turns by a lock held from their first moment, readers see one
state and wait for nobody; every wait is bounded.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, column, event, exc, inspect, select, table
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import CreateSchema

from featurestore.clock import SystemClock, to_us
from featurestore.errors import StoreBusy, StoreError
from featurestore.registry.schema import REVISIONS

WAIT_S = 10.0


class Database(ABC):
    """One registry. `read()` and `write()` are transactions; safe across threads, processes and forks."""

    #: Where the tables lie; None: where the engine looks by itself.
    schema: str | None = None

    def __init__(self, engine: Engine, wait_s: float, *, begin_read: str, begin_write: str) -> None:
        """`begin_read` begins a transaction that sees one state, `begin_write` one that holds the writers' lock."""
        self.wait_s = wait_s
        self._closed = False
        _listen(engine)
        self._reader = engine.execution_options(begin=begin_read)
        self._writer = engine.execution_options(begin=begin_write)

    @abstractmethod
    def __str__(self) -> str:
        """Where it is, for messages."""

    @abstractmethod
    def faults(self) -> AbstractContextManager[None]:
        """Faults of the driver as StoreError, StoreBusy, StoreFull or StoreUnreachable, with the way out."""

    @abstractmethod
    def foreign(self, tables: str) -> StoreError:
        """What to say when the tables are not ours."""

    def now_us(self, connection: Connection) -> int:
        """The real time by which leases run out: that of a clock which all who share the database read."""
        del connection
        return to_us(SystemClock().now())

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state."""
        with self._transaction(self._reader) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its first moment; durable once it returns."""
        with self._transaction(self._writer) as connection:
            yield connection

    def close(self) -> None:
        """Close the pooled connections; those in use are closed once their transactions end."""
        self._closed = True
        self._reader.dispose()

    def migrate(self) -> None:
        """Make the tables, or bring them up to date; StoreError when they are not ours."""
        with self.read() as connection:
            if self.revision(connection) == REVISIONS[-1]:
                return
        with self.write() as connection:
            if self.revision(connection) != REVISIONS[-1]:  # another process may have been quicker
                # A schema that its administrator made needs no right to make it.
                if self.schema is not None and not inspect(connection).has_schema(self.schema):
                    connection.execute(CreateSchema(self.schema))
                upgrade(connection)

    def revision(self, connection: Connection) -> str | None:
        """The revision of the tables, None where there are none; StoreError when they are not ours to read."""
        tables = inspect(connection).get_table_names(schema=self.schema)
        if "alembic_version" not in tables:
            if tables:
                raise self.foreign(", ".join(sorted(tables)[:3]))
            return None
        version = table("alembic_version", column("version_num"), schema=self.schema)
        revision: str | None = connection.scalar(select(version.c.version_num))
        if revision is not None and revision not in REVISIONS:
            raise StoreError(
                f"registry {self} was written by a newer featurestore (its tables are at {revision}, this release "
                f"knows {REVISIONS[-1]}); upgrade featurestore"
            )
        return revision

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        with self.faults():
            try:
                connection = _begun(engine)
            except exc.TimeoutError as error:
                raise StoreBusy(
                    f"registry {self}: this process has had all its connections in use for {self.wait_s:g} s; try again"
                ) from error
            transaction = connection.get_transaction()
            assert transaction is not None
            with connection:
                try:
                    with transaction:
                        yield connection
                finally:
                    if self._closed and not connection.invalidated:
                        connection.detach()  # else a pool that nobody closes any more would keep it


def _begun(engine: Engine) -> Connection:
    """A connection in its transaction. One that was kept may have been cut since: then its BEGIN says so, nothing was
    done yet, and a new one is opened."""
    try:
        return _begin(engine)
    except exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
    return _begin(engine)


def _begin(engine: Engine) -> Connection:
    connection = engine.connect()
    try:
        connection.begin()
    except BaseException:
        connection.close()
        raise
    return connection


def _listen(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, entry: ConnectionPoolEntry) -> None:
        del connection
        entry.info["pid"] = os.getpid()

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, entry: Any, proxy: Any) -> None:
        # A connection must not cross a fork: the child lets go of it and opens its own.
        del connection
        if entry.info["pid"] != os.getpid():
            entry.dbapi_connection = proxy.dbapi_connection = None
            raise exc.DisconnectionError("opened by another process")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        statement: str | None = connection.get_execution_options().get("begin")
        if statement is not None:  # the dialect's own questions on the first connection need none
            connection.exec_driver_sql(statement)


# ------------------------------------------------------------------ migrations


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision` in the transaction of `connection`."""
    from alembic import command  # 0.2 s, and needed once in the life of a registry

    command.upgrade(migrations(connection), revision)


def migrations(connection: Connection | None = None) -> Any:
    """Alembic's configuration of our scripts."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
