"""The content digest: equal for equal values, whatever held them; different for any other bit, order, name or type."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.digest import SLICE_ROWS, content_digest
from featurestore.errors import InputError
from tests.fix_offline import VALUES, make_view, shuffled, value_columns

EVERY_TYPE = pa.table(value_columns(make_view(), list(VALUES)))
#: Columns a spine may bring along, none of them a type of ours.
FOREIGN: dict[str, pa.Array] = {
    "map": pa.array([[("a", 1)], None, [], [("b", None), ("c", 2)]], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"x": 1, "y": "a"}, None, {"x": None, "y": ""}, {"x": 2, "y": None}]),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 4], pa.int32()), pa.array([1, 2])),
    "list view": pa.array([[1], None, [], [2, 3]], pa.list_view(pa.int64())),
    "duration": pa.array([1, None, 3, 4], pa.duration("us")),
    "time": pa.array([1, None, 3, 4], pa.time32("s")),
    "half": pa.array(np.array([1, -0.0, np.nan, 0.0], np.float16)),
    "wide decimal": pa.array([1, None, 3, 4], pa.decimal256(50, 2)),
    "fixed bytes": pa.array([b"ab", None, b"cd", b"\0\0"], pa.binary(2)),
    "nothing": pa.nulls(4),
    "words": pa.array(["a", None, "b", "a"]).dictionary_encode(),
    "lists of words": pa.array([["a"], None, ["b", "a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "uuid": pa.array([b"0" * 16, None, b"1" * 16, b"2" * 16], pa.uuid()),
    "lists of lists": pa.array([[[1], []], None, [], [None]], pa.list_(pa.list_(pa.int8()))),
}


def through_parquet(table: pa.Table) -> pa.Table:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    file.seek(0)
    return pq.ParquetFile(file).read()


def through_arrow_file(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return pa.ipc.open_file(sink.getvalue()).read_all()


def in_single_rows(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(place, 1) for place in range(table.num_rows)])


def in_large_types(table: pa.Table) -> pa.Table:
    import polars as pl

    frame = pl.from_arrow(table.select(["a_string", "some_bytes", "some_strings"]))
    assert isinstance(frame, pl.DataFrame)
    large = frame.to_arrow()
    assert large.schema.field("a_string").type in (pa.large_string(), pa.string_view())
    for name in large.column_names:
        table = table.set_column(table.column_names.index(name), name, large.column(name))
    return table


def with_dictionaries(table: pa.Table) -> pa.Table:
    names = ["a_string", "an_int64", "some_bytes"]
    for name in names:
        table = table.set_column(table.column_names.index(name), name, table.column(name).dictionary_encode())
    return table


def with_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"pandas": "{}"})


def within_a_longer_table(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table, table]).combine_chunks().slice(table.num_rows, table.num_rows)


@pytest.mark.parametrize(
    "held",
    [
        through_parquet,
        through_arrow_file,
        in_single_rows,
        in_large_types,
        with_dictionaries,
        with_metadata,
        within_a_longer_table,
    ],
)
def test_it_does_not_depend_on_what_holds_the_values(held: Callable[[pa.Table], pa.Table]) -> None:
    assert content_digest(held(EVERY_TYPE)) == content_digest(EVERY_TYPE)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_columns_have_a_digest_that_chunks_do_not_change(name: str) -> None:
    table = pa.table({"x": FOREIGN[name]})

    assert (
        content_digest(in_single_rows(table)) == content_digest(within_a_longer_table(table)) == content_digest(table)
    )


def test_what_lies_under_a_null_does_not_count() -> None:
    def column(hidden: float) -> pa.Array:
        return pa.Array.from_buffers(pa.float64(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([1.0, hidden]))])

    assert content_digest(pa.table({"x": column(7.0)})) == content_digest(pa.table({"x": column(8.0)}))


def test_slices_of_its_own_work_leave_no_trace() -> None:
    table = pa.table({"x": np.arange(SLICE_ROWS * 2 + 1), "s": [str(n) for n in range(SLICE_ROWS * 2 + 1)]})

    chunked = pa.concat_tables([table.slice(0, SLICE_ROWS - 1), table.slice(SLICE_ROWS - 1)])

    assert content_digest(chunked) == content_digest(table)


def test_all_nan_are_one_and_zeros_are_two() -> None:
    payload = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64).view(np.float64)

    assert digest_of(payload[:1]) == digest_of(payload[1:])
    assert digest_of([0.0]) != digest_of([-0.0])
    assert digest_of([float("nan")]) != digest_of(pa.array([None], pa.float64()))


def digest_of(values: Any) -> str:
    return content_digest(pa.table({"x": values}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [2, 1]),
        ([2**53], [2**53 + 1]),
        (["a", None], ["a", ""]),
        (["ab", ""], ["a", "b"]),
        (["ab"], ["a", "b"]),
        ([b"a"], ["a"]),
        ([1], [1.0]),
        ([True], [1]),
        ([[1], [2]], [[1, 2], []]),
        ([[], None], [None, []]),
        ([None], [None, None]),
        (pa.array([1], pa.int32()), pa.array([1], pa.int64())),
        (pa.array([], pa.int32()), pa.array([], pa.int64())),
        (pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us"))),
        (pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("ms", "UTC"))),
        (pa.array([[1, 2]], pa.list_(pa.int8())), pa.array([[1, 2]], pa.list_(pa.int8(), 2))),
        (pa.array([{"x": 1}]), pa.array([{"y": 1}])),
    ],
)
def test_other_values_order_or_types_have_another_digest(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


def test_names_and_order_of_columns_and_rows_count() -> None:
    digests = {
        content_digest(pa.table({"a": [1, 2], "b": [3, 4]})),
        content_digest(pa.table({"b": [3, 4], "a": [1, 2]})),
        content_digest(pa.table({"a": [3, 4], "b": [1, 2]})),
        content_digest(pa.table({"a": [2, 1], "b": [4, 3]})),
        content_digest(pa.table({"a": [1, 2]})),
    }

    assert len(digests) == 5


def test_every_pair_of_near_rows_differs() -> None:
    digests = {content_digest(EVERY_TYPE.slice(place, 1)) for place in range(EVERY_TYPE.num_rows)}

    assert len(digests) == EVERY_TYPE.num_rows
    assert content_digest(shuffled(EVERY_TYPE, 1)) != content_digest(EVERY_TYPE)


def test_a_union_is_refused_with_its_column() -> None:
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])

    with pytest.raises(InputError, match="'label' holds sparse_union"):
        content_digest(pa.table({"label": union}))


def test_the_digest_of_a_known_table_is_pinned() -> None:
    """Manifests keep digests for years: a change of this value needs a new `featurestore-content` version."""
    table = pa.table({"carrier": ["AA", None, ""], "delay": [1.5, float("nan"), -0.0], "n": [[1], [], None]})

    assert content_digest(table) == "a154f76920c8ac50dcaf151a916e309bd84211e9c9cfb255dfb8c23a27f97359"
