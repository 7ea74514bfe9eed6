"""The row codec: its bytes are the documented ones, its cost does not grow with rows, and bad bytes are told apart."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import SCALARS, Bool, Decimal, DType, Float32, Int64, List, String, Vector
from featurestore.errors import StoreError
from featurestore.field import Field
from featurestore.online import packing
from featurestore.online.row_codec import OrderKeys, RowDecoder, RowEncoder
from tests.fix_properties import thoroughly
from tests.strategies import column_sets, schemas
from tests.unit.online import format_reference as reference

EVERY_TYPE = [*SCALARS.values(), Decimal(38, 9), List(String), List(Bool), List(Decimal(4, 2)), Vector(Float32, 3)]


def fields_of(*dtypes: DType) -> list[Field]:
    return [Field(name=f"f{index}", dtype=dtype) for index, dtype in enumerate(dtypes)]


def order(count: int) -> OrderKeys:
    numbers = np.arange(count, dtype=np.int64)
    return OrderKeys(numbers, numbers + 1, numbers + 2)


def example(dtype: DType) -> Any:
    match dtype:
        case List(element):
            return [example(element)] * 2
        case Vector(element, length):
            return [example(element)] * length
        case _ if dtype == Bool:
            return True
        case _ if str(dtype) in ("string", "bytes"):
            return "text"
        case _:
            return 1


@thoroughly
@given(schemas().flatmap(lambda fields: st.tuples(st.just(fields), column_sets(fields, max_rows=4))))
def test_rows_are_those_of_the_written_format(batch: tuple[list[Field], list[pa.Array]]) -> None:
    fields, columns = batch
    dtypes = [field.dtype for field in fields]
    lines = zip(*(column.to_pylist() for column in columns), strict=True)
    expected = [reference.row((i, i + 1, i + 2), 513, dtypes, line) for i, line in enumerate(lines)]

    assert RowEncoder(513, fields).encode(order(len(columns[0])), columns).to_pylist() == expected


def calls_made(work: Callable[[], object]) -> int:
    """Calls of Python and of C functions that the interpreter makes."""
    seen = 0

    def count_call(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    work()  # whatever is cached, is cached now
    gc.collect()
    gc.disable()  # what others left behind would make calls when it is collected
    sys.setprofile(count_call)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen


@pytest.mark.parametrize("absent", [False, True], ids=["all present", "some absent"])
@pytest.mark.parametrize("nulls", [False, True], ids=["no nulls", "nulls"])
def test_encoding_and_decoding_make_as_many_calls_for_ten_rows_as_for_ten_thousand(nulls: bool, absent: bool) -> None:
    fields = fields_of(*EVERY_TYPE)
    old = {1: fields, 2: fields[:-2]}
    encoder, old_encoder = RowEncoder(1, fields), RowEncoder(2, fields[:-2])
    decoder = RowDecoder(old, fields)

    def counts(count: int) -> tuple[int, int, int]:
        columns = [
            pa.array(
                [None if nulls and row % 3 == 0 else example(field.dtype) for row in range(count)],
                arrow_type(field.dtype),
            )
            for field in fields
        ]
        keys = order(count)
        rows = encoder.encode(keys, columns)
        mixed = pa.concat_arrays([rows, old_encoder.encode(keys, columns[:-2])])
        if absent:
            rows, mixed = (stored.take(pa.array([None, *range(1, len(stored))])) for stored in (rows, mixed))
        return (
            calls_made(lambda: encoder.encode(keys, columns)),
            calls_made(lambda: decoder.decode(rows)),
            calls_made(lambda: decoder.decode(mixed)),
        )

    assert counts(10) == counts(10_000)


@pytest.fixture
def fields() -> list[Field]:
    return fields_of(Int64, String, List(String))


@pytest.fixture
def row(fields: list[Field]) -> bytes:
    columns = [pa.array([7]), pa.array(["text"]), pa.array([["a", "bc"]])]
    data: bytes = RowEncoder(1, fields).encode(order(1), columns)[0].as_py()
    return data


def decode(fields: list[Field], *rows: bytes | None) -> Any:
    return RowDecoder({1: fields}, fields).decode(pa.array(rows, pa.binary()))


def test_a_row_cut_anywhere_is_refused(fields: list[Field], row: bytes) -> None:
    for length in range(len(row)):
        with pytest.raises(StoreError, match=f"has {length} bytes.*--repair"):
            decode(fields, row[:length])
        with pytest.raises(StoreError, match=f"has {length} bytes.*--repair"):
            decode(fields, row, row[:length], None)


def test_a_row_with_bytes_too_many_is_refused(fields: list[Field], row: bytes) -> None:
    with pytest.raises(StoreError, match=f"has {len(row) + 1} bytes where its fields say {len(row)}"):
        decode(fields, row + b"\0")
    fixed = RowEncoder(1, fields[:1]).encode(order(2), [pa.array([1, 2])]).to_pylist()
    with pytest.raises(StoreError, match="where its fields say"):
        decode(fields[:1], fixed[0], fixed[1] + b"\0")
    with pytest.raises(StoreError, match="where its fields say"):
        decode(fields[:1], fixed[0] + b"\0", fixed[1] + b"\0")


def test_a_row_of_another_codec_version_is_refused_by_number(fields: list[Field], row: bytes) -> None:
    newer = row[:24] + b"\x02" + row[25:]
    for rows in ([newer], [row, newer], [None, newer]):
        with pytest.raises(StoreError, match="codec version 2 is unknown, this featurestore reads version 1"):
            decode(fields, *rows)


def test_foreign_bytes_are_refused(fields: list[Field], row: bytes) -> None:
    with pytest.raises(StoreError, match="codec version"):
        decode(fields, b"\x89PNG" * 40)
    with pytest.raises(StoreError, match="fewer than its prefix"):
        decode(fields, b"")
    with pytest.raises(StoreError, match="fewer than its prefix"):
        decode(fields, None, row, b"short")


def test_a_schema_that_is_not_known_is_refused_with_those_that_are(fields: list[Field], row: bytes) -> None:
    other = row[:25] + (9).to_bytes(4, "little") + row[29:]
    for rows in ([other], [row, other], [None, other]):
        with pytest.raises(StoreError, match="has schema 9, the registry knows 1; if it was applied after"):
            decode(fields, *rows)


def test_inner_offsets_that_point_astray_are_refused(fields: list[Field], row: bytes) -> None:
    ends = len(row) - len(reference.payload([field.dtype for field in fields], [7, "text", ["a", "bc"]])) + 1 + 8
    for place in (ends, ends + 4, ends + 8):
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 13):
            with pytest.raises(StoreError):
                decode(fields, row[:place] + value.to_bytes(4, "little") + row[place + 4 :])
    lengths = ends + 12 + len("text")
    assert row[lengths : lengths + 8] == b"\x01\0\0\0\x02\0\0\0"
    with pytest.raises(StoreError, match="other element lengths"):
        decode(fields, row[:lengths] + b"\x02" + row[lengths + 1 :])


def test_nothing_and_only_absent_rows_decode_to_nulls(fields: list[Field]) -> None:
    for count in (0, 1, 3):
        decoded = decode(fields, *[None] * count)
        assert [column.to_pylist() for column in decoded.columns] == [[None] * count] * 3
        assert [column.type for column in decoded.columns] == [arrow_type(field.dtype) for field in fields]
        assert not decoded.found.any()
        for name in ("event_us", "created_us", "sequence"):
            assert getattr(decoded.order, name).tolist() == [0] * count


def test_a_default_stands_only_in_rows_older_than_its_field() -> None:
    old, new = fields_of(Int64), [*fields_of(Int64), Field(name="added", dtype=Float32, default=0.5)]
    before = RowEncoder(1, old).encode(order(1), [pa.array([1])])
    after = RowEncoder(2, new).encode(order(1), [pa.array([2]), pa.array([None], pa.float32())])
    rows = pa.array([*before.to_pylist(), *after.to_pylist(), None], pa.binary())

    decoded = RowDecoder({1: old, 2: new}, new).decode(rows)

    assert decoded.columns[1].to_pylist() == [0.5, None, None]


def test_a_column_of_another_type_or_length_is_a_defect_of_the_caller(fields: list[Field]) -> None:
    encoder = RowEncoder(1, fields[:1])
    with pytest.raises(AssertionError, match="int32 is not int64"):
        encoder.encode(order(1), [pa.array([1], pa.int32())])
    with pytest.raises(AssertionError, match="2 values for 1 rows"):
        encoder.encode(order(1), [pa.array([1, 2])])
    with pytest.raises(AssertionError, match="0 columns for 1 fields"):
        encoder.encode(order(1), [])


def test_a_batch_beyond_what_arrow_can_address_is_refused() -> None:
    encoder = RowEncoder(1, fields_of(Vector(Float32, 65_536)))
    rows = packing.BATCH_BYTES_MAX // encoder.fixed_row_bytes + 1
    one = pa.array([[0.0] * 65_536], pa.list_(pa.float32(), 65_536))
    same_row = one.take(pa.array(np.zeros(2, dtype=np.int64)))

    assert len(encoder.encode(order(2), [same_row])) == 2
    with pytest.raises(StoreError, match="use smaller batches"):
        encoder.encode(order(rows), [same_row])
