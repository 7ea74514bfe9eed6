"""Canonical values: every source type becomes the declared type exactly, or the value is named as a fault."""

from __future__ import annotations

import time
from decimal import Decimal as Number
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from featurestore import (
    Bool,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.dtypes import DType
from featurestore.errors import SourceError
from featurestore.ingest.canonical import Reading, convert
from tests.unit.ingest.canonical import FAULT, INF, NAN, NEW_YORK, TEXT, assert_becomes, raw_strings, us

# ------------------------------------------------------------------ integers


@pytest.mark.parametrize("width", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("dtype", [Int32, Int64], ids=str)
def test_integers_of_every_width_are_kept_or_refused_at_the_end_of_the_range(width: str, dtype: DType) -> None:
    limits, target = np.iinfo(width), np.iinfo(str(dtype))
    values = [int(limits.min), 0, int(limits.max)]

    expected = [value if target.min <= value <= target.max else FAULT for value in values]

    assert_becomes(pa.array([*values, None], pa.type_for_alias(width)), dtype, [*expected, None])


def test_int64_beyond_2_to_the_53_stays_exact_beside_a_null() -> None:
    assert_becomes(pa.array([2**53 + 1, None, -(2**63), 2**63 - 1]), Int64, [2**53 + 1, None, -(2**63), 2**63 - 1])


@pytest.mark.parametrize("column", [pa.array([1.0]), pa.array([True]), pa.array(["1"]), pa.array([Number(1)])])
def test_nothing_else_becomes_an_integer(column: pa.Array) -> None:
    with pytest.raises(SourceError, match=r"column 'x' holds .*, declared is int64; .*convert the column"):
        convert(column, "x", Int64, Reading())


def test_uint64_beyond_int64_is_a_fault() -> None:
    assert_becomes(pa.array([2**63 - 1, 2**63, 2**64 - 1, None], pa.uint64()), Int64, [2**63 - 1, FAULT, FAULT, None])


# ------------------------------------------------------------------ floats


def test_integers_become_floats_only_where_exact() -> None:
    values = [2**53, 2**53 + 1, 2**53 + 2, 2**60, 2**63 - 1, -(2**63), -(2**53) - 1, 0, None]
    assert_becomes(
        pa.array(values, pa.int64()),
        Float64,
        [float(2**53), FAULT, float(2**53 + 2), float(2**60), FAULT, -float(2**63), FAULT, 0.0, None],
    )
    assert_becomes(pa.array([2**24, 2**24 + 1, 2**24 + 2, -(2**24) - 1]), Float32, [2.0**24, FAULT, 2.0**24 + 2, FAULT])
    assert_becomes(pa.array([2**64 - 1, 2**63], pa.uint64()), Float64, [FAULT, 2.0**63])
    assert_becomes(pa.array([-128, 127, None], pa.int8()), Float32, [-128.0, 127.0, None])


def test_float64_becomes_float32_only_where_exact() -> None:
    values = [0.5, 0.1, 1e300, -1e300, 1e-46, 2.0**-149, INF, -INF, NAN, -0.0, None]
    expected = [0.5, FAULT, FAULT, FAULT, FAULT, 2.0**-149, INF, -INF, NAN, -0.0, None]
    assert_becomes(pa.array(values, pa.float64()), Float32, expected)


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [Float32, Float64], ids=str)
def test_halves_and_singles_widen_exactly(source: type, dtype: DType) -> None:
    column = pa.array(np.array([1.5, -0.0, INF, 65504.0], source))
    assert_becomes(column, dtype, [1.5, -0.0, INF, 65504.0])


@pytest.mark.parametrize(
    ("kind", "pattern", "canonical", "dtype"),
    [
        (np.uint64, 0xFFF8_0000_0000_0001, 0x7FF8_0000_0000_0000, Float64),
        (np.uint64, 0x7FF0_0000_0000_0001, 0x7FF8_0000_0000_0000, Float64),
        (np.uint32, 0xFFC0_1234, 0x7FC0_0000, Float32),
        (np.uint32, 0x7F80_0001, 0x7FC0_0000, Float32),
    ],
)
def test_every_nan_becomes_the_one_nan(kind: type, pattern: int, canonical: int, dtype: DType) -> None:
    column = pa.array(np.array([pattern, 0], kind).view(f"f{np.dtype(kind).itemsize}"))

    values = convert(column, "x", dtype, Reading()).values

    assert values.to_numpy().view(kind).tolist() == [canonical, 0]
    wide = convert(column, "x", Float64, Reading()).values.to_numpy().view(np.uint64)
    assert wide[0] == 0x7FF8_0000_0000_0000


def test_nan_payloads_in_lists_and_vectors_become_the_one_nan() -> None:
    elements = pa.array(np.array([0x7FC0_1234, 0xFFC0_0000], np.uint32).view(np.float32))
    vector = convert(pa.FixedSizeListArray.from_arrays(elements, 2), "x", Vector(Float32, 2), Reading()).values
    listed = convert(pa.ListArray.from_arrays([0, 2], elements), "x", List(Float32), Reading()).values
    for column in (vector, listed):
        assert column.values.to_numpy().view(np.uint32).tolist() == [0x7FC0_0000] * 2


# ------------------------------------------------------------------ decimals


def test_decimals_are_rescaled_exactly_or_refused() -> None:
    values = [Number("1.50"), Number("1.55"), Number("-99.90"), Number("100.00"), None]
    for kind in (pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2), pa.decimal256(50, 2)):
        assert_becomes(pa.array(values, kind), Decimal(3, 1), [Number("1.5"), FAULT, Number("-99.9"), FAULT, None])
    assert_becomes(pa.array([Number("1.5")], pa.decimal128(2, 1)), Decimal(38, 30), [Number("1.5")])
    assert_becomes(pa.array([Number(10) ** 8], pa.decimal128(9, 0)), Decimal(38, 30), [FAULT])


