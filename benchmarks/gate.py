"""What the gate costs: its time over the batches of a source, against the time of the whole load of the same source.

Every field is a float32 with two bounds. The load runs as `load` runs it, in a process of its own; then the gate alone
checks the same batches, which takes from it what a load does meanwhile, on the other core.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting, Unequal
from benchmarks.world import Shape
from benchmarks.write_step import in_process
from featurestore.clock import to_us
from featurestore.ingest.gate import Gate
from featurestore.ingest.source_batch import RowWindow
from materialization.reading import whole_window

NAME = "gate"
WHAT = "the gate's share of a load, every numeric field bounded"
SHARE_MAX = 0.25


@dataclass(frozen=True, kw_only=True)
class Size:
    """Rows to load, and how many fields each has."""

    rows: int
    meters: int
    features: int


SIZES = {
    "tiny": Size(rows=2_000, meters=100, features=3),
    "small": Size(rows=500_000, meters=20_000, features=50),
    "full": Size(rows=5_000_000, meters=100_000, features=50),
}


def run(setting: Setting) -> Result:
    """The gate's share of the time of a load."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.rows, meters=size.meters, features=size.features)
    folder = world.make_repository(setting.work / "gate", size.features)
    setting.show(f"writing a source of {size.rows:,} rows x {size.features}")
    world.write_source(folder, shape)
    with world.open_store(folder, shape) as store:
        store.apply()
    setting.show(f"load, {size.rows:,} rows")
    load_s = in_process("load", folder, shape)["s"]
    setting.show(f"gate, {size.rows:,} rows")
    gate_s = _gate_s(folder, shape)
    what = f"{size.rows:,} x {size.features}, {2 * size.features} bounds"
    return Result(
        name=NAME,
        sizes=asdict(size),
        measured=[
            Measured(what=f"gate {what}", value=size.rows / gate_s, unit="rows/s", detail=f"{gate_s:.2f} s"),
            Measured(
                what=f"gate's share of load {what}",
                value=gate_s / load_s,
                unit="x",
                required=SHARE_MAX,
                sense="at most",
                detail=f"load {load_s:.2f} s",
            ),
        ],
        notes=["every row came through, in the gate alone as in the load"],
    )


def _gate_s(folder: Path, shape: Shape) -> float:
    """Seconds in the gate, over all batches of the source; Unequal unless every row comes through."""
    with world.open_store(folder, shape) as store:
        repository = store.repository
        view = repository.registry.view(world.VIEW)
        gate = Gate(view, "benchmark", to_us(repository.clock.now()))
        reading = whole_window(view, folder, repository.settings.materialization.batch_rows, RowWindow())
        spent, rows = 0.0, 0
        for windowed in reading.batches():
            begun = time.perf_counter()
            passed = gate.check(windowed.batch, windowed.window)
            spent += time.perf_counter() - begun
            rows += passed.rows.num_rows
    if rows != shape.rows:
        raise Unequal(f"{shape.rows} rows were to come through the gate: {rows}")
    return spent
