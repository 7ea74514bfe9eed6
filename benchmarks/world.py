"""Repositories to measure in: meters with float32 readings, all made up from one seed, the same on every machine.

`fill_history` writes a history without the gate, in the shape that loads give it, so that a benchmark of reading does
not wait for one of writing. Every (meter, event time) stands once: a history without ties has one right answer, so that
a join written by hand can be compared with ours bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import SEED, Unequal
from featurestore import FeatureStore, FixedClock
from featurestore.clock import to_us
from featurestore.compiler import names
from featurestore.compiler.names import EVENT

PROJECT = "bench"
VIEW = "readings"
SERVICE = "readings_model"
KEY = "meter"
TIMESTAMP = pa.timestamp("us", "UTC")

START = datetime(2020, 1, 1, tzinfo=UTC)
#: Readings of one meter are an hour apart, give or take.
STEP = timedelta(hours=1)
#: Values lie in [-VALUE_SPAN / 2, VALUE_SPAN / 2), a thousandth apart before they are rounded to float32.
VALUE_SPAN = 1000

_DUCKDB = """\
kind = "duckdb"
threads = {threads}
memory_limit = "{memory_limit}"
"""

_DEFINITIONS = """\
from featurestore import Entity, FeatureService, FeatureView, Field, FileSource, Float32, Int64

meter = Entity(name="meter", join_keys={{"meter": Int64}})

readings = FeatureView(
    name="readings",
    entities=[meter],
    schema=[Field(name=f"f{{n:02}}", dtype=Float32, ge=-1000, le=1000) for n in range({features})],
    source=FileSource(path="sources", timestamp_field="event_timestamp"),
)

