"""Publish to Redis against Feast's write of the same rows and against the server's own benchmark; bytes of a row.

Our side is `materialize-incremental --publish-only` in a process of its own: latest rows out of a DuckDB history,
packed, written by compare-and-set. Feast writes the latest rows only, from a Parquet file and from memory, in a process
of its own too, without its check of stored timestamps. A sample of what both serve is compared first, bit for bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import peer, world
from benchmarks.measure import Measured, Result, Setting, Times
from benchmarks.servers import RedisServer, redis_benchmark, redis_server
from benchmarks.world import Shape
from benchmarks.write_step import in_process

NAME = "publish"
WHAT = "100 k rows of history to Redis: rows/s and bytes, against Feast and redis-benchmark"
AGAINST_FEAST = 50.0
AGAINST_SET = 0.4
BYTES_MAX = 0.5
#: What Feast does in each of its ways, the whole job first.
WAYS = {
    "materialize": "materialize of a Parquet file of the latest rows",
    "write_batch": "online_write_batch of row objects made before the clock starts",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The history to publish from; how often each side runs; SET calls of redis-benchmark; whether Feast runs."""

    rows: int
    meters: int
    features: int
    runs: int
    requests: int
    peer: bool = True

    @property
    def shape(self) -> Shape:
        """The history alone."""
        return Shape(rows=self.rows, meters=self.meters, features=self.features)


SIZES = {
    "tiny": Size(rows=2_000, meters=500, features=3, runs=1, requests=2_000, peer=False),
    "small": Size(rows=50_000, meters=10_000, features=50, runs=2, requests=200_000),
    "full": Size(rows=1_000_000, meters=100_000, features=50, runs=2, requests=2_000_000),
}


def run(setting: Setting) -> Result:
    """Rows per second and bytes per row, ours and what they are compared with."""
    size = SIZES[setting.size]
    with redis_server(setting.work / "redis") as server:
        folder = world.make_repository(setting.work / "publish", size.features, redis_url=server.url)
        setting.show(f"writing a history of {size.rows:,} rows x {size.features}")
        world.fill_history(folder, size.shape)
        ours = [_publish(setting, server, folder, size) for _ in range(size.runs)]
        payload = _payload_bytes(folder, size.shape)
        setting.show(f"redis-benchmark, {size.requests:,} SET of {payload} bytes")
        rates = [redis_benchmark(server, payload, size.requests) for _ in range(size.runs)]
        feast = _feast(setting, server, folder, size) if size.peer else {}
        version = server.version
    measured = _against_set(size, ours, [rate for rate in rates if rate is not None])
    measured += _against_feast(size, ours, feast)
    notes = [f"Redis {version}, a row is {payload} bytes", *(f"ours: {peer.spent(one)}" for one in ours)]
    notes += [f"Feast, {way}: {peer.spent(one)}" for way, reports in feast.items() for one in reports]
    if None in rates:
        notes.append("redis-benchmark is not on PATH, so nothing is compared with it")
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=notes)


def _publish(setting: Setting, server: RedisServer, folder: Path, size: Size) -> dict[str, Any]:
    """A publish of everything into the empty server, with what the server spent on it."""
    setting.show(f"publish, {size.meters:,} of {size.rows:,} rows")
    world.forget_publish(folder, size.shape)
    server.empty()
    before, cpu = server.used_bytes(), server.cpu_s()
    report = in_process("publish", folder, size.shape)
    return report | {"server_cpu_s": server.cpu_s() - cpu, "bytes": server.used_bytes() - before}


def _feast(setting: Setting, server: RedisServer, folder: Path, size: Size) -> dict[str, list[dict[str, Any]]]:
    """Reports of each of Feast's ways; Unequal unless it serves what we do. The server must hold our publish."""
    shape = size.shape
    setting.show("publish, for what is served")
    _publish(setting, server, folder, size)
    with world.open_store(folder, shape) as store:
        expected = peer.served(store, shape)
    latest = world.write_latest(folder, shape, setting.work / "latest.parquet")
    reports: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(size.runs):
        for way in WAYS:
            setting.show(f"Feast, {WAYS[way]}")
            sample = setting.work / "sample.parquet"
            pq.write_table(expected.select([world.KEY]), sample)
            server.empty()
            before, cpu = server.used_bytes(), server.cpu_s()
            report = peer.run(setting, server, shape, latest, way=way, sample=sample)
            spent = {"server_cpu_s": server.cpu_s() - cpu, "bytes": server.used_bytes() - before}
            peer.require_same(expected, sample, f"{NAME}, Feast's {way}")
            reports[way].append(report | spent)
    return reports


def _payload_bytes(folder: Path, shape: Shape) -> int:
    """Bytes of one packed row; all are as long, since every feature is a float32."""
    with world.open_store(folder, shape) as store:
        _, rows = next(iter(store.repository.online.scan(f"{world.VIEW}@1", 1)))
    return len(rows[0].as_py())


def _against_set(size: Size, ours: list[dict[str, Any]], rates: list[float]) -> list[Measured]:
    times = _times(ours)
    measured = [
        Measured(what="rows/s", value=size.meters / times.best, unit="rows/s", detail=times.says()),
        Measured(what="bytes of a row", value=min(one["bytes"] for one in ours) / size.meters, unit="bytes"),
    ]
    if rates:
        share = size.meters / times.best / max(rates)
        what = "against redis-benchmark -t set -P 200 -c 1"
        detail = f"{max(rates):,.0f} SET/s"
        measured.append(Measured(what=what, value=share, unit="x", required=AGAINST_SET, detail=detail))
    return measured


def _against_feast(size: Size, ours: list[dict[str, Any]], feast: dict[str, list[dict[str, Any]]]) -> list[Measured]:
    if not feast:
        return []
    measured = []
    for way, reports in feast.items():
        times = _times(reports)
        measured.append(
            Measured(
                what=f"against Feast's {WAYS[way]}",
                value=times.best / _times(ours).best,
                unit="x",
                required=AGAINST_FEAST if way == "materialize" else None,
                detail=f"{size.meters / times.best:,.0f} rows/s, {times.says()}",
            )
        )
    theirs = min(one["bytes"] for reports in feast.values() for one in reports)
    share = min(one["bytes"] for one in ours) / theirs
    detail = f"Feast: {theirs / size.meters:,.0f} bytes"
    what = "bytes of a row against Feast's"
    return [*measured, Measured(what=what, value=share, unit="x", required=BYTES_MAX, sense="at most", detail=detail)]


def _times(reports: list[dict[str, Any]]) -> Times:
    return Times(tuple(one["s"] for one in reports))
