"""A server with a near cache: warm before it is reachable, honest while its store is away, current when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore import Status
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from featurestore_client import FeatureClient, OnlineReply, Retries, StaleReason, Unavailable
from serving import cached_reader
from serving.engine import Engine
from serving.metrics import CACHE_BYTES, READY
from serving.server import ServeOptions
from serving.telemetry import Telemetry
from serving.warm_up import NearCacheOptions, PreloadOptions
from tests.fix_redis import RedisProcess
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import gauge, server
from tests.unit.serving.world import CLOCK, HOUR_US, NOW_US, World, weather
from tests.waiting import WAIT_S, until

#: Long enough for a busy machine to read tokens in, and short enough to wait for.
LONG_S, SHORT_S = 10.0, 0.2
OPTIONS = ServeOptions(port=0, poll_s=0.2, drain_s=2.0, store_timeout_s=0.5)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def backend(tmp_path: Path, redis_server: RedisProcess) -> Iterator[Backend]:
    store = RedisOnlineStore("test", RedisAddress(url=redis_server.url, timeout_s=1.0))
    made = Backend(tmp_path, World(store))
    rows = {"temp": [1.5, 2.5], "wind": [0.1, 0.2], "sky": ["clear", None]}
    made.world.put(weather, {"origin": ["JFK", "EWR"]}, rows, NOW_US - HOUR_US)
    yield made
    made.registry.close()
    store.close()


def engine(
    backend: Backend, folder: Path, *, bound_s: float = LONG_S, unconfirmed_max_s: float = 0.0, **preload: object
) -> Engine:
    near = NearCacheOptions(bytes_max=1 << 20, bound_s=bound_s, unconfirmed_max_s=unconfirmed_max_s)
    options = PreloadOptions(folder=folder / "serving", **preload)  # type: ignore[arg-type]
    made = Engine(backend.registry, backend.state, backend.world.store, CLOCK, backend.limits, near, options)
    made.start()
    return made


def asked(client: FeatureClient, *origins: str) -> OnlineReply:
    return client.get_online_features("airport_now", {"origin": list(origins)}, timeout_s=WAIT_S)


def statuses(client: FeatureClient, *origins: str) -> list[int]:
    return asked(client, *origins).statuses["weather@1"].tolist()


def test_a_preloaded_row_needs_no_store_from_the_first_request_on(backend: Backend, tmp_path: Path) -> None:
    warm = engine(backend, tmp_path, policies=("all",))
    with server(warm, OPTIONS) as running, FeatureClient(running.target) as client:
        assert warm.cache is not None
        assert statuses(client, "JFK", "EWR") == [Status.PRESENT] * 2
        assert (warm.cache.counts["weather@1"].hits, warm.cache.counts["weather@1"].misses) == (2, 0)


def test_the_share_of_hits_tells_about_clients_only(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is preloaded: the made-up requests of the warm-up leave an entry, and count for nobody."""
    monkeypatch.setattr(cached_reader, "FIRST_REQUESTS", 4)
    cold = engine(backend, tmp_path)
    with server(cold, OPTIONS) as running, FeatureClient(running.target) as client:
        assert cold.cache is not None
        assert cold.cache.counts == {}
        with caplog.at_level(logging.INFO):
            for origin in ("JFK", "JFK", "EWR", "EWR"):
                statuses(client, origin)
    told = [record.getMessage() for record in caplog.records if "of the rows of the first" in record.getMessage()]
    assert told == ["near cache: 50.0 % of the rows of the first 4 requests were there"]


def test_what_was_asked_for_is_there_after_a_restart(backend: Backend, tmp_path: Path) -> None:
    first = engine(backend, tmp_path, policies=("hot",))
    with server(first, OPTIONS) as running, FeatureClient(running.target) as client:
        for _ in range(20):
            statuses(client, "EWR")
    again = engine(backend, tmp_path, policies=("hot",))
    with server(again, OPTIONS) as running, FeatureClient(running.target) as client:
        assert again.cache is not None
        again.cache.counts.clear()
        assert statuses(client, "EWR") == [Status.PRESENT]
        assert again.cache.counts["weather@1"].misses == 0


def test_a_change_is_served_within_the_bound(backend: Backend, tmp_path: Path) -> None:
    with (
        server(engine(backend, tmp_path, bound_s=SHORT_S), OPTIONS) as running,
        FeatureClient(running.target) as client,
    ):
        assert asked(client, "JFK").to_numpy()["temp"].tolist() == [1.5]
        backend.world.put(weather, {"origin": ["JFK"]}, {"temp": [9.5], "wind": [0.1], "sky": ["clear"]})
        until(lambda: asked(client, "JFK").to_numpy()["temp"].tolist() == [9.5])


