"""Canonical values: every source type becomes the declared type exactly, or the value is named as a fault."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal as Number
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from featurestore import (
    Bool,
    Bytes,
    Date,
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
from featurestore.arrow_types import arrow_type
from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, to_us
from featurestore.dtypes import DType
from featurestore.errors import SourceError
from featurestore.ingest.canonical import Reading, convert

FAULT = object()
"""Stands in an expectation for a value that has no exact canonical form."""
NEW_YORK = "America/New_York"
NAN, INF = math.nan, math.inf


def assert_becomes(column: pa.Array, dtype: DType, expected: Sequence[Any], reading: Reading | None = None) -> None:
    """Every value of the column is what is expected, bit for bit; FAULT where it has no exact form."""
    converted = convert(column, "x", dtype, reading or Reading())
    converted.values.validate(full=True)
    assert converted.values.type == arrow_type(dtype)
    assert converted.fault_mask.tolist() == [value is FAULT for value in expected]
    assert bits(converted.values) == [bits_of(None if value is FAULT else value) for value in expected]
    if converted.faults is None:
        assert not any(value is FAULT for value in expected)


def bits(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64()).to_pylist()
    return [bits_of(value) for value in column.to_pylist()]


def bits_of(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, list):
        return [bits_of(element) for element in value]
    return value


def us(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return to_us(datetime(year, month, day, hour, minute, second, tzinfo=UTC))


def raw_strings(*values: bytes, kind: pa.DataType | None = None) -> pa.Array:
    """A string array over any bytes, as a careless writer leaves it."""
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])])
    kind = kind or pa.string()
    width = np.int64 if kind == pa.large_string() else np.int32
    buffers = [None, pa.py_buffer(offsets.astype(width)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


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


# ------------------------------------------------------------------ timestamps and dates


@pytest.mark.parametrize("zone", ["UTC", NEW_YORK, "+05:30"])
def test_timestamps_of_every_unit_are_instants_in_utc_microseconds(zone: str) -> None:
    for unit, factor in (("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        counts = [0, 1, -1, None]
        expected = [None if count is None else count * factor for count in counts]
        assert_becomes(pa.array(counts, pa.timestamp(unit, zone)), Timestamp, expected)
    assert_becomes(
        pa.array([0, 1, 1000, -1, -1000, None], pa.timestamp("ns", zone)), Timestamp, [0, FAULT, 1, FAULT, -1, None]
    )


def test_timestamps_outside_the_years_1_to_9999_are_faults() -> None:
    low, high = TIMESTAMP_MIN_US, TIMESTAMP_MAX_US
    infinities = [2**63 - 1, -(2**63) + 1, -(2**63)]
    assert_becomes(
        pa.array([low, low - 1, high, high + 1, *infinities], pa.timestamp("us", "UTC")),
        Timestamp,
        [low, FAULT, high, *[FAULT] * 4],
    )
    seconds = [low // 10**6, low // 10**6 - 1, high // 10**6, high // 10**6 + 1, 2**62]
    expected = [seconds[0] * 10**6, FAULT, seconds[2] * 10**6, FAULT, FAULT]
    assert_becomes(pa.array(seconds, pa.timestamp("s", "UTC")), Timestamp, expected)
    assert_becomes(pa.array(seconds, pa.timestamp("s")), Timestamp, expected, Reading(timezone="UTC"))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_naive_timestamps_are_refused_by_the_name_of_their_column(unit: str) -> None:
    with pytest.raises(SourceError, match=r"column 'seen_at' holds timestamps without a time zone.*timezone="):
        convert(pa.array([0], pa.timestamp(unit)), "seen_at", Timestamp, Reading())


def test_naive_timestamps_are_read_in_the_declared_zone() -> None:
    local = [datetime(2013, 1, 1), datetime(2013, 7, 1, 12), None]  # noqa: DTZ001 - naive on purpose
    for unit in ("s", "ms", "us", "ns"):
        assert_becomes(
            pa.array(local, pa.timestamp(unit)),
            Timestamp,
            [us(2013, 1, 1, 5), us(2013, 7, 1, 16), None],
            Reading(timezone=NEW_YORK),
        )
    assert_becomes(pa.array([1, 1000], pa.timestamp("ns")), Timestamp, [FAULT, 1], Reading(timezone="UTC"))


@pytest.mark.parametrize(
    ("ambiguous", "repeated"),
    [(None, FAULT), ("earlier", us(2013, 11, 3, 5, 30)), ("later", us(2013, 11, 3, 6, 30))],
)
def test_local_times_that_clock_changes_repeat_or_skip_are_never_guessed(ambiguous: str | None, repeated: Any) -> None:
    local = pa.array(
        [
            datetime(2013, 3, 10, 1, 59, 59),  # noqa: DTZ001
            datetime(2013, 3, 10, 2, 30),  # noqa: DTZ001 - skipped
            datetime(2013, 3, 10, 3),  # noqa: DTZ001
            datetime(2013, 11, 3, 1, 30),  # noqa: DTZ001 - twice
            datetime(2013, 11, 3, 2),  # noqa: DTZ001
        ]
    )
    expected = [us(2013, 3, 10, 6, 59, 59), FAULT, us(2013, 3, 10, 7), repeated, us(2013, 11, 3, 7)]
    assert_becomes(local, Timestamp, expected, Reading(timezone=NEW_YORK, ambiguous=ambiguous))


def test_a_declared_zone_leaves_zoned_timestamps_alone() -> None:
    assert_becomes(pa.array([0], pa.timestamp("us", "UTC")), Timestamp, [0], Reading(timezone=NEW_YORK))


def test_dates_outside_the_years_1_to_9999_or_with_a_time_of_day_are_faults() -> None:
    days = pa.array([-719_162, -719_163, 2_932_896, 2_932_897, 2**31 - 1, None], pa.int32()).cast(pa.date32())
    assert_becomes(days, Date, [date(1, 1, 1), FAULT, date(9999, 12, 31), FAULT, FAULT, None])
    day = 86_400_000
    assert_becomes(pa.array([day, day + 1, 2**62, None], pa.date64()), Date, [date(1970, 1, 2), FAULT, FAULT, None])


def test_a_timestamp_is_no_date_and_a_date_no_timestamp() -> None:
    for column, dtype in ((pa.array([0], pa.timestamp("s", "UTC")), Date), (pa.array([date(2020, 1, 1)]), Timestamp)):
        with pytest.raises(SourceError, match="column 'x' holds"):
            convert(column, "x", dtype, Reading())


# ------------------------------------------------------------------ text and bytes


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize(
    "broken",
    [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3", b"a\0b", b"\0"],
    ids=["byte", "overlong", "surrogate", "past unicode", "cut", "zero inside", "zero"],
)
def test_strings_that_are_no_utf8_or_hold_u0000_are_faults(kind: pa.DataType, broken: bytes) -> None:
    assert_becomes(raw_strings(b"a", broken, "é𝄞".encode(), b"", kind=kind), String, ["a", FAULT, "é𝄞", ""])


def test_a_character_cut_at_a_row_border_spoils_both_rows() -> None:
    column = raw_strings(b"ok", b"\xc3", b"\xa9", b"fine")
    assert_becomes(column, String, ["ok", FAULT, FAULT, "fine"])


def test_strings_are_not_normalised() -> None:
    assert_becomes(pa.array(["é", "e\u0301", "ß"]), String, ["é", "e\u0301", "ß"])


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2), pa.dictionary(pa.int8(), pa.binary())]
)
def test_bytes_of_every_layout_are_bytes(kind: pa.DataType) -> None:
    plain = pa.array([b"\0\xff", None, b"ab"])
    column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    assert_becomes(column, Bytes, [b"\0\xff", None, b"ab"])


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_strings_of_every_layout_are_strings(kind: pa.DataType) -> None:
    assert_becomes(pa.array(["a", None, "b", "a"]).cast(kind), String, ["a", None, "b", "a"])


def test_a_broken_word_of_a_dictionary_spoils_the_rows_that_use_it() -> None:
    words = raw_strings(b"a", b"\xff", b"b\0")
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2, 0]), words)
    assert_becomes(column, String, ["a", FAULT, None, FAULT, "a"])


def test_text_is_no_bytes_and_bytes_no_text() -> None:
    for column, dtype in ((pa.array(["a"]), Bytes), (pa.array([b"a"]), String), (pa.array([1]), String)):
        with pytest.raises(SourceError, match="column 'x' holds"):
            convert(column, "x", dtype, Reading())


def test_only_booleans_are_booleans() -> None:
    assert_becomes(pa.array([True, None, False]), Bool, [True, None, False])
    with pytest.raises(SourceError, match="declared is bool"):
        convert(pa.array([1, 0]), "x", Bool, Reading())


@pytest.mark.parametrize(
    "dtype",
    [
        Bool,
        Int32,
        Int64,
        Float32,
        Float64,
        String,
        Bytes,
        Timestamp,
        Date,
        Decimal(5, 2),
        List(String),
        Vector(Bool, 2),
    ],
    ids=str,
)
def test_a_column_of_nulls_without_a_type_fits_every_type(dtype: DType) -> None:
    assert_becomes(pa.nulls(3), dtype, [None, None, None])
    assert_becomes(pa.nulls(0), dtype, [])
    assert_becomes(pa.nulls(3, arrow_type(dtype)), dtype, [None, None, None])


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


# ------------------------------------------------------------------ text of CSV

TEXT = Reading(text=True)
PARSED: list[tuple[DType, list[tuple[str, Any]]]] = [
    (Int64, [("1", 1), ("-0", 0), ("007", 7), (str(2**63 - 1), 2**63 - 1), (str(-(2**63)), -(2**63))]),
    (Int64, [(text, FAULT) for text in (str(2**63), "1.5", "1.0", "1e3", " 1", "0x1F", "+1", "", "NA", "١", "1\n")]),
    (Int32, [(str(2**31), FAULT), (str(-(2**31)), -(2**31))]),
    (Float64, [("1.5", 1.5), ("-0", -0.0), ("0.1", 0.1), ("1e400", FAULT), ("-1e400", FAULT), ("x", FAULT)]),
    (Float64, [("nan", NAN), ("NaN", NAN), ("inf", INF), ("-Infinity", -INF), ("", FAULT), ("0x1p3", FAULT)]),
    (Float32, [("0.1", float(np.float32(0.1))), ("1e39", FAULT), ("3e38", float(np.float32(3e38)))]),
    (Bool, [("true", True), ("FALSE", False), ("yes", FAULT), ("", FAULT)]),
    (String, [("", ""), ("NA", "NA"), (" a ", " a "), ("a\0", FAULT)]),
    (Date, [("2020-02-29", date(2020, 2, 29)), ("2020-02-30", FAULT), ("2020-1-1", FAULT), ("0000-01-01", FAULT)]),
    (Decimal(5, 2), [("1.5", Number("1.5")), ("1.555", FAULT), ("1000", FAULT), ("-999.99", Number("-999.99"))]),
    (Bytes, [("YQ==", b"a"), ("", b""), ("YQ=", FAULT), ("a b", FAULT), ("é", FAULT)]),
    (Timestamp, [("2020-01-01T00:00:00Z", us(2020, 1, 1)), ("2020-01-01 02:00:00.5+02:00", us(2020, 1, 1) + 500_000)]),
    (Timestamp, [("2020-01-01T00:00:00Z", us(2020, 1, 1)), ("2020-01-01T00:00:00", FAULT), ("tomorrow", FAULT)]),
    (Timestamp, [("2020-01-01T00:00:00.1234567Z", FAULT), ("2020-13-01T00:00:00Z", FAULT), ("", FAULT)]),
]


@pytest.mark.parametrize(("dtype", "cells"), PARSED, ids=[str(case[0]) for case in PARSED])
def test_cells_of_csv_are_read_strictly(dtype: DType, cells: list[tuple[str, Any]]) -> None:
    column = pa.array([*(text for text, _ in cells), None])
    assert_becomes(column, dtype, [*(value for _, value in cells), None], TEXT)


def test_a_csv_column_of_naive_times_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match=r"column 'at' holds timestamps without a time zone.*timezone="):
        convert(pa.array(["2020-01-01 00:00:00", None, "2020-01-01"]), "at", Timestamp, TEXT)


def test_local_times_of_csv_are_read_in_the_declared_zone_and_zoned_ones_as_they_are() -> None:
    cells = ["2013-07-01 12:00", "2013-07-01T12:00:00Z", "2013-03-10 02:30:00", "2013-11-03 01:30:00", "x", None]
    expected = [us(2013, 7, 1, 16), us(2013, 7, 1, 12), FAULT, us(2013, 11, 3, 6, 30), FAULT, None]
    assert_becomes(pa.array(cells), Timestamp, expected, Reading(text=True, timezone=NEW_YORK, ambiguous="later"))


def test_csv_has_no_lists() -> None:
    with pytest.raises(SourceError, match="declared is list<int64>"):
        convert(pa.array(["[1]"]), "x", List(Int64), TEXT)


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