def test_integers_become_decimals_that_hold_them() -> None:
    assert_becomes(
        pa.array([1, 10**8, -(10**8) + 1, None]), Decimal(10, 2), [Number(1), FAULT, Number(-99_999_999), None]
    )
    assert_becomes(pa.array([2**64 - 1], pa.uint64()), Decimal(38, 18), [Number(2**64 - 1)])
    assert_becomes(pa.array([3, 7], pa.int8()), Decimal(1, 0), [Number(3), Number(7)])


def test_a_float_never_becomes_a_decimal() -> None:
    with pytest.raises(SourceError, match="declared is decimal"):
        convert(pa.array([1.0]), "x", Decimal(3, 1), Reading())


# ------------------------------------------------------------------ lists and vectors

LIST_KINDS = [pa.list_, pa.large_list]


@pytest.mark.parametrize("kind", LIST_KINDS)
def test_a_list_with_a_null_or_a_bad_element_is_a_fault_as_a_whole(kind: Any) -> None:
    column = pa.array([[1, 2], None, [3, None], [], [2**40], [None]], kind(pa.int64()))
    assert_becomes(column, List(Int32), [[1, 2], None, FAULT, [], FAULT, FAULT])


@pytest.mark.parametrize("kind", LIST_KINDS)
def test_a_vector_has_exactly_its_length_and_no_null(kind: Any) -> None:
    column = pa.array([[1, 2], None, [3, None], [1], [], [1, 2, 3], [0.1, 2]], kind(pa.float64()))
    assert_becomes(column, Vector(Float32, 2), [[1.0, 2.0], None, FAULT, FAULT, FAULT, FAULT, FAULT])


def test_fixed_size_lists_become_vectors_and_lists() -> None:
    column = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2))
    assert_becomes(column, Vector(Int32, 2), [[1, 2], None, [3, 4]])
    assert_becomes(column, List(Int64), [[1, 2], None, [3, 4]])
    assert_becomes(column, Vector(Int32, 3), [FAULT, None, FAULT])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_lists_of_strings_of_every_layout(kind: pa.DataType) -> None:
    plain = pa.array([["a", ""], None, [], ["a\0"]], pa.list_(pa.string()))
    elements = plain.values.dictionary_encode() if pa.types.is_dictionary(kind) else plain.values.cast(kind)
    column = pa.ListArray.from_arrays(plain.offsets, elements, mask=plain.is_null())
    assert_becomes(column, List(String), [["a", ""], None, [], FAULT])


def test_values_that_lie_under_a_null_do_not_count() -> None:
    elements = pa.array([1, 2, 3, None, 2**40], pa.int64())
    column = pa.ListArray.from_arrays([0, 2, 5], elements, mask=pa.array([False, True]))
    assert_becomes(column, List(Int32), [[1, 2], None])
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([1, None, 3, 4]), 2, mask=pa.array([True, False]))
    assert_becomes(fixed, Vector(Int64, 2), [None, [3, 4]])


