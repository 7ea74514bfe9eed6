"""The main job on the real flights of 2013: the demo in all, and the training set of the whole year."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Measured, Result, Setting, Unequal, timed
from featurestore import FeatureStore, FixedClock

NAME = "flights"
WHAT = "demo of the README, and the training set of the whole year"
SERVICE = "departure_delay"
#: When all of the year is known: the last arrivals land in January.
AFTER = datetime(2014, 2, 1, tzinfo=UTC)
DEMO_S_MAX = 60.0
TRAINING_SET_S_MAX = 5.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Rows of the spine (None: all departures of the year), and how often it is asked."""

    spine_rows: int | None
    runs: int


SIZES = {
    "tiny": Size(spine_rows=500, runs=1),
    "small": Size(spine_rows=50_000, runs=2),
    "full": Size(spine_rows=None, runs=3),
}


def run(setting: Setting) -> Result:
    """The demo's seconds; then, with the whole year loaded, those of the training set and of its export."""
    size = SIZES[setting.size]
    folder = setting.work / "flights"
    setting.show("running the demo")
    demo = _demo(folder)
    with FeatureStore(folder, clock=FixedClock(AFTER)) as store:
        setting.show("loading the rest of the year")
        outcome = store.materialize_incremental()
        if outcome.errors:
            raise outcome.errors[0]
        spine = folder / "data" / "spine.parquet"
        departures = pq.ParquetFile(folder / "data" / "departures.parquet").read()
        pq.write_table(departures.slice(0, size.spine_rows), spine)
        first = store.get_historical_features(spine, SERVICE)
        setting.show(f"training sets of {first.table.num_rows:,} rows, {size.runs} times")
        builds = timed(lambda: store.get_historical_features(spine, SERVICE), size.runs)
        exports = timed(lambda: first.write(folder / "year.parquet"), size.runs)
        _require_complete(first.table, spine, folder / "year.parquet", store)
        views = len(first.query.views)
    rows, columns = first.table.num_rows, len(first.outputs)
    return Result(
        name=NAME,
        sizes={**asdict(size), "spine_rows": rows, "views": views, "outputs": columns},
        measured=[
            Measured(
                what="demo, all steps after installation",
                value=sum(step["seconds"] for step in demo["steps"]),
                unit="s",
                required=DEMO_S_MAX,
                sense="at most",
            ),
            Measured(
                what=f"get_historical_features, {rows:,} rows, {views} views, {columns} columns",
                value=builds.best,
                unit="s",
                required=TRAINING_SET_S_MAX,
                sense="at most",
                detail=f"{builds.median:.2f} by median",
            ),
            Measured(
                what="export to Parquet with its manifest",
                value=exports.best,
                unit="s",
                detail=f"{exports.median:.2f} by median",
            ),
        ],
        notes=[f"demo, {step['name']}: {step['seconds']:.2f} s, {step['what']}" for step in demo["steps"]],
    )


def _demo(folder: Path) -> dict[str, Any]:
    """The demo's report; Unequal when it found a difference."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "featurestore.cli.main", "--json", "demo", str(folder)]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    if done.returncode == 1:
        raise Unequal(f"the demo found a difference: {done.stdout}")
    done.check_returncode()
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _require_complete(table: pa.Table, spine: Path, exported: Path, store: FeatureStore) -> None:
    """Unequal unless the spine's columns stand unchanged in the set, and its manifest rebuilds it."""
    asked = pq.ParquetFile(spine).read()
    if not table.select(asked.column_names).equals(asked):
        raise Unequal("the training set does not hold the spine's rows in the spine's order")
    if differences := store.verify_manifest(f"{exported}.manifest.json", spine=spine):
        raise Unequal(f"the export does not rebuild: {'; '.join(differences)}")