def test_without_a_store_cached_rows_are_stale_and_others_errors_where_that_is_asked_for(
    backend: Backend, tmp_path: Path, redis_server: RedisProcess
) -> None:
    serving = engine(backend, tmp_path, bound_s=SHORT_S, unconfirmed_max_s=60.0)
    with server(serving, OPTIONS) as running, FeatureClient(running.target) as client:
        assert statuses(client, "JFK") == [Status.PRESENT]
        redis_server.kill()
        until(lambda: statuses(client, "JFK", "EWR") == [Status.STALE, Status.ERROR])
        reply = asked(client, "JFK", "EWR")
        assert reply.stale_reasons["weather@1"].tolist() == [StaleReason.UNCONFIRMED, StaleReason.NONE]
        assert reply.to_numpy()["temp"].tolist()[0] == 1.5
        assert reply.validity()["temp"].tolist() == [True, False]
        redis_server.start()
        until(lambda: statuses(client, "JFK") == [Status.NOT_FOUND])  # it came back empty
        backend.world.put(weather, {"origin": ["JFK"]}, {"temp": [1.5], "wind": [0.1], "sky": ["clear"]})
        until(lambda: statuses(client, "JFK") == [Status.PRESENT])


def test_a_row_that_was_unconfirmed_for_too_long_is_an_error_without_its_values(
    backend: Backend, tmp_path: Path, redis_server: RedisProcess
) -> None:
    serving = engine(backend, tmp_path, bound_s=SHORT_S, unconfirmed_max_s=2 * SHORT_S)
    with server(serving, OPTIONS) as running, FeatureClient(running.target) as client:
        assert asked(client, "JFK").to_numpy()["temp"].tolist() == [1.5]
        redis_server.kill()
        until(lambda: statuses(client, "JFK") == [Status.ERROR])
        assert asked(client, "JFK").validity()["temp"].tolist() == [False]


def test_without_a_store_requests_fail_where_nothing_else_is_asked_for(
    backend: Backend, tmp_path: Path, redis_server: RedisProcess
) -> None:
    with (
        server(engine(backend, tmp_path, bound_s=SHORT_S), OPTIONS) as running,
        FeatureClient(running.target, retries=Retries(attempts_max=3)) as client,
    ):
        assert statuses(client, "JFK") == [Status.PRESENT]
        redis_server.kill()
        time.sleep(2 * SHORT_S)
        with pytest.raises(Unavailable, match="cannot be reached"):
            client.get_online_features("airport_now", {"origin": ["JFK"]}, timeout_s=WAIT_S)


def test_a_preload_that_fails_is_told_and_the_worker_serves(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "none.parquet"
    with caplog.at_level(logging.WARNING):
        cold = engine(backend, tmp_path, policies=("file",), keys_file=missing)
        with server(cold, OPTIONS) as running, FeatureClient(running.target) as client:
            assert statuses(client, "JFK") == [Status.PRESENT]
    assert "preload: failed" in caplog.text
    assert "none.parquet" in caplog.text


def test_a_required_preload_keeps_the_worker_from_getting_ready_until_it_succeeds(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from serving import warm_up

    monkeypatch.setattr(warm_up, "AGAIN_S", 0.05)
    late, telemetry = tmp_path / "late.parquet", Telemetry()
    waited: list[str] = []

    def warned(message: str, *parts: object) -> None:
        waited.append(message)
        assert (gauge(telemetry, READY), gauge(telemetry, CACHE_BYTES)) == (0, 0)
        if len(waited) == 2:
            pq.write_table(pa.table({"origin": ["JFK"]}), late)

    monkeypatch.setattr(warm_up.log, "warning", warned)
    waiting = engine(backend, tmp_path, policies=("file",), keys_file=late, required=True)
    with server(waiting, OPTIONS, telemetry) as running, FeatureClient(running.target) as client:
        assert len(waited) == 2
        assert waiting.cache is not None
        assert (gauge(telemetry, READY), gauge(telemetry, CACHE_BYTES)) == (1, waiting.cache.size_bytes)
        assert waiting.cache.size_bytes > 0
        waiting.cache.counts.clear()
        assert statuses(client, "JFK") == [Status.PRESENT]
        assert waiting.cache.counts["weather@1"].misses == 0
