"""Feast's side of `publish`, `load-publish`, `serving`: a script for the Python of its own environment, see peer.py.

`python feast_side.py REQUEST`, JSON in and out. Imports nothing of ours. Settings are the quickest that its
documentation has: no key ttl, no check of stored timestamps (`skip_dedup`), the local engine, latest rows only.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

VIEW, KEY, EVENT = "readings", "meter", "event_timestamp"


def main(request: str) -> None:
    """Open a store on the asked file, run the asked way, look the sample up, print what it took.

    The way `serve` leaves rows and a repository behind for `feast serve`, and prints nothing.
    """
    asked = json.loads(request)
    store, view = _store(asked)
    end = datetime.fromisoformat(asked["end"])
    if asked["way"] == "serve":
        _prepare_serving(store, view, asked, end)
        return
    run = WAYS[asked["way"]](store, view, asked["source"], end)
    redis = importlib.import_module("redis").Redis(port=asked["port"])
    redis.execute_command("FLUSHALL", "SYNC")
    started, cpu = time.perf_counter(), time.process_time()
    run()
    report = {"s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "rows": redis.dbsize()}
    report["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if asked["sample"]:
        _look_up(store, asked)
    print(json.dumps(report))


def _store(asked: dict[str, Any]) -> tuple[Any, Any]:
    feast = importlib.import_module("feast")
    types = importlib.import_module("feast.types")
    folder = Path(asked["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    registry = folder / "registry.db"
    registry.unlink(missing_ok=True)
    config = feast.RepoConfig(
        project="bench",
        provider="local",
        registry=str(registry),
        offline_store={"type": asked["offline"]},
        online_store={
            "type": "redis",
            "connection_string": f"127.0.0.1:{asked['port']}",
            "skip_dedup": True,
        },
        batch_engine={"type": "local"},
        materialization={"pull_latest_features": True},
        entity_key_serialization_version=3,
    )
    meter = feast.Entity(name=KEY, join_keys=[KEY], value_type=feast.ValueType.INT64)
    view = feast.FeatureView(
        name=VIEW,
        entities=[meter],
        ttl=timedelta(0),
        schema=[
            feast.Field(name=KEY, dtype=types.Int64),
            *(feast.Field(name=name, dtype=types.Float32) for name in asked["features"]),
        ],
        source=feast.FileSource(path=asked["source"], timestamp_field=EVENT),
    )
    store = feast.FeatureStore(config=config)
    store.apply([meter, view])
    return store, store.get_feature_view(VIEW)


def _materialize(store: Any, view: Any, source: str, end: datetime) -> Any:
    """From the file to Redis."""
    return lambda: store.materialize(datetime(2019, 12, 31, tzinfo=UTC), end)


def _write_batch(store: Any, view: Any, source: str, end: datetime) -> Any:
    """Feast's own row objects, made before the clock starts."""
    table = importlib.import_module("pyarrow.parquet").read_table(source)
    convert = importlib.import_module("feast.utils")._convert_arrow_to_proto
    types = importlib.import_module("feast.value_type").ValueType
    rows = convert(table.combine_chunks(), view, {KEY: types.INT64})
    provider = store._get_provider()
    return lambda: provider.online_write_batch(store.config, view, rows, None)


WAYS = {"materialize": _materialize, "write_batch": _write_batch}


def _prepare_serving(store: Any, view: Any, asked: dict[str, Any], end: datetime) -> None:
    """Write the rows beside what the server holds already, and the settings that `feast serve` reads."""
    WAYS["write_batch"](store, view, asked["source"], end)()
    settings = {
        "project": "bench",
        "provider": "local",
        "registry": "registry.db",
        "offline_store": {"type": asked["offline"]},
        "online_store": {"type": "redis", "connection_string": f"127.0.0.1:{asked['port']}"},
        "entity_key_serialization_version": 3,
    }
    # JSON is YAML.
    (Path(asked["folder"]) / "feature_store.yaml").write_text(json.dumps(settings), encoding="utf-8")


def _look_up(store: Any, asked: dict[str, Any]) -> None:
    """What Feast serves for the keys in the file `sample`, put in their place as keys and float32 columns."""
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    keys = pq.read_table(asked["sample"]).column(KEY)
    answer = store.get_online_features(
        features=[f"{VIEW}:{name}" for name in asked["features"]],
        entity_rows=[{KEY: key} for key in keys.to_pylist()],
    ).to_dict()
    columns = {name: pa.array(answer[name], pa.float32()) for name in asked["features"]}
    pq.write_table(pa.table({KEY: pa.array(answer[KEY], pa.int64()), **columns}), asked["sample"])


if __name__ == "__main__":
    main(sys.argv[1])
