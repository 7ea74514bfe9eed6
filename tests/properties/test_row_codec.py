"""The row codec over any schema and any values: what goes in comes out, bit for bit, however it lies in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from featurestore.arrow_types import arrow_type
from featurestore.field import Field
from featurestore.online.row_codec import OrderKeys, RowDecoder, RowEncoder
from tests.fix_properties import thoroughly
from tests.strategies import bits, column_sets, dtypes, integers, schemas, values

Schema = list[Field]
Columns = list[pa.Array]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Schema, Columns]:
    fields = draw(schemas())
    return fields, draw(column_sets(fields))


def order_keys(count: int) -> OrderKeys:
    numbers = np.arange(count, dtype=np.int64)
    return OrderKeys(numbers - 5, numbers * 7, numbers + (1 << 40))


def encode(fields: Schema, given_columns: Columns, schema_id: int = 1) -> pa.BinaryArray:
    return RowEncoder(schema_id, fields).encode(order_keys(len(given_columns[0])), given_columns)


def all_bits(given_columns: Any) -> list[list[Any]]:
    return [bits(column) for column in given_columns]


@thoroughly
@given(batches())
def test_decoded_rows_are_the_encoded_ones_to_the_bit(batch: tuple[Schema, Columns]) -> None:
    fields, given_columns = batch
    rows = encode(fields, given_columns)

    decoded = RowDecoder({1: fields}, fields).decode(rows)

    assert all_bits(decoded.columns) == all_bits(given_columns)
    assert [column.type for column in decoded.columns] == [arrow_type(field.dtype) for field in fields]
    for column in decoded.columns:
        column.validate(full=True)
    expected = order_keys(len(rows))
    for name in ("event_us", "created_us", "sequence"):
        assert getattr(decoded.order, name).tolist() == getattr(expected, name).tolist()
    assert decoded.found.all()


@thoroughly
@given(batches())
def test_bytes_do_not_depend_on_offsets_chunks_and_what_lies_under_nulls(batch: tuple[Schema, Columns]) -> None:
    fields, given_columns = batch
    plain = [pa.array(column.to_pylist(), column.type) for column in given_columns]
    half = len(plain[0]) // 2
    chunked = [pa.chunked_array([column[:half], column[half:]], column.type) for column in given_columns]

    rows = encode(fields, plain)

    assert encode(fields, given_columns).equals(rows)
    assert encode(fields, chunked).equals(rows)
    single = [encode(fields, [column.slice(i, 1) for column in plain])[0].as_py() for i in range(len(rows))]
    assert [row[24:] for row in rows.to_pylist()] == [row[24:] for row in single]


@thoroughly
@given(batches())
def test_payloads_are_equal_if_and_only_if_the_values_are(batch: tuple[Schema, Columns]) -> None:
    fields, given_columns = batch
    payloads = RowEncoder(1, fields).payload(given_columns).to_pylist()
    lines = list(zip(*all_bits(given_columns), strict=True))

    assert [payload[29:] for payload in encode(fields, given_columns).to_pylist()] == payloads
    for payload, line in zip(payloads, lines, strict=True):
        for other_payload, other_line in zip(payloads, lines, strict=True):
            assert (payload == other_payload) == (line == other_line)


@thoroughly
@given(st.lists(st.tuples(integers(64), integers(64), integers(64)), min_size=1, max_size=8))
def test_bytes_sort_as_the_order_keys_do(keys: list[tuple[int, int, int]]) -> None:
    order = OrderKeys(*(np.array(column, dtype=np.int64) for column in zip(*keys, strict=True)))
    rows = RowEncoder(1, []).encode(order, []).to_pylist()

    assert [keys[place] for place in sorted(range(len(keys)), key=lambda place: rows[place][:24])] == sorted(keys)


@st.composite
def evolutions(draw: st.DrawFn) -> tuple[Schema, Columns, Schema, Columns, list[int | None]]:
    """(old schema and rows, new schema with added fields and rows, how to shuffle both with absent rows)."""
    old = draw(schemas(max_size=3))
    added = [
        Field(name=f"g{index}", dtype=dtype, default=draw(st.one_of(st.none(), values(dtype))))
        for index, dtype in enumerate(draw(st.lists(dtypes(), min_size=1, max_size=3)))
    ]
    old_columns = draw(column_sets(old, max_rows=4))
    new_columns = draw(column_sets([*old, *added], max_rows=4))
    count = len(old_columns[0]) + len(new_columns[0])
    places = draw(st.lists(st.one_of(st.none(), st.integers(0, count - 1)) if count else st.none(), max_size=8))
    return old, old_columns, [*old, *added], new_columns, places


@thoroughly
@given(evolutions())
def test_old_new_and_absent_rows_decode_together_in_any_order(
    evolution: tuple[Schema, Columns, Schema, Columns, list[int | None]],
) -> None:
    old, old_columns, new, new_columns, places = evolution
    stored = pa.concat_arrays([encode(old, old_columns, 3), encode(new, new_columns, 4)])
    rows = stored.take(pa.array(places, pa.int64()))
    defaults = [pa.array([field.default] * len(old_columns[0]), arrow_type(field.dtype)) for field in new[len(old) :]]
    expected = [
        pa.concat_arrays([before, after]).take(pa.array(places, pa.int64()))
        for before, after in zip([*old_columns, *defaults], new_columns, strict=True)
    ]

    decoded = RowDecoder({3: old, 4: new}, new).decode(rows)

    assert all_bits(decoded.columns) == all_bits(expected)
    assert decoded.found.tolist() == [place is not None for place in places]


@thoroughly
@given(batches(), st.data())
def test_any_fields_in_any_order_of_any_slice_of_rows_decode_alike(
    batch: tuple[Schema, Columns], data: st.DataObject
) -> None:
    fields, given_columns = batch
    chosen = data.draw(st.lists(st.integers(0, len(fields) - 1), max_size=8))
    start, count = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    rows = encode(fields, given_columns).slice(start, count)

    decoded = RowDecoder({1: fields}, [fields[index] for index in chosen]).decode(rows)

    assert all_bits(decoded.columns) == all_bits([given_columns[index].slice(start, count) for index in chosen])
