"""The write path: Parquet through the gate into history, publish, verify; and how time and memory grow with the rows.

Each load runs in a process of its own under RLIMIT_AS, so that its peak is its own and more memory than promised is an
error. Before a figure is given, history is compared with the source, row by row and bit by bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting
from benchmarks.world import Shape
from benchmarks.write_step import in_process

NAME = "load"
WHAT = "load, publish and verify: rows/s, growth, peak memory under RLIMIT_AS"
ADDRESS_SPACE_BYTES = 2 << 30
MIB = 1 << 20
VERIFY_ROWS_S_MIN = 300_000
GROWTH_MAX = 12.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of rows to load, the smallest first and the last ten times it; entities are the same in all."""

    rows: tuple[int, ...]
    meters: int
    features: int
    address_space_bytes: int = ADDRESS_SPACE_BYTES


SIZES = {
    "tiny": Size(rows=(500, 5_000), meters=500, features=3),
    "small": Size(rows=(50_000, 500_000), meters=20_000, features=50),
    "full": Size(rows=(500_000, 1_000_000, 5_000_000), meters=100_000, features=50),
}


def run(setting: Setting) -> Result:
    """Rows per second of each step and size, and what more rows cost."""
    size = SIZES[setting.size]
    reports = [_measure(setting, size, rows) for rows in size.rows]
    measured = [one for report in reports for one in _figures(report, size)]
    first, last = reports[0], reports[-1]
    times = last["rows"] / first["rows"]
    growth = last["load_s"] / first["load_s"]
    measured.append(
        Measured(
            what=f"load time of {times:g}x the rows",
            value=growth,
            unit="x",
            required=GROWTH_MAX / 10 * times,
            sense="at most",
        )
    )
    measured.append(
        Measured(what=f"peak memory of {times:g}x the rows", value=last["load_rss"] / first["load_rss"], unit="x")
    )
    notes = [f"{report['rows']:,} rows: history equals the source, verify found no difference" for report in reports]
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=notes)


def _measure(setting: Setting, size: Size, rows: int) -> dict[str, Any]:
    """One repository taken through load, publish and verify, each step in a process of its own."""
    shape = Shape(rows=rows, meters=size.meters, features=size.features)
    folder = world.make_repository(setting.work / f"load-{rows}", size.features)
    setting.show(f"writing a source of {rows:,} rows x {size.features}")
    world.write_source(folder, shape)
    with world.open_store(folder, shape) as store:
        store.apply()
    report: dict[str, Any] = {"rows": rows}
    for step in ("load", "publish", "verify"):
        setting.show(f"{step}, {rows:,} rows")
        report |= {
            f"{step}_{name}": value for name, value in in_process(step, folder, shape, size.address_space_bytes).items()
        }
    return report


def _figures(report: dict[str, Any], size: Size) -> list[Measured]:
    rows, entities = report["rows"], report["publish_rows"]
    return [
        Measured(
            what=f"load {rows:,} x {size.features}",
            value=rows / report["load_s"],
            unit="rows/s",
            detail=f"{report['load_s']:.2f} s",
        ),
        Measured(
            what=f"load {rows:,} x {size.features}, peak memory",
            value=report["load_rss"] / MIB,
            unit="MiB",
            required=size.address_space_bytes / MIB,
            sense="at most",
            detail=f"RLIMIT_AS {size.address_space_bytes / MIB:.0f} MiB",
        ),
        Measured(
            what=f"publish {entities:,} x {size.features} of {rows:,} to SQLite",
            value=entities / report["publish_s"],
            unit="rows/s",
            detail=f"{report['publish_s']:.2f} s, {report['publish_rss'] / MIB:.0f} MiB",
        ),
        Measured(
            what=f"verify {entities:,} x {size.features} of {rows:,}",
            value=entities / report["verify_s"],
            unit="rows/s",
            required=VERIFY_ROWS_S_MIN,
            detail=f"{report['verify_s']:.2f} s, {report['verify_rss'] / MIB:.0f} MiB",
        ),
    ]
