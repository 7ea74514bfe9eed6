"""Few spine rows on a long history: what a data scientist does all day. The table is kept between runs (--keep)."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import machine, point_in_time, world
from benchmarks.measure import Result, Setting
from benchmarks.point_in_time import MEMORY_LIMIT, THREADS, Size
from featurestore.errors import StoreFull

NAME = "selective"
WHAT = "a small spine on a long history against the wide ASOF join by hand"
REQUIRED = 15.0
#: Bytes a row takes in DuckDB's file, beside the 4 bytes of each feature; measured, rounded up.
ROW_BYTES = 32
#: Room for DuckDB while it writes.
SPARE_BYTES = 1 << 30
#: The same spine rows over fewer and over more entities.
SPREADS = (10, 1)
SIZES = {
    "tiny": Size(rows=3_000, meters=300, features=2, spine_rows=40, asked_meters=20, runs=1),
    "small": Size(rows=2_000_000, meters=20_000, features=10, spine_rows=2_000, asked_meters=2_000, runs=3),
    "full": Size(rows=50_000_000, meters=500_000, features=10, spine_rows=10_000, asked_meters=10_000, runs=3),
}


def run(setting: Setting) -> Result:
    """The ratio to the join by hand, for two numbers of entities; StoreFull when the table does not fit the disk."""
    size = SIZES[setting.size]
    target = setting.keep / f"selective-{size.rows}x{size.features}"
    kept = target / "data" / "offline.duckdb"
    needed = disk_bytes(size)
    _require_disk(setting, needed, kept.stat().st_size if kept.exists() else 0)
    folder = world.make_repository(target, size.features, threads=THREADS, memory_limit=MEMORY_LIMIT)
    setting.show(f"history of {size.rows:,} rows x {size.features} in {folder} (made on the first run)")
    world.fill_history(folder, size.shape)
    found = [
        point_in_time.compare(
            NAME, folder, replace(size, asked_meters=size.asked_meters // spread), REQUIRED, setting.show
        )
        for spread in SPREADS
    ]
    sizes = {**found[-1].sizes, "disk_needed_bytes": needed, "disk_used_bytes": kept.stat().st_size}
    notes = [f"{one.sizes['asked_meters']:,} entities, {note}" for one in found for note in one.notes]
    return Result(
        name=NAME,
        sizes=sizes,
        measured=[measured for one in found for measured in one.measured],
        notes=[*notes, f"the table takes {kept.stat().st_size / 1e9:.2f} GB in {folder}"],
    )


def disk_bytes(size: Size) -> int:
    """What the table takes on disk, and some room to write it."""
    return size.rows * (ROW_BYTES + 4 * size.features) + SPARE_BYTES


def _require_disk(setting: Setting, needed: int, there: int) -> None:
    free = machine.free_disk_bytes(setting.keep)
    if free + there < needed:
        raise StoreFull(
            f"the table of {NAME} needs {needed / 1e9:.1f} GB below {setting.keep}, {free / 1e9:.1f} GB are free; free "
            f"some, name another folder with --keep, or run --size small"
        )
