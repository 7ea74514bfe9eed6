"""Verify: how many entities a second it compares between history and the online store, and how that grows.

Every entity stands online and equals its row in history, so each is compared in full; verify says so itself, or there
is no figure. Each step runs in a process of its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import world
from benchmarks.load import GROWTH_MAX, VERIFY_ROWS_S_MIN
from benchmarks.measure import Measured, Result, Setting
from benchmarks.servers import RedisServer, redis_server
from benchmarks.world import Shape
from benchmarks.write_step import in_process

NAME = "verify"
WHAT = "verify of DuckDB against SQLite and Redis: rows/s, and ten times the rows"
STORES = ("SQLite", "Redis")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of entities, each with one row; the last is ten times the first."""

    meters: tuple[int, int]
    features: int


SIZES = {
    "tiny": Size(meters=(300, 3_000), features=3),
    "small": Size(meters=(20_000, 200_000), features=50),
    "full": Size(meters=(100_000, 1_000_000), features=50),
}


def run(setting: Setting) -> Result:
    """Rows per second with each online store and size, and the time of ten times the rows."""
    size = SIZES[setting.size]
    measured, notes = [], []
    for store in STORES:
        with redis_server(setting.work / "redis") if store == "Redis" else nullcontext() as server:
            reports = [_verified(setting, store, server, meters, size.features) for meters in size.meters]
        measured += [_rate(store, meters, report) for meters, report in zip(size.meters, reports, strict=True)]
        first, last = reports
        growth, what = last["s"] / first["s"], f"{store}: time of ten times the rows"
        measured.append(Measured(what=what, value=growth, unit="x", required=GROWTH_MAX, sense="at most"))
        notes.append(f"{store}: {first['cpu_s']:.2f} and {last['cpu_s']:.2f} s of processor")
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=notes)


def _verified(setting: Setting, store: str, server: RedisServer | None, meters: int, features: int) -> dict[str, Any]:
    shape = Shape(rows=meters, meters=meters, features=features)
    folder = setting.work / f"verify-{store}-{meters}"
    world.make_repository(folder, features, redis_url=server.url if server else None)
    setting.show(f"{store}: publishing {meters:,} entities x {features}")
    if server:
        server.empty()
    world.fill_history(folder, shape)
    in_process("publish", folder, shape)
    setting.show(f"{store}: verify, {meters:,} entities")
    return in_process("verify", folder, shape)


def _rate(store: str, meters: int, report: dict[str, Any]) -> Measured:
    return Measured(
        what=f"{store}: verify {meters:,}",
        value=meters / report["s"],
        unit="rows/s",
        required=VERIFY_ROWS_S_MIN,
        detail=f"{report['s']:.2f} s, {report['rss'] / (1 << 20):.0f} MiB",
    )