readings_model = FeatureService(name="readings_model", features=[readings])
"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a history is: `rows` readings of `meters` meters, each of `features` float32 values."""

    rows: int
    meters: int
    features: int

    @property
    def end(self) -> datetime:
        """After the last reading."""
        return START + STEP * (-(-self.rows // self.meters) + 1)

    @property
    def fields(self) -> list[str]:
        """Names of the features."""
        return [f"f{n:02}" for n in range(self.features)]


def make_repository(
    folder: Path,
    features: int,
    *,
    threads: int = 2,
    memory_limit: str = "1GB",
    postgres_url: str | None = None,
    redis_url: str | None = None,
) -> Path:
    """A repository in `folder`, not applied yet; on DuckDB and SQLite, where no server is named."""
    (folder / "definitions").mkdir(parents=True, exist_ok=True)
    (folder / "sources").mkdir(exist_ok=True)
    duckdb_lines = _DUCKDB.format(threads=threads, memory_limit=memory_limit)
    offline = f'kind = "postgres"\nurl = "{postgres_url}"\n' if postgres_url else duckdb_lines
    online = f'kind = "redis"\nurl = "{redis_url}"\n' if redis_url else 'kind = "sqlite"\n'
    settings = f'project = "{PROJECT}"\n\n[offline]\n{offline}\n[online]\n{online}'
    (folder / "featurestore.toml").write_text(settings, encoding="utf-8")
    (folder / "definitions" / "readings.py").write_text(_DEFINITIONS.format(features=features), encoding="utf-8")
    return folder


def open_store(folder: Path, shape: Shape) -> FeatureStore:
    """The repository at a clock after the last reading."""
    return FeatureStore(folder, clock=FixedClock(shape.end))


def rows_sql(shape: Shape, first: int, count: int, *more: str) -> str:
    """SELECT of `count` readings from row `first` on: meter, event_timestamp, features, `more`; in order of arrival.

    Rows come in rounds of one reading a meter, the meters turned round by another offset each time; a round's times
    lie within its own STEP, so that no meter has two readings of one time.
    """
    step_us = STEP // timedelta(microseconds=1)
    values = [
        f"((hash(i * {shape.features} + {n} + {SEED}) % {VALUE_SPAN * 1000})::DOUBLE / 1000"
        f" - {VALUE_SPAN // 2})::FLOAT AS f{n:02}"
        for n in range(shape.features)
    ]
    return (
        f"SELECT ((i % {shape.meters} + hash(i // {shape.meters}) % {shape.meters}) % {shape.meters})::BIGINT AS {KEY},"
        f" make_timestamptz((i // {shape.meters}) * {step_us} + (hash(i + {SEED}) % {step_us})::BIGINT"
        f" + {to_us(START)}) AS event_timestamp, {', '.join([*values, *more])}"
        f" FROM range({first}, {first + count}) AS rows(i)"
    )


def fill_history(folder: Path, shape: Shape, *, chunk_rows: int = 5_000_000) -> None:
    """Apply, then write the history straight into its table, with the sequences and positions that loads would give."""
    with open_store(folder, shape) as store:
        store.apply()
        if store.repository.offline.history_rows(f"{VIEW}@1") == shape.rows:
            return
        path, config = store.repository.settings.offline.path, _config(store)
    history, positions = f'"{PROJECT}"."{names.history_name(f"{VIEW}@1")}"', f'"{PROJECT}"."{names.POSITIONS}"'
    numbers = (f"i + 1 AS {names.SEQUENCE}", f"i + 1 AS {names.POSITION}", f"1 AS {names.SCHEMA_ID}")
    with duckdb.connect(path, config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"DELETE FROM {history}")
        for first in range(0, shape.rows, chunk_rows):
            rows = rows_sql(shape, first, min(chunk_rows, shape.rows - first), *numbers)
            connection.execute(f"INSERT INTO {history} BY NAME SELECT *, {EVENT} AS {names.CREATED} FROM ({rows})")
        connection.execute(f"DELETE FROM {positions} WHERE view = ?", [f"{VIEW}@1"])
        connection.execute(f"INSERT INTO {positions} VALUES (?, ?)", [f"{VIEW}@1", shape.rows])
        connection.execute("CHECKPOINT")


def publish_latest(folder: Path, shape: Shape) -> None:
    """A history of one reading a meter, and all of it online."""
    fill_history(folder, shape)
    with open_store(folder, shape) as store:
        outcome = store.materialize_incremental(load=False)
    if outcome.errors:
        raise outcome.errors[0]


def keys(shape: Shape, rows: int) -> dict[str, Any]:
    """Join keys of so many different meters."""
    return {KEY: np.random.default_rng(SEED).choice(shape.meters, size=rows, replace=False).astype(np.int64)}


def forget_publish(folder: Path, shape: Shape) -> None:
    """Let the next publish begin from nothing; the online store is not touched."""
    with open_store(folder, shape) as store:
        store.repository.state.forget(f"{VIEW}@1")


def write_latest(folder: Path, shape: Shape, path: Path) -> Path:
    """The latest row of each entity in history as a Parquet file, without our own columns."""
    with open_store(folder, shape) as store:
        database, config = store.repository.settings.offline.path, _config(store)
    history, columns = f'"{PROJECT}"."{names.history_name(f"{VIEW}@1")}"', ", ".join([KEY, EVENT, *shape.fields])
    with duckdb.connect(database, read_only=True, config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        latest = f"SELECT * FROM {history} QUALIFY row_number() OVER (PARTITION BY {KEY} ORDER BY {EVENT} DESC) = 1"
        pq.write_table(connection.sql(f"SELECT {columns} FROM ({latest})").to_arrow_table(), path)
    return path


def write_source(folder: Path, shape: Shape, first: int = 0, *, group_rows: int = 65_536) -> Path:
    """The readings from row `first` on as a Parquet source of the repository."""
    path = folder / "sources" / f"readings_{first:012}.parquet"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        reader = connection.sql(rows_sql(shape, first, shape.rows - first)).to_arrow_reader(group_rows)
        with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
    return path


def make_spine(shape: Shape, rows: int, meters: int) -> pa.Table:
    """`rows` rows that ask for `meters` of the meters, at times spread over the whole history."""
    random = np.random.default_rng(SEED)
    asked = random.choice(shape.meters, size=min(meters, shape.meters), replace=False)
    times = random.integers(to_us(START), to_us(shape.end), size=rows)
    return pa.table(
        {
            KEY: random.choice(asked, size=rows).astype(np.int64),
            "as_of": pa.array(times).cast(TIMESTAMP),
            "label": random.integers(0, 2, size=rows).astype(np.int8),
        }
    )


def require_history(folder: Path, shape: Shape) -> None:
    """Unequal unless history holds exactly the rows of the source, values bit for bit, each sequence once."""
    with open_store(folder, shape) as store:
        path, config = store.repository.settings.offline.path, _config(store)
    history, columns = f'"{PROJECT}"."{names.history_name(f"{VIEW}@1")}"', ", ".join([KEY, EVENT, *shape.fields])
    with duckdb.connect(path, read_only=True, config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        source = f"SELECT {columns} FROM read_parquet('{folder}/sources/*.parquet')"
        # Sums of hashes do not depend on order, and equal rows count as often as they stand.
        sums = [
            connection.sql(f"SELECT count(*), sum(hash(one)::HUGEINT) FROM ({rows}) AS one").fetchall()
            for rows in (source, f"SELECT {columns} FROM {history}")
        ]
        if sums[0] != sums[1] or sums[0][0][0] != shape.rows:
            raise Unequal(f"history differs from its source: {sums}")
        numbers = f"SELECT count(DISTINCT {names.SEQUENCE}), count(DISTINCT {names.POSITION}) FROM {history}"
        if connection.sql(numbers).fetchall() != [(shape.rows, shape.rows)]:
            raise Unequal("a sequence or a position stands twice in history")


def _config(store: FeatureStore) -> dict[str, str | bool | int | float | list[str]]:
    settings = store.repository.settings.offline
    return {"threads": settings.threads, "memory_limit": settings.memory_limit}
