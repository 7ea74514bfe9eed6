"""Canonical text and bytes, and what is read from the text of CSV."""

from __future__ import annotations

from datetime import date
from decimal import Decimal as Number
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

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
from featurestore.dtypes import DType
from featurestore.errors import SourceError
from featurestore.ingest.canonical import Reading, convert
from tests.unit.ingest.canonical import FAULT, INF, NAN, NEW_YORK, TEXT, assert_becomes, raw_strings, us


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


# ------------------------------------------------------------------ text of CSV

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
