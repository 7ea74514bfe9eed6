"""What quarantine keeps of a row reads back as the very same row, for every kind of source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from featurestore.errors import StoreError
from featurestore.ingest.raw_rows import form_of, raw_texts, rows_of
from featurestore.offline.sources import SourceFile, read_files


def no_utf8() -> pa.Array:
    """Two strings, the first of which is none."""
    offsets = pa.py_buffer(np.array([0, 2, 3], np.int32))
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xffb")])


def numbers(kind: pa.DataType, *values: int | None) -> pa.Array:
    return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)


COLUMNS: Mapping[str, pa.Array] = {
    "broken text": no_utf8(),
    "list of broken text": pa.ListArray.from_arrays([0, 1, 2], no_utf8()),
    "nan and minus zero": pa.array([math.nan, -0.0]),
    "infinity": pa.array([-math.inf, None]),
    "float32": pa.array([0.1, None], pa.float32()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "decimal": pa.array([Decimal("1.20"), None]),
    "bytes": pa.array([b"\0\xff", None]),
    "fixed bytes": pa.array([b"ab", None], pa.binary(2)),
    "text": pa.array(['"\0é', None]),
    "large text": pa.array(["", None], pa.large_string()),
    "zoned": pa.array([datetime(2024, 3, 1, tzinfo=UTC), None], pa.timestamp("ns", "America/New_York")),
    "out of the calendar": numbers(pa.timestamp("us", "UTC"), 2**62, None),
    "date": pa.array([date(2024, 3, 1), None]),
    "date64 within a day": numbers(pa.date64(), 86_400_001, None),
    "time": numbers(pa.time64("ns"), 5, None),
    "duration": pa.array([5, None], pa.duration("ms")),
    "struct": pa.array([{"a": [math.inf], "t": None}, None]),
    "vector": pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
    "lists of lists": pa.array([[[1], None, []], None], pa.large_list(pa.list_(pa.int8()))),
    "null": pa.nulls(2),
    "bool": pa.array([True, None]),
}


def same(first: pa.Array, second: pa.Array) -> bool:
    """Equal to the bit, strings that are no UTF-8 included: as a file would hold them."""
    tables = (pa.table({"x": column}) for column in (first, second))
    one, other = (table.to_batches()[0].serialize().to_pybytes() for table in tables)
    return first.type == second.type and (first.equals(second) or one == other)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_value_reads_back_to_the_bit_with_its_type(name: str) -> None:
    rows = pa.table({"x": COLUMNS[name]})
    form, raws = form_of(rows, text=False), raw_texts(rows)

    back, text = rows_of(raws, form)

    assert not text
    assert same(back.column("x").combine_chunks(), COLUMNS[name])
    # And says the same again, so that the row keeps its id.
    assert (form_of(back, text=False), raw_texts(back)) == (form, raws)


def test_an_encoding_without_meaning_is_dropped() -> None:
    rows = pa.table({"x": pa.array(["a", None]).dictionary_encode(), "y": pa.array(["b", "c"], pa.string_view())})
    back, _ = rows_of(raw_texts(rows), form_of(rows, text=False))
    assert back.to_pydict() == {"x": ["a", None], "y": ["b", "c"]}


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.none() | st.text(st.characters(codec="utf-8")),
            st.none() | st.floats(),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.lists(st.none() | st.binary(max_size=3), max_size=3),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_rows_read_back(rows: list[tuple[Any, ...]]) -> None:
    types = (pa.string(), pa.float64(), pa.int64(), pa.list_(pa.binary()))
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), types, strict=True)]
    table = pa.table(columns, names=["a", "b", "c", "d"])

    back, _ = rows_of(raw_texts(table), form_of(table, text=False))

    assert raw_texts(back) == raw_texts(table)
    assert all(same(back.column(n).combine_chunks(), table.column(n).combine_chunks()) for n in ("a", "c", "d"))


def test_rows_of_a_csv_file_and_of_a_parquet_file_read_back_as_their_files_gave_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,y\n1.50,"a ""b"""\n,""\n')
    pq.write_table(pa.table({"x": [1.5, None], "y": ["a", ""]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        (batch,) = read_files([SourceFile(path=tmp_path / name, name=name, size=0, digest="")], 10)

        back, text = rows_of(raw_texts(batch.rows), form_of(batch.rows, text=batch.text))

        assert text == batch.text
        assert back.equals(batch.rows.combine_chunks())


def test_a_row_that_was_altered_by_hand_is_said_to_be() -> None:
    with pytest.raises(StoreError, match="cannot be read back"):
        rows_of(["{}"], form_of(pa.table({"x": [1]}), text=False))
