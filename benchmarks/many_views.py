"""One request for 500 rows over ten views from Redis, each view with five features: reported, not judged."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting, Unequal, steadily
from benchmarks.servers import redis_server
from benchmarks.worker import worker
from benchmarks.world import Shape
from featurestore import FeatureStore
from featurestore.clock import to_us
from featurestore_client import FeatureClient

NAME = "many-views"
WHAT = "500 rows over 10 views from Redis over the network"
SERVICE = "all_views"

_DEFINITIONS = """\
from featurestore import Entity, FeatureService, FeatureView, Field, FileSource, Float32, Int64

meter = Entity(name="meter", join_keys={{"meter": Int64}})
views = [
    FeatureView(
        name=f"part{{number}}",
        entities=[meter],
        schema=[Field(name=f"f{{n:02}}", dtype=Float32) for n in range({each} * number, {each} * (number + 1))],
        source=FileSource(path="sources", timestamp_field="event_timestamp"),
    )
    for number in range({views})
]
for view in views:
    globals()[view.name] = view
all_views = FeatureService(name="all_views", features=views)
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, views, features of each, rows of a request, and how often it is sent."""

    meters: int
    views: int
    each: int
    rows: int
    calls: int


SIZES = {
    "tiny": Size(meters=100, views=2, each=2, rows=10, calls=5),
    "small": Size(meters=2_000, views=10, each=5, rows=500, calls=100),
    "full": Size(meters=50_000, views=10, each=5, rows=500, calls=1_000),
}


def run(setting: Setting) -> Result:
    """p50 and p99, without a near cache and with one."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.views * size.each)
    measured = []
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(setting.work / "redis"))
        folder = world.make_repository(setting.work / NAME, shape.features, redis_url=server.url)
        text = _DEFINITIONS.format(views=size.views, each=size.each)
        (folder / "definitions" / "readings.py").write_text(text, encoding="utf-8")
        setting.show(f"loading {size.meters:,} entities into {size.views} views")
        store = stack.enter_context(_filled(folder, shape))
        keys = world.keys(shape, size.rows)
        for cache_mb in ("0", "256"):
            with (
                worker(folder, shape, near_cache_megabytes=cache_mb) as running,
                FeatureClient(running.address) as client,
            ):
                _require_same(client, store, shape, keys)
                said = "near cache" if cache_mb != "0" else "no near cache"
                setting.show(f"{size.calls} calls, {said}")
                asks = {said: lambda: client.get_online_features(SERVICE, keys, format="matrix").to_matrix()}
                times = steadily(asks, size.calls)[said]
                what = f"{size.rows} rows over {size.views} views x {size.each}, {said}"
                measured += [
                    Measured(what=f"{what}, {name}", value=value * 1e3, unit="ms")
                    for name, value in (("p50", times.median), ("p99", times.percentile(0.99)))
                ]
    return Result(name=NAME, sizes=asdict(size), measured=measured)


def _filled(folder: Path, shape: Shape) -> FeatureStore:
    """The repository with a reading of each meter in every view, loaded and published."""
    store = world.open_store(folder, shape)
    store.apply()
    world.write_source(folder, shape)
    outcome = store.materialize_incremental()
    if outcome.errors:
        raise outcome.errors[0]
    return store


def _require_same(client: FeatureClient, store: FeatureStore, shape: Shape, keys: dict[str, np.ndarray]) -> None:
    """Unequal unless the reply has the bits of a training set as of now."""
    now = pa.array(np.full(len(keys[world.KEY]), to_us(shape.end))).cast(world.TIMESTAMP)
    trained = store.get_historical_features(pa.table({**keys, "as_of": now}), SERVICE).to_matrix()
    served = client.get_online_features(SERVICE, keys, format="matrix").to_matrix()
    if not np.array_equal(np.ascontiguousarray(served).view(np.uint32), trained.view(np.uint32)):
        raise Unequal(f"{NAME}: the matrix differs from the training set's")
