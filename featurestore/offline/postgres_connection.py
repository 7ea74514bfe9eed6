"""Connections to Postgres: `Opener` opens one, bounded in every wait; `Connections` are those of the offline store.

They are opened when needed and checked before use. A connection is lent to one operation at a time and kept for the
next one; side by side operations (threads, or a question asked while rows are streamed) get one each.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from featurestore.errors import ConfigError, StoreError
from featurestore.offline.postgres_faults import Address, connect_fault, translated

VERSION_MIN = 14
#: Longest run of one statement: one that takes longer has a plan gone wrong, and holds locks meanwhile.
STATEMENT_S_MAX = 3600
#: A writer that stands still inside a transaction (paused, or cut off) is ended, so that it holds no lock for ever.
IDLE_IN_TRANSACTION_S_MAX = 60
#: Sorts and hash tables of one statement, each.
WORK_MEM = "64MB"
RETRY_S = 0.1

Connection = psycopg.Connection[tuple[Any, ...]]


class Connections:
    """The connections of one store; `url` as libpq takes it, with or without a password."""

    def __init__(self, url: str, password: str | None, *, wait_s: float, name: str) -> None:
        settings = {
            "search_path": "",
            "work_mem": WORK_MEM,
            "statement_timeout": f"{STATEMENT_S_MAX}s",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S_MAX}s",
        }
        options = {"cursor_factory": psycopg.RawCursor}
        self._opener = Opener(
            url, password, wait_s=wait_s, name=name, section="offline", settings=settings, options=options
        )
        self._wait_s = wait_s
        self._idle: list[Connection] = []
        self._guard = threading.Lock()
        self.address = self._opener.address

    @contextmanager
    def lent(self) -> Iterator[Connection]:
        """A connection that works, for the block; outside of a transaction."""
        with translated(self.address, wait_s=self._wait_s):
            connection = self._take()
            try:
                yield connection
            except BaseException:
                # Whatever state it was left in, the next operation begins with another one.
                connection.close()
                raise
            if connection.info.transaction_status == TransactionStatus.IDLE:
                with self._guard:
                    self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close what is kept."""
        with self._guard:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> Connection:
        while True:
            with self._guard:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._opener.open()
            # The server may have been restarted since.
            with suppress(psycopg.OperationalError):
                self._opener.check(connection)
                return connection
            connection.close()


class Opener:
    """Opens connections of one database, outside of a transaction. `section` is that of the settings which names it;
    `settings` are those of its sessions beside what all have, `options` those of the driver."""

    def __init__(
        self,
        url: str,
        password: str | None,
        *,
        wait_s: float,
        name: str,
        section: str,
        schema: str = "",
        settings: Mapping[str, str],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._parameters = _parameters(url, section)
        if password is not None:
            self._parameters["password"] = password
        self._wait_s, self._name = wait_s, name
        self._settings, self._options = settings, options or {}
        self.address = Address.of(self._parameters, section, schema)

    def open(self) -> Connection:
        """A new connection; a server that is starting up is waited for, within bounds."""
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                connection: Connection = psycopg.connect(**self._connect_parameters())
            except psycopg.OperationalError as error:
                fault, passing = connect_fault(error, self.address)
                if not passing or time.monotonic() >= deadline:
                    raise fault from error
            else:
                try:
                    self._prepare(connection)
                except BaseException:
                    connection.close()
                    raise
                return connection
            time.sleep(RETRY_S)

    def check(self, connection: Connection) -> None:
        """Raises OperationalError for a connection that is lost, StoreError for one whose session is another."""
        found = connection.execute(_MARKED).fetchone()
        if found is None or found[0] != self._name:
            connection.close()
            raise StoreError(
                f"{self.address} goes through a pooler that pools transactions, and loses what a session has set; "
                f"let it pool sessions, or point {self.address.section}.url past it (docs/commands.md)"
            )

    def _connect_parameters(self) -> dict[str, Any]:
        defaults = {
            "connect_timeout": max(2, round(self._wait_s)),
            # Seen in pg_stat_activity, and in our own messages about who holds a lock.
            "application_name": f"{self._name} (process {os.getpid()} on {socket.gethostname()})"[:63],
            # A peer that is gone without a word is noticed within a minute.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 6,
            "tcp_user_timeout": 60_000,
        }
        own = {"autocommit": True, "prepare_threshold": None}
        return {**defaults, **self._parameters, **self._options, **own}

    def _prepare(self, connection: Connection) -> None:
        version = connection.info.server_version // 10_000
        if version < VERSION_MIN:
            raise StoreError(f"{self.address} is Postgres {version}; {VERSION_MIN} or newer is needed, upgrade it")
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                f"{self.address} is encoded in {encoding}, which cannot hold every string; make one with "
                f"CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )
        if connection.info.parameter_status("in_hot_standby") == "on":
            raise StoreError(
                f"{self.address} is a standby and cannot be written; point {self.address.section}.url at the primary"
            )
        settings = {
            "client_encoding": "UTF8",
            "timezone": "UTC",
            # Plans here are made of short lookups; compiling them takes longer than running them.
            "jit": "off",
            "lock_timeout": f"{max(1, round(self._wait_s * 1000))}ms",
            _MARK: self._name,
            **self._settings,
        }
        names, values = list(settings), list(settings.values())
        psycopg.RawCursor(connection).execute(_SET, (names, values))


#: A setting that nobody reads but we: who has set up the session.
_MARK = "featurestore.session"
_MARKED = f"SELECT current_setting('{_MARK}', true)"
_SET = "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS setting (name, value)"


def _parameters(url: str, section: str) -> dict[str, Any]:
    way_out = f"{section}.url is not an address of Postgres; write it as postgresql://user@host:5432/database"
    try:
        parameters = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # What libpq says repeats the text, which may hold a password.
        raise ConfigError(way_out) from None
    if not re.fullmatch(r"[\d,]*", str(parameters.get("port", ""))):
        raise ConfigError(way_out)
    return parameters
