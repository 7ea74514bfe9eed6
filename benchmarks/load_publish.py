"""The whole write path against Feast's: a Parquet file into Redis, ours through the gate and history.

Our side is `materialize-incremental` in a process of its own, from the file to history (checks, deduplication, all rows
kept) and on to Redis. Feast's is `materialize` of the same file, with both of its local offline stores; it keeps no
history and checks nothing. A sample of what both serve is compared first, bit for bit.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import peer, world
from benchmarks.measure import Measured, Result, Setting
from benchmarks.servers import RedisServer, redis_server
from benchmarks.world import Shape
from benchmarks.write_step import in_process

NAME = "load-publish"
WHAT = "1 M rows of Parquet into history and Redis, against Feast's materialize"
AGAINST_FEAST = 10.0
#: Feast's offline stores for a file.
OFFLINE = ("duckdb", "dask")


@dataclass(frozen=True, kw_only=True)
class Size:
    """The source, how often each side runs, and whether Feast does."""

    rows: int
    meters: int
    features: int
    runs: int
    peer: bool = True

    @property
    def shape(self) -> Shape:
        """The source alone."""
        return Shape(rows=self.rows, meters=self.meters, features=self.features)


SIZES = {
    "tiny": Size(rows=2_000, meters=500, features=3, runs=1, peer=False),
    "small": Size(rows=100_000, meters=10_000, features=50, runs=1),
    "full": Size(rows=1_000_000, meters=100_000, features=50, runs=2),
}


def run(setting: Setting) -> Result:
    """Seconds of ours, and how many times as long Feast takes with the better of its stores."""
    size = SIZES[setting.size]
    ours: list[dict[str, Any]] = []
    feast: dict[str, list[dict[str, Any]]] = {offline: [] for offline in OFFLINE if size.peer}
    with redis_server(setting.work / "redis") as server:
        for _ in range(size.runs):
            report, served, source = _ours(setting, server, size)
            ours.append(report)
            for offline, reports in feast.items():
                reports.append(_feast(setting, server, size, source, offline, served))
    seconds = min(one["s"] for one in ours)
    scale = f"load {size.rows:,} x {size.features}, publish {size.meters:,}"
    measured = [Measured(what=scale, value=seconds, unit="s", detail=f"{size.rows / seconds:,.0f} rows/s")]
    if feast:
        best = {offline: min(one["s"] for one in reports) for offline, reports in feast.items()}
        quicker = min(best, key=lambda offline: best[offline])
        what, detail = f"against Feast's materialize ({quicker})", f"{best[quicker]:.2f} s"
        ratio = best[quicker] / seconds
        measured.append(Measured(what=what, value=ratio, unit="x", required=AGAINST_FEAST, detail=detail))
    notes = [f"{side}: {peer.spent(one)}" for side, reports in {"ours": ours, **feast}.items() for one in reports]
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=notes)


def _ours(setting: Setting, server: RedisServer, size: Size) -> tuple[dict[str, Any], pa.Table, Path]:
    """The report of a new repository, a sample of what it serves, and its source."""
    shutil.rmtree(setting.work / "load_publish", ignore_errors=True)
    folder = world.make_repository(setting.work / "load_publish", size.features, redis_url=server.url)
    setting.show(f"writing a source of {size.rows:,} rows x {size.features}")
    source = world.write_source(folder, size.shape)
    server.empty()
    with world.open_store(folder, size.shape) as store:
        store.apply()
        setting.show("load and publish")
        report = in_process("load_and_publish", folder, size.shape)
        return report, peer.served(store, size.shape), source


def _feast(
    setting: Setting, server: RedisServer, size: Size, source: Path, offline: str, served: pa.Table
) -> dict[str, Any]:
    """Feast's report; Unequal unless it serves what we do."""
    setting.show(f"Feast, materialize with {offline}")
    sample = setting.work / "sample.parquet"
    pq.write_table(served.select([world.KEY]), sample)
    report = peer.run(setting, server, size.shape, source, way="materialize", offline=offline, sample=sample)
    peer.require_same(served, sample, f"{NAME}, Feast with {offline}")
    return report
