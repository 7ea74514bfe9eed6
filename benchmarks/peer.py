"""Feast 0.67 as the other side: its own environment below --keep, and calls of feast_side.py in it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import environment, world
from benchmarks.measure import SEED, Setting, require_equal
from benchmarks.servers import RedisServer
from benchmarks.world import Shape
from featurestore import FeatureStore

REQUIREMENTS = ("feast[redis,duckdb]==0.67.*", "duckdb<2")
SAMPLE = 1_000


def interpreter(setting: Setting) -> Path:
    """Feast's Python."""
    return environment.interpreter(setting.keep / "feast-0.67", REQUIREMENTS, setting.show)


def run(
    setting: Setting,
    server: RedisServer,
    shape: Shape,
    source: Path,
    *,
    way: str,
    offline: str = "duckdb",
    sample: Path | None = None,
) -> dict[str, Any]:
    """One way of Feast in a process of its own into the emptied server: s, cpu_s, rss, rows.

    `sample` names a Parquet file of keys, in whose place stands afterwards what Feast serves for them.
    """
    request = {
        "folder": str(setting.work / "feast"),
        "source": str(source),
        "features": shape.fields,
        "end": shape.end.isoformat(),
        "port": server.port,
        "way": way,
        "offline": offline,
        "sample": str(sample) if sample else None,
    }
    script = Path(__file__).with_name("feast_side.py")
    done = subprocess.run(
        [interpreter(setting), script, json.dumps(request)], check=True, stdout=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def served(store: FeatureStore, shape: Shape) -> pa.Table:
    """A sample of the entities with the values that we serve."""
    keys = np.random.default_rng(SEED).choice(shape.meters, size=min(SAMPLE, shape.meters), replace=False)
    answer = store.get_online_features(world.SERVICE, {world.KEY: keys.astype(np.int64)}).to_arrow(keys=True)
    return answer.select([world.KEY, *shape.fields])


def require_same(ours: pa.Table, sample: Path, what: str) -> None:
    """Unequal unless Feast served the bits that we do."""
    require_equal(ours, pq.ParquetFile(sample).read(), what)


def spent(report: dict[str, Any]) -> str:
    """What a run of either side took, for people."""
    wall, memory = f"{report['s']:.2f} s, {report['cpu_s']:.2f} s of processor", report["rss"] / (1 << 20)
    server = f", {report['server_cpu_s']:.2f} s of the server's" if "server_cpu_s" in report else ""
    return f"{wall}{server}, peak {memory:.0f} MiB"
