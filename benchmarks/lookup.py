"""Online lookups on SQLite: in the process, and over gRPC from a server that is a process of its own, as users have it.

The server runs as `featurestore serve`, the client here. Before anything is timed the matrices of both ways are
compared with each other and with what history says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting, Times, Unequal, steadily
from benchmarks.worker import worker
from benchmarks.world import Shape
from featurestore import FeatureStore
from featurestore.clock import to_us
from featurestore_client import FeatureClient
from serving.local import answer, local_lookup

NAME = "lookup"
WHAT = "100 x 50 and 1 x 50 from SQLite, in the process and over gRPC"
WAYS = ("in process", "over gRPC")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, features of each, and how often each lookup runs."""

    meters: int
    features: int
    calls: int
    batches: tuple[int, ...] = (100, 1)


SIZES = {
    "tiny": Size(meters=300, features=3, calls=5),
    "small": Size(meters=20_000, features=50, calls=300),
    "full": Size(meters=100_000, features=50, calls=2_000),
}


def run(setting: Setting) -> Result:
    """Median and 99th percentile of each way and batch."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.features)
    folder = world.make_repository(setting.work / "lookup", size.features)
    setting.show(f"publishing {size.meters:,} entities x {size.features}")
    world.fill_history(folder, shape)
    measured = []
    with world.open_store(folder, shape) as store:
        outcome = store.materialize_incremental(load=False)
        if outcome.errors:
            raise outcome.errors[0]
        with worker(folder, shape) as running, FeatureClient(running.address) as client:
            for batch in size.batches:
                sides = _sides(store, client, shape, batch)
                _require_same(sides, store, shape, batch)
                setting.show(f"{batch} x {size.features}, {size.calls} calls each way")
                for name, times in steadily(sides, size.calls).items():
                    measured += _measured(f"{batch} x {size.features} {name}", times)
    return Result(name=NAME, sizes=asdict(size), measured=measured)


def _sides(store: FeatureStore, client: FeatureClient, shape: Shape, batch: int) -> dict[str, Callable[[], Any]]:
    """Both ways as callables that end with a float32 matrix."""
    repository = store.repository
    lookup = local_lookup(
        repository.registry, repository.state, repository.online, repository.clock, world.SERVICE, None
    )
    keys = world.keys(shape, batch)
    return {
        WAYS[0]: lambda: answer(lookup, keys, None).to_matrix(),
        WAYS[1]: lambda: client.get_online_features(world.SERVICE, keys, format="matrix").to_matrix(),
    }


def _require_same(sides: dict[str, Callable[[], Any]], store: FeatureStore, shape: Shape, batch: int) -> None:
    """Unequal unless both ways give what a training set as of now gives."""
    now = pa.array(np.full(batch, to_us(shape.end))).cast(world.TIMESTAMP)
    spine = pa.table({**world.keys(shape, batch), "as_of": now})
    trained = store.get_historical_features(spine, world.SERVICE).to_matrix()
    for name, side in sides.items():
        if not np.array_equal(side().view(np.uint32), trained.view(np.uint32)):
            raise Unequal(f"{NAME}, {batch} rows {name}: the matrix differs from the training set's")


def _measured(what: str, times: Times) -> list[Measured]:
    return [
        Measured(what=f"{what}, p50", value=times.median * 1e3, unit="ms", detail=f"best {times.best * 1e3:.3f} ms"),
        Measured(what=f"{what}, p99", value=times.percentile(0.99) * 1e3, unit="ms"),
    ]
