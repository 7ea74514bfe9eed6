"""Training sets against the wide ASOF join that one would write by hand, on the same DuckDB file.

Both sides open the file, use as many threads and as much memory, and hand an Arrow table over: the spine's columns,
then the features. Ours comes in the order of the spine; by hand that takes an ORDER BY, measured with and without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks import world
from benchmarks.measure import Result, Setting, in_turn, ratio, require_equal
from benchmarks.world import Shape

THREADS = 2
#: Enough for the join by hand to stay in memory.
MEMORY_LIMIT = "8GB"


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
    with world.open_store(folder, size.shape) as store:
        path = store.repository.settings.offline.path

        def ours() -> pa.Table:
            return store.get_historical_features(spine, world.SERVICE).table

        def by_hand(*, ordered: bool) -> pa.Table:
            return wide_asof(path, size, spine, ordered=ordered)

        show("comparing the results of both sides")
        require_equal(ours(), by_hand(ordered=True), name)
        show(f"timing, {size.runs} rounds")
        times = in_turn(
            {
                "ours": ours,
                "by hand": lambda: by_hand(ordered=False),
                "by hand, ordered": lambda: by_hand(ordered=True),
            },
            size.runs,
        )
    scale = f"{size.spine_rows:,} of {size.asked_meters:,} entities on {size.rows:,} x {size.features}"
    return Result(
        name=name,
        sizes={**asdict(size), "threads": THREADS, "memory_limit": MEMORY_LIMIT},
        measured=[
            ratio(f"{scale}: against the join by hand", times["by hand"], times["ours"], required=required),
            ratio(f"{scale}: against it in spine order", times["by hand, ordered"], times["ours"]),
        ],
        notes=[f"{side}: {taken.says()}" for side, taken in times.items()],
    )


def wide_asof(path: Path, size: Size, spine: pa.Table, *, ordered: bool) -> pa.Table:
    """The join as a person writes it: one ASOF LEFT JOIN that carries every feature."""
    features = ", ".join(f"history.{name}" for name in size.shape.fields)
    columns = ", ".join(f"spine.{name}" for name in spine.column_names)
    table = f'"{world.PROJECT}"."{world.VIEW}__v1"'
    asking = spine.append_column("nr", pa.array(range(spine.num_rows))) if ordered else spine
    with duckdb.connect(path, read_only=True, config={"threads": THREADS, "memory_limit": MEMORY_LIMIT}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("spine", asking)
        joined = connection.sql(
            f"SELECT {columns}, {features} FROM spine ASOF LEFT JOIN {table} AS history"
            f" ON spine.{world.KEY} = history.{world.KEY} AND spine.as_of >= history.event_timestamp"
            + (" ORDER BY spine.nr" if ordered else "")
        )
        return joined.to_arrow_table()
