"""DuckDB 2.0's ASOF join loses rows on some pairs of keys; ours must not (decision 1)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from featurestore import Bytes, Int64
from featurestore.offline.base import ArrivedRows
from featurestore.offline.duckdb import DuckDBOfflineStore
from tests.fix_offline import ask, make_view, select, times

#: From 64 probe rows on DuckDB sorts both sides; below it loops.
ASKS = 64


@pytest.mark.parametrize("created", [True, False])
def test_a_negative_integer_key_before_a_bytes_key_is_found(tmp_path: Path, created: bool) -> None:
    view = make_view({"number": Int64, "tail": Bytes}, {"value": Int64}, created=created)
    store = DuckDBOfflineStore(tmp_path / "offline.duckdb", "p")
    store.ensure_history(view)
    rows = pa.table(
        {
            "number": pa.array([-1], pa.int64()),
            "tail": pa.array([b"ab"]),
            "event_timestamp": times([1]),
            "created_timestamp": times([1]),
            "_sequence": pa.array([1], pa.int64()),
            "value": pa.array([7], pa.int64()),
        }
    )
    store.append(view, ArrivedRows(rows=rows, schema_id=1))
    spine = pa.table({"number": [-1] * ASKS, "tail": pa.array([b"ab"] * ASKS), "as_of": times([2] * ASKS)})

    answers = ask(store, select(view), [view], spine, project="p")

    assert answers.column("value").to_pylist() == [7] * ASKS