SLICED: list[tuple[pa.Array, DType, list[Any]]] = [
    (pa.array([9, 1, None, 2**40, 3]), Int32, [9, 1, None, FAULT, 3]),
    (pa.array([9.0, 0.1, None, NAN, -0.0]), Float32, [9.0, FAULT, None, NAN, -0.0]),
    (raw_strings(b"x", b"\xff", b"a", b"b\0", b"c"), String, ["x", FAULT, "a", FAULT, "c"]),
    (pa.array([[9], [1, 2], None, [3, 4], [5, None]]), Vector(Int64, 2), [FAULT, [1, 2], None, [3, 4], FAULT]),
    (pa.array([[9], [1, 2], None, [], [5, None]]), List(Int64), [[9], [1, 2], None, [], FAULT]),
    (
        pa.array([[9, 9], [1, 2], None, [3, 4], [5, None]], pa.list_(pa.int64(), 2)),
        Vector(Int64, 2),
        [[9, 9], [1, 2], None, [3, 4], FAULT],
    ),
    (pa.array([True, False, None, True, False]), Bool, [True, False, None, True, False]),
    (pa.array([1, 1000, None, 2, 2000], pa.timestamp("ns", "UTC")), Timestamp, [FAULT, 1, None, FAULT, 2]),
    (pa.array(["a", "b", None, "a", "c"]).dictionary_encode(), String, ["a", "b", None, "a", "c"]),
]


@pytest.mark.parametrize(("column", "dtype", "expected"), SLICED, ids=[str(case[1]) for case in SLICED])
def test_slices_convert_as_their_own_arrays_do(column: pa.Array, dtype: DType, expected: list[Any]) -> None:
    for start in range(5):
        for stop in range(start, 6):
            assert_becomes(column.slice(start, stop - start), dtype, expected[start:stop])


# ------------------------------------------------------------------ where the faults are

ROWS = 1000
PLACES: dict[str, NDArray[np.bool_]] = {
    "none": np.zeros(ROWS, bool),
    "all": np.ones(ROWS, bool),
    "first": np.arange(ROWS) == 0,
    "last": np.arange(ROWS) == ROWS - 1,
    "border": np.isin(np.arange(ROWS), [499, 500]),
    "scattered": np.random.default_rng(1).random(ROWS) < 0.1,
}
WRITTEN = {
    "integer": (lambda bad: pa.array(np.where(bad, 2**40, 7)), Int32, Reading(), 7),
    "local time": (
        lambda bad: pa.array(np.where(bad, us(2013, 3, 10, 2, 30), us(2013, 3, 10, 3))).cast(pa.timestamp("us")),
        Timestamp,
        Reading(timezone=NEW_YORK),
        us(2013, 3, 10, 7),
    ),
    "text": (lambda bad: pa.array(np.where(bad, "x", "1.5").tolist()), Float64, TEXT, 1.5),
    "decimal": (
        lambda bad: pa.array([Number("1.55") if is_bad else Number("1.50") for is_bad in bad]),
        Decimal(3, 1),
        Reading(),
        Number("1.5"),
    ),
    "utf8": (lambda bad: raw_strings(*(b"\xff" if is_bad else b"ok" for is_bad in bad)), String, Reading(), "ok"),
}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("written", WRITTEN)
def test_faults_are_found_exactly(places: str, written: str) -> None:
    bad = PLACES[places]
    write, dtype, reading, good = WRITTEN[written]
    assert_becomes(write(bad), dtype, [FAULT if is_bad else good for is_bad in bad], reading)


@pytest.mark.parametrize(
    ("column", "dtype", "reading"),
    [
        (pa.array(np.full(100_000, 2**40)), Int32, Reading()),
        (pa.array(np.full(100_000, 1), pa.timestamp("ns", "UTC")), Timestamp, Reading()),
        (pa.array(["x"] * 100_000), Int64, TEXT),
        (pa.array(["a\0"] * 100_000), String, Reading()),
        (pa.array([0.1] * 100_000), Float32, Reading()),
    ],
    ids=["int", "timestamp", "csv int", "string", "float"],
)
def test_a_column_of_faults_costs_no_work_a_value(column: pa.Array, dtype: DType, reading: Reading) -> None:
    started = time.process_time()
    converted = convert(column, "x", dtype, reading)
    assert converted.fault_mask.all()
    assert time.process_time() - started < 1  # halving down to every single value takes some 4 s
