"""A whole server over a Redis Cluster: keys of all nodes in one answer, rows of the near cache current."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow as pa

from featurestore import Status
from featurestore.online.keys import bucket_of, encode_keys
from featurestore.online.redis import RedisOnlineStore
from featurestore_client import FeatureClient
from serving.engine import Engine
from serving.server import ServeOptions
from serving.warm_up import NearCacheOptions, PreloadOptions
from tests.fix_redis import RedisFarm
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server
from tests.unit.serving.world import CLOCK, HOUR_US, NOW_US, World, weather
from tests.waiting import until

ORIGINS = [f"A{number:02}" for number in range(60)]


def put(backend: Backend, wind: float, event_us: int) -> None:
    rows = len(ORIGINS)
    columns = {"temp": [float(number) for number in range(rows)], "wind": [wind] * rows, "sky": ["rain"] * rows}
    backend.world.put(weather, {"origin": ORIGINS}, columns, event_us)


def test_a_server_answers_from_all_nodes_of_a_cluster(tmp_path: Path, redis_farm: RedisFarm) -> None:
    store = RedisOnlineStore(f"test_{uuid.uuid4().hex}", redis_farm.address("cluster"))
    backend = Backend(tmp_path, World(store))
    put(backend, 0.5, NOW_US - HOUR_US)
    keys = encode_keys([pa.array(ORIGINS)], list(weather.join_keys.values()))
    assert len(set(bucket_of(keys).tolist())) > 30, "the keys lie all over the slots"
    engine = Engine(
        backend.registry, backend.state, store, CLOCK, backend.limits,
        NearCacheOptions(bytes_max=1 << 20, bound_s=0.2),
        PreloadOptions(policies=("all",), folder=tmp_path / "serving"),
    )  # fmt: skip
    engine.start()
    options = ServeOptions(port=0, poll_s=0.2, drain_s=2.0)
    with server(engine, options) as running, FeatureClient(running.target, timeout_s=10) as client:

        def asked(*origins: str) -> tuple[list[int], list[float]]:
            reply = client.get_online_features("airport_now", {"origin": list(origins)})
            return reply.statuses["weather@1"].tolist(), reply.to_numpy()["wind"].tolist()

        statuses, winds = asked(*ORIGINS)
        assert set(statuses) == {Status.PRESENT}
        assert set(winds) == {0.5}
        assert asked("ZZZ")[0] == [Status.NOT_FOUND]
        put(backend, 9.5, NOW_US)
        until(lambda: set(asked(*ORIGINS)[1]) == {9.5})
    backend.registry.close()
    store.close()
