"""Columns on the wire: every type round-trips bit for bit, and malformed bytes are refused before Arrow reads them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Bytes, Decimal, Int64, List, String, Vector
from featurestore.arrow_types import arrow_type
from featurestore.dtypes import SCALARS, DType
from featurestore.errors import InputError
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column as client_column
from featurestore_client.values import decode_columns
from serving.columns import column_writer, decode_column, decode_type, encode_type
from tests.unit.serving.world import EVERY_TYPE, matches_bits

ARRAYS = [pytest.param(field.dtype, values, id=str(field.dtype)) for field, values in EVERY_TYPE]


def encoded(array: pa.Array, dtype: DType) -> pb.Column:
    column = pb.Column(name="x", type=encode_type(dtype))
    column_writer(dtype)(column, array)
    return pb.Column.FromString(column.SerializeToString())


@pytest.mark.parametrize(
    "dtype", [*SCALARS.values(), Decimal(38, 9), List(String), Vector(SCALARS["float32"], 7)], ids=str
)
def test_types_round_trip(dtype: DType) -> None:
    assert decode_type(encode_type(dtype), "x") == dtype


@pytest.mark.parametrize(("dtype", "values"), ARRAYS)
@pytest.mark.parametrize("cut", [slice(0, None), slice(1, None), slice(1, 4), slice(0, 2), slice(2, 2), slice(2, 3)])
def test_columns_round_trip_whatever_part_of_a_block_they_are(dtype: DType, values: list, cut: slice) -> None:
    whole = pa.array(values * 3, arrow_type(dtype))
    part = whole[5:][cut]

    decoded = decode_column(encoded(part, dtype), "x")

    decoded.validate(full=True)
    assert matches_bits(decoded, part)


@pytest.mark.parametrize(("dtype", "values"), ARRAYS)
def test_columns_without_nulls_carry_no_validity(dtype: DType, values: list) -> None:
    present = pa.array([value for value in values if value is not None], arrow_type(dtype))

    column = encoded(present, dtype)

    assert column.validity == b""
    assert matches_bits(decode_column(column, "x"), present)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=20)), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_any_bytes_round_trip(values: list[bytes | None], start: int, length: int) -> None:
    part = pa.array(values, pa.binary()).slice(min(start, len(values)), length)

    assert decode_column(encoded(part, Bytes), "x").equals(part)


# ---------------------------------------------------------------- malformed bytes


def column(kind: pb.TypeKind, **buffers: object) -> pb.Column:
    return pb.Column(name="x", type=pb.DataType(kind=kind), **buffers)  # type: ignore[arg-type]


def offsets(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


STRING, BYTES, INT64, BOOL = (
    pb.TYPE_KIND_STRING,
    pb.TYPE_KIND_BYTES,
    pb.TYPE_KIND_INT64,
    pb.TYPE_KIND_BOOL,
)
ELEMENT = pb.DataType(kind=STRING)
MALFORMED = {
    "no type": pb.Column(rows=1, values=bytes(8)),
    "unknown type": column(99, rows=1, values=bytes(8)),  # type: ignore[arg-type]
    "values too short": column(INT64, rows=2, values=bytes(15)),
    "values too long": column(INT64, rows=1, values=bytes(9)),
    "rows without values": column(INT64, rows=2**32 - 1),
    "bits too few": column(BOOL, rows=9, values=b"\x01"),
    "validity too short": column(INT64, rows=9, values=bytes(72), validity=b"\x01"),
    "no offsets": column(STRING, rows=1, values=b"abc"),
    "offsets past the end": column(BYTES, rows=1, values=b"abc", offsets=offsets(0, 4)),
    "offsets short of the end": column(BYTES, rows=1, values=b"abc", offsets=offsets(0, 2)),
    "offsets not from zero": column(BYTES, rows=1, values=b"abc", offsets=offsets(1, 3)),
    "offsets falling": column(BYTES, rows=2, values=b"abc", offsets=offsets(0, 2**31 - 1, 3)),
    "offsets negative": column(BYTES, rows=2, values=b"abc", offsets=offsets(0, -4, 3)),
    "not UTF-8": column(STRING, rows=1, values=b"\xff\xfe", offsets=offsets(0, 2)),
    "text cut inside a character": column(STRING, rows=2, values="ü".encode(), offsets=offsets(0, 1, 2)),
    "decimal of no digits": pb.Column(type=pb.DataType(kind=pb.TYPE_KIND_DECIMAL), rows=1, values=bytes(16)),
    "decimal past its precision": pb.Column(
        type=pb.DataType(kind=pb.TYPE_KIND_DECIMAL, precision=2), rows=1, values=(100).to_bytes(16, "little")
    ),
    "vector of no length": pb.Column(
        type=pb.DataType(kind=pb.TYPE_KIND_VECTOR, element=pb.DataType(kind=INT64)), rows=1
    ),
    "vector of texts": pb.Column(type=pb.DataType(kind=pb.TYPE_KIND_VECTOR, element=ELEMENT, length=1), rows=1),
    "list of lists": pb.Column(
        type=pb.DataType(kind=pb.TYPE_KIND_LIST, element=pb.DataType(kind=pb.TYPE_KIND_LIST, element=ELEMENT)), rows=1
    ),
    "list without element offsets": pb.Column(
        type=pb.DataType(kind=pb.TYPE_KIND_LIST, element=ELEMENT), rows=1, offsets=offsets(0, 1), values=b"a"
    ),
    "element offsets past the end": pb.Column(
        type=pb.DataType(kind=pb.TYPE_KIND_LIST, element=ELEMENT),
        rows=1,
        offsets=offsets(0, 1),
        element_offsets=offsets(0, 9),
        values=b"a",
    ),
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_malformed_columns_are_refused_by_name(malformed: pb.Column) -> None:
    named = pb.Column(name="x")
    named.MergeFrom(malformed)
    with pytest.raises(InputError, match="join key 'x'"):
        decode_column(named, "join key")


@given(
    st.sampled_from([field.dtype for field, _ in EVERY_TYPE]),
    st.integers(0, 5),
    st.binary(max_size=40),
    st.binary(max_size=2),
    st.lists(st.integers(-3, 9), max_size=6),
    st.lists(st.integers(-3, 9), max_size=6),
)
def test_any_buffers_make_a_sound_column_or_a_refusal(
    dtype: DType, rows: int, values: bytes, validity: bytes, ends: list[int], element_ends: list[int]
) -> None:
    message = pb.Column(
        type=encode_type(dtype),
        rows=rows,
        values=values,
        validity=validity,
        offsets=offsets(*ends),
        element_offsets=offsets(*element_ends),
    )
    try:
        array = decode_column(message, "x")
    except InputError:
        return
    array.validate(full=True)
    assert len(array) == rows


# ---------------------------------------------------------------- the client's half


@pytest.mark.parametrize(("dtype", "values"), ARRAYS)
def test_the_client_reads_what_the_server_wrote(dtype: DType, values: list) -> None:
    array = pa.array(values, arrow_type(dtype))
    column = encoded(array, dtype)

    _, actual, valid = decode_columns([column], column.rows)[0]

    assert valid is not None
    assert valid.tolist() == [value is not None for value in values]
    present = [value for value, there in zip(actual.tolist(), valid, strict=True) if there]
    expected = [value for value in array.to_pylist() if value is not None]
    if str(dtype).startswith("timestamp"):
        expected = [value.replace(tzinfo=None) for value in expected]
    if str(dtype).startswith("list"):
        present = [value if isinstance(value, list) else value.tolist() for value in present]
    bits = (lambda value: value) if isinstance(dtype, Decimal) else repr  # 1E+2 is 100
    assert [*map(bits, present)] == [*map(bits, expected)]


def test_nulls_are_nan_nat_or_none_in_numpy_where_it_has_a_word_for_them() -> None:
    reply = {
        str(field.dtype): decode_columns(
            [encoded(pa.array(values, arrow_type(field.dtype)), field.dtype)], len(values)
        )[0].values
        for field, values in EVERY_TYPE
    }

    assert np.isnan(reply["float32"][2])
    assert np.isnan(reply["vector<float32,3>"][2]).all()
    assert np.isnat(reply["timestamp"][2])
    assert np.isnat(reply["date"][2])
    objects = ("string", "bytes", "decimal(38,4)", "list<int64>", "list<string>")
    assert [reply[name][2] for name in objects] == [None] * len(objects)


FROM_PYTHON = [
    case for case in ARRAYS if case.id in {"bool", "int64", "float64", "string", "bytes", "timestamp", "date"}
]


@pytest.mark.parametrize(("dtype", "values"), FROM_PYTHON)
def test_the_server_reads_python_values_as_arrow_does(dtype: DType, values: list) -> None:
    decoded = decode_column(client_column("x", values), "x")

    assert matches_bits(decoded, pa.array(values, arrow_type(dtype)))


NUMPY = ["i1", "u1", "i2", "i4", "u4", "i8", "u8", "f4", "f8", "?", "M8[us]", "M8[s]", "M8[D]"]


@pytest.mark.parametrize("kind", NUMPY)
def test_numpy_arrays_travel_in_a_type_that_holds_them(kind: str) -> None:
    values = np.array([0, 1, 1], "i8").astype(kind)

    decoded = decode_column(client_column("x", values), "x")

    assert decoded.to_numpy(zero_copy_only=False).astype(kind).tolist() == values.tolist()


@pytest.mark.parametrize(("dtype", "values"), ARRAYS)
def test_arrow_arrays_travel_as_they_are(dtype: DType, values: list) -> None:
    array = pa.array(values, arrow_type(dtype))

    assert matches_bits(decode_column(client_column("x", pa.chunked_array([array])), "x"), array)


def test_arrow_columns_come_in_their_canonical_type() -> None:
    for given_, expected in [
        (pa.array(["a", None, "a"]).dictionary_encode(), String),
        (pa.array(["a"], pa.large_string()), String),
        (pa.array([1], pa.uint8()), Int64),
        (pa.array([None, None]), Int64),
    ]:
        array = decode_column(client_column("x", given_), "x")
        assert array.type == arrow_type(expected)
        assert array.to_pylist() == given_.to_pylist()


MIXED = [[1, "a"], [1.5, True], [object()], [2**63], np.array([2**63], "u8"), np.array([1j]), [[1], [2]]]


@pytest.mark.parametrize("values", MIXED)
def test_values_without_one_type_are_refused(values: object) -> None:
    with pytest.raises(TypeError, match="'x'"):
        client_column("x", values)


ARROW_REFUSED = {
    "struct": pa.array([{"a": 1}]),
    "list of lists": pa.array([[[1]]]),
    "naive timestamp": pa.array([0], pa.timestamp("us")),
    "beyond int64": pa.array([2**63], pa.uint64()),
    "finer than microseconds": pa.array([1], pa.timestamp("ns", "UTC")),
    "half precision": pa.array([1.5], pa.float16()),
}


@pytest.mark.parametrize("values", ARROW_REFUSED.values(), ids=ARROW_REFUSED)
def test_an_arrow_column_that_no_type_holds_is_refused(values: pa.Array) -> None:
    with pytest.raises(TypeError, match="'x'"):
        client_column("x", values)
