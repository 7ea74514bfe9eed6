"""A spine read piece by piece is the spine read whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.arrow_types import TIMESTAMP
from featurestore.dtypes import Int32, Int64
from featurestore.errors import SourceError
from featurestore.offline import sources
from featurestore.offline.export import table_writer
from featurestore.offline.spine import read_spine, spine_tables

KEYS, REQUEST = {"id": Int64}, {"hour": Int32}


def spine(rows: int) -> pa.Table:
    """So many rows that ask."""
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "as_of": pa.array([1_700_000_000_000_000 + row for row in range(rows)], pa.int64()).cast(TIMESTAMP),
            "hour": pa.array([row % 24 for row in range(rows)], pa.int32()),
            "note": pa.array([f"row {row}" for row in range(rows)]),
        }
    )


def small_groups(table: pa.Table, path: Path) -> None:
    """Parquet whose row groups are smaller than a piece."""
    pq.write_table(table, path, row_group_size=3)


def as_we_write(table: pa.Table, path: Path) -> None:
    with table_writer(path, table.schema) as write:
        write(table)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 23])
@pytest.mark.parametrize(
    ("name", "write"),
    [("a.parquet", small_groups), ("a.arrow", as_we_write), ("a.csv", as_we_write)],
    ids=["parquet", "arrow", "csv"],
)
def test_pieces_are_of_the_size_asked_for_and_the_file_together(
    tmp_path: Path, name: str, write: Callable[[pa.Table, Path], object], rows: int
) -> None:
    path = tmp_path / name
    write(spine(rows), path)
    pieces = list(spine_tables(path, KEYS, REQUEST, 8))
    assert [piece.num_rows for piece in pieces] == [*[8] * (rows // 8), *([rows % 8] if rows % 8 or not rows else [])]
    whole = read_spine(path, KEYS, REQUEST)
    assert pa.concat_tables(pieces).equals(whole.table)


def test_a_table_in_memory_is_cut_too() -> None:
    assert [piece.num_rows for piece in spine_tables(spine(10), KEYS, REQUEST, 4)] == [4, 4, 2]
    assert [piece.num_rows for piece in spine_tables(spine(0), KEYS, REQUEST, 4)] == [0]


def test_a_value_of_csv_that_has_no_type_is_named_by_its_row_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CSV_BLOCK_BYTES", 256)
    path = tmp_path / "a.csv"
    lines = [f"{row},2023-11-14T22:13:20Z,{row % 24}" for row in range(40)]
    lines[33] = "x,2023-11-14T22:13:20Z,1"
    path.write_text("\n".join(["id,as_of,hour", *lines, ""]))
    with pytest.raises(SourceError, match="column 'id', row 33: x"):
        list(spine_tables(path, KEYS, REQUEST, 8))
