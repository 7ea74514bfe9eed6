"""The first requests after a worker is ready, against those that follow: readiness means as fast as ever.

Each request asks for other entities, one after the other over one connection. The worker has preloaded all rows.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import grpc
import numpy as np

from benchmarks import world
from benchmarks.measure import SEED, Measured, Result, Setting, Times
from benchmarks.servers import redis_server
from benchmarks.worker import pinned, two_cores, worker
from benchmarks.world import Shape
from featurestore_client import calls

NAME = "cold-start"
WHAT = "p99 of the first requests after readiness against p99 of those that follow"
P99_MAX = 1.5
#: The connection is made by calls that do no work for anybody.
CONNECTING = 20


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, rows and features of a request, requests that count as the first, and blocks that follow."""

    meters: int
    features: int
    rows: int
    requests: int
    blocks: int


SIZES = {
    "tiny": Size(meters=300, features=3, rows=10, requests=20, blocks=2),
    "small": Size(meters=5_000, features=50, rows=100, requests=1_000, blocks=3),
    "full": Size(meters=100_000, features=50, rows=100, requests=1_000, blocks=9),
}


def run(setting: Setting) -> Result:
    """p99 of the first block, and the median of the p99 of the others."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.features)
    server_core, other_core = two_cores()
    with ExitStack() as stack:
        with pinned(other_core):
            server = stack.enter_context(redis_server(setting.work / "redis"))
        folder = world.make_repository(setting.work / NAME, size.features, redis_url=server.url)
        setting.show(f"publishing {size.meters:,} entities x {size.features}")
        world.publish_latest(folder, shape)
        messages = _messages(shape, size)
        settings = {"near_cache_megabytes": "512", "preload_policies": "all"}
        running = stack.enter_context(worker(folder, shape, cores=server_core, **settings))
        stack.enter_context(pinned(other_core))
        setting.show(f"{size.requests:,} requests, and {size.blocks} times as many")
        first, *later = _timed(running.address, messages, size.requests)
    steady = statistics.median(block.percentile(0.99) for block in later)
    what = f"first {size.requests:,} requests of {size.rows} x {size.features}"
    measured = [
        Measured(what="ready", value=running.ready_s, unit="s", detail="from the start of the process"),
        Measured(what=f"{what}, p50", value=first.median * 1e3, unit="ms"),
        Measured(what=f"{what}, p99", value=first.percentile(0.99) * 1e3, unit="ms"),
        Measured(what="p99 of those that follow", value=steady * 1e3, unit="ms", detail=f"median of {size.blocks} p99"),
        Measured(
            what="p99 of the first against those that follow",
            value=first.percentile(0.99) / steady,
            unit="x",
            required=P99_MAX,
            sense="at most",
        ),
    ]
    return Result(name=NAME, sizes=asdict(size), measured=measured)


def _messages(shape: Shape, size: Size) -> list[bytes]:
    """A request of its own each, made beforehand."""
    random = np.random.default_rng(SEED)
    asked = (random.integers(0, shape.meters, size=size.rows) for _ in range(size.requests * (1 + size.blocks)))
    return [calls.lookup(world.SERVICE, {world.KEY: keys}, None, None, "columns", False).message for keys in asked]


def _timed(address: str, messages: list[bytes], block: int) -> list[Times]:
    with grpc.insecure_channel(address, calls.CHANNEL_OPTIONS) as channel:
        health, method = channel.unary_unary(calls.HEALTH.path), channel.unary_unary(calls.LOOKUP.path)
        for _ in range(CONNECTING):
            health(b"", timeout=5)
        seconds = []
        for message in messages:
            began = time.perf_counter()
            method(message, timeout=5)
            seconds.append(time.perf_counter() - began)
    return [Times(tuple(seconds[start : start + block])) for start in range(0, len(seconds), block)]
