"""One step of the write path in a process of its own: `python -m benchmarks.write_step REQUEST`; used by `load`.

REQUEST is JSON: step (load, publish or verify), folder, shape, address_space_bytes. Prints seconds, rows and peak RSS.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine, world
from benchmarks.measure import Unequal, timed
from benchmarks.world import Shape
from featurestore import FeatureStore

# What the steps import when first used, so that it is not timed.
from featurestore.offline import duckdb as _offline  # noqa: F401
from featurestore.online import sqlite as _online  # noqa: F401
from featurestore.parity import verify as _parity  # noqa: F401
from materialization import job as _job  # noqa: F401


def load(store: FeatureStore, shape: Shape) -> None:
    """Source to history; Unequal unless every row is added."""
    outcome = store.materialize_incremental(publish=False)
    if outcome.errors:
        raise outcome.errors[0]
    (view,) = outcome.views
    if view.loaded is None or view.loaded.added != shape.rows:
        raise Unequal(f"{shape.rows} rows were to be added: {view.loaded}")


def publish(store: FeatureStore, shape: Shape) -> None:
    """History to the online store; Unequal unless every entity is written."""
    outcome = store.materialize_incremental(load=False)
    if outcome.errors:
        raise outcome.errors[0]
    (view,) = outcome.views
    if view.published is None or view.published.rows_written != shape.meters:
        raise Unequal(f"{shape.meters} entities were to be published: {view.published}")


def verify(store: FeatureStore, shape: Shape) -> None:
    """Online against history; Unequal unless every entity is equal."""
    (parity,) = store.verify()
    if parity.faults.total() or parity.equal != shape.meters:
        raise Unequal(f"{shape.meters} entities were to be equal: {parity}")


#: A load or a publish is done once; nothing is left to do for a second.
RUNS = {"load": 1, "publish": 1, "verify": 3}
STEPS: dict[str, Callable[[FeatureStore, Shape], None]] = {"load": load, "publish": publish, "verify": verify}


def main(request: str) -> None:
    """Run the step and print its report."""
    asked = json.loads(request)
    shape, limit = Shape(**asked["shape"]), asked["address_space_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with world.open_store(Path(asked["folder"]), shape) as store:
        step = STEPS[asked["step"]]
        times = timed(lambda: step(store, shape), RUNS[asked["step"]])
    report = {"s": times.best, "rows": shape.rows if asked["step"] == "load" else shape.meters}
    report["rss"] = machine.peak_rss_bytes()
    if asked["step"] == "load":
        world.require_history(Path(asked["folder"]), shape)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
