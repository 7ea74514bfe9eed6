"""A repository opened for work: settings, clock, registry, job state, definitions and stores, each made when asked for.

The composition roots (`cli/`, `feature_store.py`) work on this; it knows neither jobs nor servers.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.clock import Clock, parse_clock
from featurestore.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featurestore.feature_view import FeatureView
    from featurestore.ingest.inbox import Inbox
    from featurestore.ingest.push import Pusher
    from featurestore.offline.base import OfflineStore
    from featurestore.online.base import OnlineStore
    from featurestore.registry.definitions import Definitions
    from featurestore.registry.registry import Registry
    from featurestore.registry.state import StateStore
    from featurestore.settings import Settings

log = logging.getLogger(__name__)


def _duckdb_store(repository: Repository) -> OfflineStore:
    from featurestore.offline.duckdb import DuckDBOfflineStore

    settings, offline = repository.settings, repository.settings.offline
    return DuckDBOfflineStore(
        offline.path,
        settings.project,
        threads=offline.threads,
        memory_limit=offline.memory_limit,
        wait_s=offline.wait_s,
        on_correction=lambda view, rows: repository.needed_inbox.remember(view, rows),
        on_drop=lambda ref: repository.forget_pushed(ref),
        quarantine_rows_max=settings.quarantine.max_rows,
    )


def _postgres_store(repository: Repository) -> OfflineStore:
    settings = repository.settings
    with _psycopg_for("offline"):
        from featurestore.offline.postgres import PostgresOfflineStore
    offline = settings.offline
    password = None if offline.password is None else offline.password.get_secret_value()
    return PostgresOfflineStore(
        offline.url,
        settings.project,
        password=password,
        wait_s=offline.wait_s,
        quarantine_rows_max=settings.quarantine.max_rows,
    )


@contextmanager
def _psycopg_for(section: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{section}.kind = "postgres" needs psycopg, which is not installed; install featurestore[postgres]'
        ) from error


class Repository:
    """The folder of a `featurestore.toml`, at the time of one clock."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings, self.clock = settings, clock

    @staticmethod
    def open(path: Path, now: str | None = None) -> Repository:
        """The repository in `path`; `now` as in `--now`. ConfigError when there is none."""
        from featurestore.settings import load_settings

        return Repository(load_settings(path), parse_clock(now))

    @cached_property
    def _opened(self) -> tuple[Registry, StateStore]:
        from featurestore.registry.registry import open_state

        registry, project = self.settings.registry, self.settings.project
        if registry.kind == "sqlite":
            return open_state(registry.path, project, wait_s=registry.wait_s)
        password = None if registry.password is None else registry.password.get_secret_value()
        with _psycopg_for("registry"):
            return open_state(registry.url, project, password=password, wait_s=registry.wait_s)

    @property
    def registry(self) -> Registry:
        """What is applied."""
        return self._opened[0]

    @property
    def state(self) -> StateStore:
        """The state of jobs."""
        return self._opened[1]

    @cached_property
    def definitions(self) -> Definitions:
        """What the files declare; DefinitionError names every problem."""
        from featurestore.registry.load import load_definitions

        return load_definitions(self.settings.root, self.settings.definitions.path)

    @cached_property
    def offline(self) -> OfflineStore:
        """The offline store."""
        make = {"duckdb": _duckdb_store, "postgres": _postgres_store}[self.settings.offline.kind]
        return make(self)

    @cached_property
    def inbox(self) -> Inbox | None:
        """Where pushed rows wait for the next holder of the DuckDB file; None where history takes them at once."""
        from featurestore.ingest.inbox import Inbox
        from featurestore.online.sqlite import SqliteOnlineStore

        if self.settings.offline.kind != "duckdb":
            return None
        if self.settings.online.kind == "sqlite":
            file = self.online
            assert isinstance(file, SqliteOnlineStore)
            return Inbox(file, self.settings.project)
        self._inbox_path.parent.mkdir(parents=True, exist_ok=True)
        return Inbox(SqliteOnlineStore(self._inbox_path, self.settings.project), self.settings.project)

    @property
    def _inbox_path(self) -> Path:
        return self.settings.online.path if self.settings.online.kind == "sqlite" else self.settings.push.inbox_path

    @property
    def needed_inbox(self) -> Inbox:
        """The inbox of a repository whose history is in DuckDB."""
        inbox = self.inbox
        assert inbox is not None
        return inbox

    @cached_property
    def pusher(self) -> Pusher:
        """What brings pushed rows in; it never opens a DuckDB file."""
        from featurestore.ingest.durable import HistoryDurable, InboxDurable
        from featurestore.ingest.push import Pusher

        inbox = self.inbox
        durable = (
            HistoryDurable(offline=self.offline) if inbox is None else InboxDurable(inbox=inbox, online=self.online)
        )
        return Pusher(registry=self.registry, state=self.state, durable=durable, online=self.online, clock=self.clock)

    def forget_pushed(self, ref: str) -> None:
        """Drop what waits, and is known, of a view whose history goes."""
        if self._inbox_path.exists():
            self.needed_inbox.forget(ref)

    def drain(self, views: Iterable[FeatureView]) -> None:
        """Take what was pushed into history, before it is read."""
        from featurestore.ingest.drain import drain

        # A file that was never made holds nothing; reading history does not make it.
        if self.settings.offline.kind == "duckdb" and self._inbox_path.exists():
            for view in views:
                if self.needed_inbox.waiting(view.ref):
                    drain(self.needed_inbox, view, self.registry.schema_id(view.ref), self.offline, self.online)

    def quarantined_view(self, name: str) -> FeatureView:
        """The view whose quarantine is meant, what was pushed to it drained; InputError when `name` says no version
        and there are several, for each has a quarantine of its own."""
        self.finish_interrupted_apply()
        versions = [ref for ref, view in self.registry.views().items() if view.name == name]
        if len(versions) > 1:
            raise InputError(
                f"{name} has several versions, each with a quarantine of its own: name one of {', '.join(versions)}; "
                "--into replays rows of one as rows of another"
            )
        view = self.registry.view(name)
        self.drain([view])
        return view

    @cached_property
    def online(self) -> OnlineStore:
        """The online store."""
        if self.settings.online.kind == "redis":
            return _redis_store(self.settings)
        from featurestore.online.sqlite import SqliteOnlineStore

        path = self.settings.online.path
        with suppress(OSError):  # the store says what is wrong with its folder
            path.parent.mkdir(parents=True, exist_ok=True)
        return SqliteOnlineStore(path, self.settings.project)

    def finish_interrupted_apply(self) -> None:
        """Finish or roll back an apply that was killed; every work on the repository begins so."""
        from featurestore.registry.intents import open_intent

        if open_intent(self.registry) is None:
            return
        from featurestore.registry.apply import finish_open_intent

        finished = finish_open_intent(self.registry, self.state, self.offline, self.online, clock=self.clock)
        if finished is not None:
            log.warning("finished apply %s, which was interrupted", finished.id)

    def close(self) -> None:
        """Close what was opened."""
        inbox = self.__dict__.get("inbox")
        if inbox is not None and inbox.file is not self.online:
            inbox.file.close()
        if "online" in self.__dict__:
            self.online.close()
        if "offline" in self.__dict__:
            self.offline.close()
        if "_opened" in self.__dict__:
            self.registry.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _redis_store(settings: Settings) -> OnlineStore:
    try:
        from featurestore.online.redis import RedisAddress, RedisOnlineStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError('[online] kind = "redis" needs a client: pip install "featurestore[redis]"') from error
    online = settings.online
    address = RedisAddress(
        url=online.url or "",
        username=online.username,
        password=online.password.get_secret_value() if online.password else None,
        cluster=online.cluster,
        tls_ca=online.tls_ca,
        tls_cert=online.tls_cert,
        tls_key=online.tls_key,
        allow_eviction=online.allow_eviction,
        timeout_s=online.timeout_s,
        retries=online.retries,
    )
    return RedisOnlineStore(settings.project, address)
