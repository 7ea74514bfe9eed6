"""A repository opened for work: settings, clock, registry, job state, definitions and stores, each made when asked for.

The composition roots (`cli/`, `feature_store.py`) work on this; it knows neither jobs nor servers.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.clock import Clock, parse_clock
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from featurestore.offline.base import OfflineStore
    from featurestore.online.base import OnlineStore
    from featurestore.registry.definitions import Definitions
    from featurestore.registry.registry import Registry
    from featurestore.registry.state import StateStore
    from featurestore.settings import Settings

log = logging.getLogger(__name__)


def _duckdb_store(settings: Settings) -> OfflineStore:
    from featurestore.offline.duckdb import DuckDBOfflineStore

    offline = settings.offline
    return DuckDBOfflineStore(
        offline.path,
        settings.project,
        threads=offline.threads,
        memory_limit=offline.memory_limit,
        wait_s=offline.wait_s,
    )


def _postgres_store(settings: Settings) -> OfflineStore:
    try:
        from featurestore.offline.postgres import PostgresOfflineStore
    except ModuleNotFoundError as error:
        raise ConfigError(
            'offline.kind = "postgres" needs psycopg, which is not installed; install featurestore[postgres]'
        ) from error
    offline = settings.offline
    password = None if offline.password is None else offline.password.get_secret_value()
    return PostgresOfflineStore(offline.url, settings.project, password=password, wait_s=offline.wait_s)


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

        registry = self.settings.registry
        return open_state(registry.path, self.settings.project, wait_s=registry.wait_s)

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
        return make(self.settings)

    @cached_property
    def online(self) -> OnlineStore:
        """The online store."""
        if self.settings.online.kind == "redis":
            return _redis_store(self.settings)
        from featurestore.online.sqlite import SqliteOnlineStore

        return SqliteOnlineStore(self.settings.online.path, self.settings.project)

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
