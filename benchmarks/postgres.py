"""Postgres as the offline store beside DuckDB, reported only: the load, and a training set over what was loaded.

Both load the same Parquet source through the gate, in a process of its own each; both training sets are of the same
spine and must be equal, bit for bit. The server runs on this machine with the settings that it comes with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting, in_turn, ratio, require_equal
from benchmarks.servers import postgres_server
from benchmarks.world import Shape
from benchmarks.write_step import in_process
from featurestore import FeatureStore

NAME = "postgres"
WHAT = "load and training set on Postgres, beside DuckDB"
STORES = ("DuckDB", "Postgres")


@dataclass(frozen=True, kw_only=True)
class Size:
    """The source, the spine over it, and how often the training set is made."""

    rows: int
    meters: int
    features: int
    spine_rows: int
    runs: int

    @property
    def shape(self) -> Shape:
        """The source alone."""
        return Shape(rows=self.rows, meters=self.meters, features=self.features)


SIZES = {
    "tiny": Size(rows=1_000, meters=50, features=3, spine_rows=200, runs=1),
    "small": Size(rows=100_000, meters=10_000, features=50, spine_rows=10_000, runs=2),
    "full": Size(rows=1_000_000, meters=100_000, features=50, spine_rows=100_000, runs=3),
}


def run(setting: Setting) -> Result:
    """Rows per second of the load on each, seconds of the training set, and how many times DuckDB's that is."""
    size = SIZES[setting.size]
    spine = world.make_spine(size.shape, size.spine_rows, size.meters)
    measured = []
    with postgres_server() as url:
        folders = {store: _repository(setting, store, url, size) for store in STORES}
        for store, folder in folders.items():
            setting.show(f"{store}: load, {size.rows:,} rows x {size.features}")
            report = in_process("load", folder, size.shape)
            detail = f"{report['s']:.2f} s, {report['cpu_s']:.2f} s of processor, {report['rss'] / (1 << 20):.0f} MiB"
            what, rate = f"{store}: load {size.rows:,}", size.rows / report["s"]
            measured.append(Measured(what=what, value=rate, unit="rows/s", detail=detail))
        with (
            world.open_store(folders["DuckDB"], size.shape) as duckdb,
            world.open_store(folders["Postgres"], size.shape) as postgres,
        ):
            sides = {
                "DuckDB": lambda: _training_set(duckdb, spine),
                "Postgres": lambda: _training_set(postgres, spine),
            }
            require_equal(sides["DuckDB"](), sides["Postgres"](), NAME)
            setting.show(f"training sets of {size.spine_rows:,} rows, {size.runs} rounds")
            times = in_turn(sides, size.runs)
    what = f"training set, {size.spine_rows:,} on {size.rows:,}"
    measured += [
        Measured(what=f"{store}: {what}", value=taken.best, unit="s", detail=taken.says())
        for store, taken in times.items()
    ]
    measured.append(ratio(f"{what}: Postgres against DuckDB", times["Postgres"], times["DuckDB"]))
    return Result(name=NAME, sizes=asdict(size), measured=measured)


def _repository(setting: Setting, store: str, url: str, size: Size) -> Path:
    """An applied repository with its source, on that offline store."""
    folder = setting.work / f"postgres-{store}"
    world.make_repository(folder, size.features, postgres_url=url if store == "Postgres" else None)
    world.write_source(folder, size.shape)
    with world.open_store(folder, size.shape) as opened:
        opened.apply()
    return folder


def _training_set(store: FeatureStore, spine: pa.Table) -> pa.Table:
    return store.get_historical_features(spine, world.SERVICE).table
