"""Training sets against the wide ASOF join that one would write by hand, on the same DuckDB file.

Both sides hold the file open, warm, with as many threads and as much memory, and hand an Arrow table over: the spine's
columns, then the features. Ours comes in the order of the spine; by hand that takes an ORDER BY, measured with and
without. Ours is the whole call of the facade: reading the spine, join, assembly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks import world
from benchmarks.measure import Result, Setting, in_turn, ratio, require_equal
from benchmarks.world import Shape

THREADS = 2
#: Enough for the join by hand to stay in memory.
MEMORY_LIMIT = "8GB"
OURS, BY_HAND, ORDERED = "ours", "by hand", "by hand, in spine order"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A history, and the spine that asks it."""

    rows: int
    meters: int
    features: int
    spine_rows: int
    asked_meters: int
    runs: int

    @property
    def shape(self) -> Shape:
        """The history alone."""
        return Shape(rows=self.rows, meters=self.meters, features=self.features)


NAME = "point-in-time"
WHAT = "training set of 50 features against the wide ASOF join by hand"
REQUIRED = 2.5
SIZES = {
    "tiny": Size(rows=2_000, meters=50, features=3, spine_rows=300, asked_meters=50, runs=1),
    "small": Size(rows=500_000, meters=10_000, features=50, spine_rows=50_000, asked_meters=10_000, runs=3),
    "full": Size(rows=5_000_000, meters=100_000, features=50, spine_rows=500_000, asked_meters=100_000, runs=5),
}


def run(setting: Setting) -> Result:
    """The ratio to the join by hand."""
    size = SIZES[setting.size]
    folder = world.make_repository(
        setting.work / "point_in_time", size.features, threads=THREADS, memory_limit=MEMORY_LIMIT
    )
    setting.show(f"writing a history of {size.rows:,} rows x {size.features}")
    world.fill_history(folder, size.shape)
    return compare(NAME, folder, size, REQUIRED, setting.show)


def compare(name: str, folder: Path, size: Size, required: float | None, show: Callable[[str], None]) -> Result:
    """Both sides on the history in `folder`; Unequal when they disagree."""
    spine = world.make_spine(size.shape, size.spine_rows, size.asked_meters)
    offline = folder / "data" / "offline.duckdb"
    with (
        world.open_store(folder, size.shape) as store,
        store.repository.offline.open(write=False),
        own_connection(offline) as connection,
    ):
        sides: dict[str, Callable[[], pa.Table]] = {
            OURS: lambda: store.get_historical_features(spine, world.SERVICE).table,
            BY_HAND: lambda: wide_asof(connection, size, spine, ordered=False),
            ORDERED: lambda: wide_asof(connection, size, spine, ordered=True),
        }
        show("comparing the results of both sides")
        require_equal(sides[OURS](), sides[ORDERED](), name)
        show(f"timing, {size.runs} rounds")
        times = in_turn(sides, size.runs)
    scale = f"{size.spine_rows:,} of {size.asked_meters:,} entities on {size.rows:,} x {size.features}"
    return Result(
        name=name,
        sizes={**asdict(size), "threads": THREADS, "memory_limit": MEMORY_LIMIT},
        measured=[
            ratio(f"{scale}: against the join by hand", times[BY_HAND], times[OURS], required=required),
            ratio(f"{scale}: against it in spine order", times[ORDERED], times[OURS]),
        ],
        notes=[f"{side}: {taken.says()}" for side, taken in times.items()],
    )


def wide_asof(connection: duckdb.DuckDBPyConnection, size: Size, spine: pa.Table, *, ordered: bool) -> pa.Table:
    """The join as a person writes it: one ASOF LEFT JOIN that carries every feature."""
    features = ", ".join(f"history.{name}" for name in size.shape.fields)
    columns = ", ".join(f"spine.{name}" for name in spine.column_names)
    table = f'"{world.PROJECT}"."{world.VIEW}__v1"'
    connection.register("spine", spine.append_column("nr", pa.array(np.arange(spine.num_rows))))
    joined = connection.sql(
        f"SELECT {columns}, {features} FROM spine ASOF LEFT JOIN {table} AS history"
        f" ON spine.{world.KEY} = history.{world.KEY} AND spine.as_of >= history.event_timestamp"
        + (" ORDER BY spine.nr" if ordered else "")
    )
    return joined.to_arrow_table()


@contextmanager
def own_connection(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The same file under another name: DuckDB lets a process open one path with one configuration only."""
    other = path.with_name("by_hand.duckdb")
    other.unlink(missing_ok=True)
    os.link(path, other)
    try:
        with duckdb.connect(other, read_only=True) as connection:
            connection.execute(f"SET threads = {THREADS}; SET memory_limit = '{MEMORY_LIMIT}'; SET TimeZone = 'UTC'")
            yield connection
    finally:
        other.unlink()
