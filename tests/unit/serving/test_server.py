"""The life of a server: what it notices while it runs, what it does when things break, how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from featurestore import FeatureService, Field, Int32
from featurestore.errors import FeatureStoreError
from featurestore.registry.definitions import Definitions
from featurestore_client import DeadlineExceeded, FeatureClient, RequestFailed
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column
from serving.access.principal import ANYONE
from serving.metrics import QUEUE_DEPTH
from serving.server import ServeOptions
from serving.telemetry import Telemetry
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import gauge, raw_call, server
from tests.unit.serving.world import (
    DEFINITIONS,
    HOUR_US,
    NOW,
    NOW_US,
    delays,
    weather,
)
from tests.waiting import WAIT_S, until


@pytest.fixture
def target(backend: Backend) -> Iterator[str]:
    with server(backend.engine()) as running:
        yield running.target


@pytest.fixture
def client(target: str) -> Iterator[FeatureClient]:
    with FeatureClient(target) as made:
        yield made


# ---------------------------------------------------------------- what it notices


def test_max_age_and_freshness_are_judged_in_the_reply(backend: Backend, client: FeatureClient) -> None:
    keys = {"origin": ["JFK"], "number": [1]}
    ask = lambda: client.get_online_features(["delays:delay"], keys, max_age=timedelta(minutes=30))  # noqa: E731

    assert (ask().statuses["delays@2"].tolist(), ask().stale_reasons["delays@2"].tolist()) == ([5], [1])
    assert ask().degraded_rows == 1
    assert client.get_online_features(["delays:delay"], keys).statuses["delays@2"].tolist() == [1]

    backend.publish("delays@2", NOW_US - 7 * HOUR_US)

    until(lambda: client.get_online_features(["delays:delay"], keys).stale_reasons["delays@2"].tolist() == [2])


def with_services(*services: FeatureService) -> Definitions:
    return replace(DEFINITIONS, services={**DEFINITIONS.services, **{service.name: service for service in services}})


def test_a_service_applied_while_serving_is_served_soon(backend: Backend, client: FeatureClient) -> None:
    with pytest.raises(RequestFailed, match="no feature service named 'later'"):
        client.describe_service("later")

    backend.apply(with_services(FeatureService(name="later", features=[weather["temp"]])))

    def served() -> bool:
        with contextlib.suppress(RequestFailed):
            return client.get_online_features("later", {"origin": ["JFK"]}).to_numpy()["temp"].tolist() == [1.5]
        return False

    until(served)


def test_rows_of_a_schema_applied_a_moment_ago_are_read(backend: Backend) -> None:
    """The server polls only every hour here, so it must look at the registry because of the row itself."""
    with (
        server(backend.engine(), ServeOptions(port=0, poll_s=3600.0)) as running,
        FeatureClient(running.target) as client,
    ):
        newer = replace(weather, schema=[*weather.schema, Field(name="gust", dtype=Int32)])
        backend.apply(replace(DEFINITIONS, views={**DEFINITIONS.views, newer.ref: newer}))
        columns = {"temp": [9], "wind": [None], "sky": [None], "gust": [3]}
        backend.world.put(newer, {"origin": ["JFK"]}, columns, NOW_US + 1, schema_id=2)

        assert client.get_online_features(["weather:temp"], {"origin": ["JFK"]}).to_numpy()["temp"].tolist() == [9.0]
        assert client.get_online_features(["weather:gust"], {"origin": ["JFK"]}).to_numpy()["gust"].tolist() == [3]


def test_rows_of_a_schema_applied_a_moment_ago_are_read_by_all_who_meet_them_at_once(backend: Backend) -> None:
    """The first to meet one reads the registry; the others find that done, and need the new definitions as well."""
    engine = backend.engine()
    newer = replace(weather, schema=[*weather.schema, Field(name="gust", dtype=Int32)])
    backend.apply(replace(DEFINITIONS, views={**DEFINITIONS.views, newer.ref: newer}))
    columns = {"temp": [9], "wind": [None], "sky": [None], "gust": [3]}
    backend.world.put(newer, {"origin": ["JFK"]}, columns, NOW_US + 1, schema_id=2)
    request = pb.GetOnlineFeaturesRequest(service="airport_now", keys=[encode_column("origin", ["JFK"])])

    async def ask() -> list[bytes]:
        async with engine.reading(1.0):
            asked = (engine.lookup(request.SerializeToString(), ANYONE) for _ in range(4))
            return await asyncio.gather(*asked)

    replies = asyncio.run(ask())
    assert [pb.GetOnlineFeaturesResponse.FromString(reply).rows for reply in replies] == [1] * 4


def test_a_push_whose_caller_has_gone_keeps_its_place_until_it_is_done(backend: Backend, tmp_path: Path) -> None:
    rows = {"origin": ["JFK"], "time": [NOW], "temp": pa.array([1], pa.float32()), "wind": [1.0], "sky": ["rain"]}
    writer, telemetry = sqlite3.connect(tmp_path / "online.db", isolation_level=None), Telemetry()
    with (
        contextlib.closing(writer),
        server(backend.engine(), telemetry=telemetry, push=backend.push_door()) as running,
        FeatureClient(running.target) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        writer.execute("BEGIN IMMEDIATE")

        def queues() -> bool:
            """Whether one more push has to wait for a place; gives up on it soon."""
            push, queued = callers.submit(client.push, "weather", rows, timeout_s=0.3), False
            while not push.done():
                time.sleep(0.01)
                queued = queued or gauge(telemetry, QUEUE_DEPTH) == 1
            assert isinstance(push.exception(), DeadlineExceeded)
            return queued

        until(queues)
        writer.execute("ROLLBACK")
        assert client.push("weather", rows, timeout_s=WAIT_S).statuses.tolist() == [pb.PUSH_STATUS_DUPLICATE]


def test_columns_without_a_value_are_of_every_type(backend: Backend) -> None:
    """A Python list of nothing but None, or of nothing at all, does not say what it would hold."""
    with server(backend.engine(), push=backend.push_door()) as running, FeatureClient(running.target) as client:
        asked = client.get_online_features("airport_now", {"origin": [None, None]})
        assert asked.statuses["weather@1"].tolist() == [3, 3]
        assert len(client.get_online_features("airport_now", {"origin": []})) == 0
        row = {"origin": ["JFK"], "time": [NOW + timedelta(1)], "temp": [None], "wind": [None], "sky": [None]}
        assert client.push("weather", row).statuses.tolist() == [pb.PUSH_STATUS_ACCEPTED]
        with pytest.raises(RequestFailed, match="INVALID_ARGUMENT: join key 'origin' is int64, it must be string"):
            client.get_online_features("airport_now", {"origin": [None, 1]})


def test_a_row_that_nobody_can_read_keeps_the_server_from_getting_ready(backend: Backend) -> None:
    backend.world.store.drop("weather@1")
    backend.world.put(weather, {"origin": ["JFK"]}, {"temp": [1], "wind": [1], "sky": [None]}, schema_id=9)

    with pytest.raises(FeatureStoreError, match="schema 9"):
        backend.engine()


def test_definitions_that_fail_their_test_leave_the_old_ones_serving(backend: Backend) -> None:
    engine = backend.engine()
    backend.world.store.drop("delays@2")
    columns = {name: [None] for name in delays.fields}
    backend.world.put(delays, {"origin": ["A"], "number": [0]}, columns, schema_id=9)  # the registry has no such schema
    backend.apply(with_services(FeatureService(name="later", features=[weather["temp"]])))

    with pytest.raises(FeatureStoreError, match="schema 9"):
        engine.refresh()

    assert engine.refresh() is False, "the same definitions are not tried again"
    request = pb.GetOnlineFeaturesRequest(service="all_types")
    request.keys.append(pb.Column(name="id", type=pb.DataType(kind=pb.TYPE_KIND_INT64), rows=1, values=bytes(8)))
    with server(engine) as running:
        assert pb.GetOnlineFeaturesResponse.FromString(raw_call(running.target, request.SerializeToString())).rows == 1
