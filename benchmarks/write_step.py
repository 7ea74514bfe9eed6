"""One step of the write path in a process of its own: `in_process`, or `python -m benchmarks.write_step REQUEST`.

REQUEST is JSON: step (a name of STEPS), folder, shape, address_space_bytes (null: unlimited). The report is JSON too:
s (best run), cpu_s (of the process, all runs together, over their number), rows and rss (peak, bytes).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The imports nobody uses are those that the steps make when first needed, so that these are not timed.
from sqlglot.dialects import duckdb as _duckdb_sql  # noqa: F401
from sqlglot.dialects import postgres as _postgres_sql  # noqa: F401

from benchmarks import machine, world
from benchmarks.measure import Unequal, timed
from benchmarks.world import Shape
from featurestore import FeatureStore
from featurestore.offline import duckdb as _duckdb  # noqa: F401
from featurestore.offline import postgres as _postgres  # noqa: F401
from featurestore.online import redis as _redis  # noqa: F401
from featurestore.online import sqlite as _sqlite  # noqa: F401
from featurestore.parity import verify as _parity  # noqa: F401
from featurestore.registry import intents as _intents  # noqa: F401
from materialization import job as _job  # noqa: F401

#: As the command sets it.
ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
#: RLIMIT_AS counts reserved addresses as well as memory; glibc reserves no 64 MiB a thread, so that the limit measures
#: what is used.
FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}


def in_process(step: str, folder: Path, shape: Shape, address_space_bytes: int | None = None) -> dict[str, Any]:
    """The report of a step on the repository in `folder`; CalledProcessError when it fails, or needs more memory."""
    root = Path(__file__).resolve().parents[1]
    request = {"step": step, "folder": str(folder), "shape": asdict(shape), "address_space_bytes": address_space_bytes}
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(root)} | (FEW_ARENAS if address_space_bytes else {})
    command = [sys.executable, "-m", "benchmarks.write_step", json.dumps(request)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def load(store: FeatureStore, shape: Shape) -> None:
    """Source to history; Unequal unless every row is added."""
    outcome = store.materialize_incremental(publish=False)
    if outcome.errors:
        raise outcome.errors[0]
    (view,) = outcome.views
    if view.loaded is None or view.loaded.added != shape.rows:
        raise Unequal(f"{shape.rows} rows were to be added: {view.loaded}")


def publish(store: FeatureStore, shape: Shape, *, load: bool = False) -> None:
    """History to the online store; Unequal unless every entity is written."""
    outcome = store.materialize_incremental(load=load)
    if outcome.errors:
        raise outcome.errors[0]
    (view,) = outcome.views
    if view.published is None or view.published.rows_written != shape.meters:
        raise Unequal(f"{shape.meters} entities were to be published: {view.published}")


def load_and_publish(store: FeatureStore, shape: Shape) -> None:
    """Source to history to the online store, as the job does it by default."""
    publish(store, shape, load=True)


def verify(store: FeatureStore, shape: Shape) -> None:
    """Online against history; Unequal unless every entity is equal."""
    (parity,) = store.verify()
    if parity.faults.total() or parity.equal != shape.meters:
        raise Unequal(f"{shape.meters} entities were to be equal: {parity}")


def validate(store: FeatureStore, shape: Shape) -> None:
    """History against its contract; Unequal unless every row keeps it."""
    result = store.validate(world.VIEW)
    if not result.success or result.rows != shape.rows:
        raise Unequal(f"{shape.rows} rows were to keep their contract: {result.rows}, {result.broken}")


STEPS: dict[str, Callable[[FeatureStore, Shape], None]] = {
    "load": load,
    "publish": publish,
    "load_and_publish": load_and_publish,
    "verify": verify,
    "validate": validate,
}
#: How often a step runs; a load or a publish is done once, nothing is left to do for a second.
RUNS = {"verify": 3}


def main(request: str) -> None:
    """Run the step and print its report."""
    asked = json.loads(request)
    name, folder, shape = asked["step"], Path(asked["folder"]), Shape(**asked["shape"])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if limit := asked["address_space_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    runs = RUNS.get(name, 1)
    with world.open_store(folder, shape) as store:
        cpu = time.process_time()
        times = timed(lambda: STEPS[name](store, shape), runs)
        cpu = time.process_time() - cpu
        in_duckdb = store.repository.settings.offline.kind == "duckdb"
    report = {"s": times.best, "cpu_s": cpu / runs, "rows": shape.rows if name == "load" else shape.meters}
    report["rss"] = machine.peak_rss_bytes()
    if name.startswith("load") and in_duckdb:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # the bound is the step's, not the comparison's
        world.require_history(folder, shape)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
