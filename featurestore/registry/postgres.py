"""The registry in Postgres, for several hosts: a schema of its own for each project, and turns by an advisory lock.

Connections and the words for what goes wrong are those of the offline store; leases run by the server's clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, create_engine, exc

from featurestore.errors import ConfigError, StoreError
from featurestore.offline.postgres_connection import Opener
from featurestore.offline.postgres_faults import translated
from featurestore.registry.database import WAIT_S, Database

#: Before the project's name; no project begins so, and none can take the schema of another.
SCHEMA_PREFIX = "_registry_"
#: Postgres cuts names at 63 bytes.
PROJECT_LENGTH_MAX = 63 - len(SCHEMA_PREFIX)
#: Every transaction is a few short statements: one that takes longer (beside its wait for the lock) hangs.
STATEMENT_S_MAX = 60
#: A writer that stands still (paused, or cut off) keeps all others waiting; then its transaction is taken back.
IDLE_IN_TRANSACTION_S_MAX = 10
#: Threads of one process that work on the registry at once.
CONNECTIONS_MAX = 20

_NOW_US = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


def open_server(url: str, password: str | None, project: str, wait_s: float = WAIT_S) -> Database:
    """Open the registry of a project, its schema made and migrated when needed; StoreError when it is not ours.

    `url` as libpq takes it, with or without a password.
    """
    database = _Schema(url, password, project, wait_s)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


class _Schema(Database):
    def __init__(self, url: str, password: str | None, project: str, wait_s: float) -> None:
        if len(project) > PROJECT_LENGTH_MAX:
            raise ConfigError(
                f"project {project!r} is too long for a registry in Postgres, which names a schema after it; "
                f"use at most {PROJECT_LENGTH_MAX} letters, or keep the registry in a file"
            )
        self.schema = SCHEMA_PREFIX + project
        opener = Opener(
            url,
            password,
            wait_s=wait_s,
            name=f"featurestore registry {project}",
            section="registry",
            schema=self.schema,
            settings={
                "search_path": f'"{self.schema}"',
                "statement_timeout": f"{STATEMENT_S_MAX + round(wait_s)}s",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S_MAX}s",
            },
        )
        self._address = opener.address
        engine = create_engine(
            "postgresql+psycopg://",
            creator=opener.open,
            use_native_hstore=False,
            pool_size=2,
            max_overflow=CONNECTIONS_MAX - 2,
            pool_timeout=wait_s,
        )
        # Read committed: what is read after the lock is what the last writer left.
        super().__init__(
            engine,
            wait_s,
            begin_read="BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            begin_write=f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({_lock(self.schema)})",
        )

    def __str__(self) -> str:
        return f"{self._address}, schema {self.schema}"

    @contextmanager
    def faults(self) -> Iterator[None]:
        with translated(self._address, wait_s=self.wait_s):
            try:
                yield
            except exc.DBAPIError as error:
                raise error.orig or error from error

    def foreign(self, tables: str) -> StoreError:
        return StoreError(
            f"registry {self} is a schema of something else (it holds {tables}); rename it, or set another registry.url"
        )

    def now_us(self, connection: Connection) -> int:
        now_us: int = connection.exec_driver_sql(_NOW_US).scalar_one()
        return now_us


def _lock(schema: str) -> int:
    """The advisory lock of a project's writers; those of the offline store are named otherwise."""
    digest = hashlib.blake2b(f"featurestore registry {schema}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
