"""Memory of a load: bounded by batch and engine, not by the source. The jobs run under a limit of address space.

Address space is not memory: Arrow's own allocator and the C library reserve gigabytes of it that they never touch, so
both are told not to (ALLOCATORS).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Entity, FeatureView, Field, FileSource, Float32, Int64
from tests.fix_repository import SmallRepository

LIMIT_BYTES = 2 << 30
ALLOCATORS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
FEATURES = 50
CHUNK = 100_000

LIMITED = """
import resource, sys
from featurestore.cli.main import main
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""

wide = FeatureView(
    name="wide",
    entities=[Entity(name="card", join_keys={"card": Int64})],
    schema=[Field(name=f"f{number}", dtype=Float32) for number in range(FEATURES)],
    source=FileSource(path="data/wide.parquet", timestamp_field="at"),
)


def write_source(path: Path, rows: int) -> None:
    """Random entities at random times, so that no part of history can be left unread; one row group a chunk."""
    path.parent.mkdir(parents=True)
    random = np.random.default_rng(1)
    writer: pq.ParquetWriter | None = None
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        times = random.integers(1_600_000_000_000_000, 1_700_000_000_000_000, count)
        features = {f.name: random.normal(size=count).astype(np.float32) for f in wide.schema}
        chunk = pa.table(
            {
                "card": random.integers(0, rows // 10, count),
                "at": pa.array(times).cast(pa.timestamp("us", "UTC")),
                **features,
            }
        )
        writer = writer or pq.ParquetWriter(path, chunk.schema)
        writer.write_table(chunk)
    assert writer is not None
    writer.close()


def peak_mib(folder: Path, rows: int, batch_rows: int, **environment: str) -> int:
    """Peak memory of a process that loads and publishes `rows` rows under the limit."""
    write_source(folder / "data" / "wide.parquet", rows)
    small = SmallRepository(folder, batch_rows=batch_rows)
    try:
        small.apply(wide)
        code = LIMITED.format(limit=LIMIT_BYTES)
        command = ("materialize-incremental", "--json")
        ended = small.run_command(*command, code=code, timeout_s=900, **ALLOCATORS, **environment)
        assert ended.returncode == 0, ended.stderr
        assert small.offline.history_rows("wide@1") == rows
        peak = re.search(r"peak (\d+)", ended.stderr)
        assert peak is not None
        return int(peak[1]) >> 10
    finally:
        small.close()


def test_peak_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """600,000 rows more are 120 MiB of values; the part of it that DuckDB may keep is limited to 128 MiB."""
    engine = {"FEATURESTORE_OFFLINE_MEMORY_LIMIT": "128MB"}
    small = peak_mib(tmp_path / "small", 300_000, 50_000, **engine)
    large = peak_mib(tmp_path / "large", 900_000, 50_000, **engine)
    assert large - small < 110, f"{small} MiB for 300,000 rows, {large} MiB for 900,000"


@pytest.mark.slow
def test_a_load_of_5_million_rows_of_50_features_stays_under_2_gib(tmp_path: Path) -> None:
    """With the settings as they are shipped."""
    assert peak_mib(tmp_path / "repository", 5_000_000, 100_000) < 2048
