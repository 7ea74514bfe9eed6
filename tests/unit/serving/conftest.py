"""An online store; for servers, a registry and job state beside it: all real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featurestore.ingest.durable import InboxDurable
from featurestore.ingest.inbox import Inbox
from featurestore.ingest.push import Pusher
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.online.sqlite import SqliteOnlineStore
from featurestore.registry.apply import apply
from featurestore.registry.definitions import Definitions
from featurestore.registry.registry import open_state
from featurestore.registry.state import PublishRecord
from serving.engine import Engine
from serving.push import PushDoor
from serving.wire import Limits
from tests.unit.serving.world import (
    CLOCK,
    DEFINITIONS,
    HOUR_US,
    NOW_US,
    THINGS,
    VALUES,
    World,
    delays,
    everything,
    weather,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The world of `world.py` with an empty SQLite online store."""
    store = SqliteOnlineStore(tmp_path / "online.db", "test")
    yield World(store)
    store.close()


class Backend:
    """Registry, job state and stores of one repository, all real, with the definitions of `world.py` applied."""

    def __init__(self, folder: Path, world: World, registry: str | None = None) -> None:
        self.world = world
        self.registry, self.state = open_state(registry or folder / "registry.db", "test")
        self._offline = DuckDBOfflineStore(folder / "offline.duckdb", "test")
        self.limits = Limits(rows_max=2_000, features_max=10)
        self.apply(DEFINITIONS)

    @staticmethod
    @contextmanager
    def filled(folder: Path, registry: str | None = None) -> Iterator[Backend]:
        """A repository in `folder` with a few rows online; its registry may lie in Postgres."""
        world = World(SqliteOnlineStore(folder / "online.db", "test"))
        backend = Backend(folder, world, registry)
        columns = {"temp": [1.5, 2.5, None], "wind": [0.1, None, None], "sky": ["clear", None, None]}
        world.put(weather, {"origin": ["JFK", "EWR", "LGA"]}, columns)
        world.put(everything, {"id": THINGS}, VALUES)
        rows = {"delay": [5, 6], "busy": [True, None], "temp": [0.5, 0.25]}
        world.put(delays, {"origin": ["JFK", "JFK"], "number": [1, 2]}, rows, NOW_US - HOUR_US)
        yield backend
        backend.registry.close()
        world.store.close()

    def apply(self, definitions: Definitions) -> None:
        """Make the definitions effective."""
        apply(self.registry, self.state, self._offline, self.world.store, definitions, who="test", clock=CLOCK)

    def publish(self, ref: str, watermark_us: int) -> None:
        """Record a publish of the view, as its job would."""
        lease = self.state.acquire_lease(ref, "test", 60)
        record = PublishRecord(
            view=ref, position_from=0, position_to=1, horizon_from_us=None, horizon_to_us=NOW_US,
            watermark_us=watermark_us, started_at_us=NOW_US, acknowledged_at_us=NOW_US, rows_written=0,
            keys_repaired=0, kind="publish",
        )  # fmt: skip
        self.state.commit_publish(record, lease)
        self.state.release_lease(lease)

    def push_door(self) -> PushDoor:
        """Takes pushes of the views here, through an inbox in the file of the online store."""
        store = self.world.store
        assert isinstance(store, SqliteOnlineStore)
        durable = InboxDurable(inbox=Inbox(store, "test"), online=store)
        pusher = Pusher(registry=self.registry, state=self.state, durable=durable, online=store, clock=CLOCK)
        return PushDoor(pusher, self.limits)

    def engine(self) -> Engine:
        """A started engine."""
        engine = Engine(self.registry, self.state, self.world.store, CLOCK, self.limits)
        engine.start()
        return engine


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    """A repository of the test's own."""
    with Backend.filled(tmp_path) as made:
        yield made
