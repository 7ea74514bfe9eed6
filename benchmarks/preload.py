"""A worker that preloads all rows from Redis before it is ready: how soon it is, and the memory that takes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting
from benchmarks.servers import redis_server
from benchmarks.worker import worker
from benchmarks.world import Shape

NAME = "preload"
WHAT = "a worker with all rows in its near cache: time until it is ready, and its memory"
READY_S_MAX = 10.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, features of each, and room for them in the near cache."""

    meters: int
    features: int
    megabytes: int


SIZES = {
    "tiny": Size(meters=300, features=3, megabytes=16),
    "small": Size(meters=50_000, features=50, megabytes=256),
    "full": Size(meters=1_000_000, features=50, megabytes=2_048),
}


def run(setting: Setting) -> Result:
    """Time from the start of the process, without and with the preload, and memory of both."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.features)
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(setting.work / "redis"))
        folder = world.make_repository(setting.work / NAME, size.features, redis_url=server.url)
        setting.show(f"publishing {size.meters:,} entities x {size.features}")
        world.publish_latest(folder, shape)
        megabytes = str(size.megabytes)
        for _ in range(2):  # the first start compiles the modules
            with worker(folder, shape, near_cache_megabytes=megabytes) as cold:
                empty, _ = cold.memory_bytes()
        setting.show("preloading")
        with worker(folder, shape, near_cache_megabytes=megabytes, preload_policies="all") as warm:
            full, peak = warm.memory_bytes()
    rows = f"{size.meters:,} rows x {size.features}"
    measured = [
        Measured(what="ready without a preload", value=cold.ready_s, unit="s"),
        Measured(
            what=f"ready with {rows}",
            value=warm.ready_s,
            unit="s",
            required=READY_S_MAX,
            sense="at most",
            detail=f"{warm.ready_s - cold.ready_s:.1f} s more",
        ),
        Measured(
            what="memory they take", value=(full - empty) / (1 << 20), unit="MiB", detail=_each(full - empty, size)
        ),
        Measured(what="memory in all at the most", value=peak / (1 << 20), unit="MiB"),
    ]
    return Result(name=NAME, sizes=asdict(size), measured=measured)


def _each(taken: int, size: Size) -> str:
    return f"{taken / size.meters:,.0f} bytes a row"
