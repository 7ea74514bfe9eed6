"""The gate: what comes through, what is set aside and how it can be found again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import (
    Bool,
    Bytes,
    Date,
    Entity,
    FeatureView,
    Field,
    FileSource,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
)
from featurestore.clock import to_us
from featurestore.errors import ContractViolation, SourceError
from featurestore.ingest.gate import Gate, Passed, check_column
from featurestore.ingest.source_batch import RowWindow, SourceBatch
from featurestore.offline.quarantine import QUARANTINE_SCHEMA

NOW = datetime(2020, 1, 1, tzinfo=UTC)
RUN_AT = datetime(2020, 6, 1, tzinfo=UTC)
FIRST_ROW = 100


def view_of(*schema: Field, on_violation: str = "quarantine", **source: Any) -> FeatureView:
    return FeatureView(
        name="weather",
        entities=[Entity(name="airport", join_keys={"origin": String})],
        schema=schema,
        source=FileSource(path="data/weather", timestamp_field="at", **source),
        on_violation=on_violation,
    )


def batch_of(columns: Mapping[str, pa.Array | Sequence[Any]], *, text: bool = False) -> SourceBatch:
    """Source rows with keys `k0`, `k1`, ... at NOW, unless the columns say otherwise."""
    count = len(next(iter(columns.values())))
    plain = {"origin": [f"k{row}" for row in range(count)], "at": pa.array([NOW] * count, pa.timestamp("us", "UTC"))}
    numbers = np.arange(FIRST_ROW, FIRST_ROW + count)
    return SourceBatch(rows=pa.table({**plain, **columns}), source="weather/a.parquet", row_numbers=numbers, text=text)


def check(view: FeatureView, columns: Mapping[str, Any], window: RowWindow | None = None) -> Passed:
    return Gate(view, "run1", to_us(RUN_AT)).check(batch_of(columns), window)


def kept(passed: Passed, *names: str) -> list[Any]:
    columns = passed.rows.select(list(names)).to_pydict()
    return columns[names[0]] if len(names) == 1 else list(zip(*columns.values(), strict=True))


def set_aside(passed: Passed) -> list[tuple[int, str, str]]:
    """(source row, field, rule) of the quarantined rows."""
    if passed.refused is None:
        return []
    assert passed.refused.schema == QUARANTINE_SCHEMA
    return [(row["source_row"], row["field"], row["rule"]) for row in passed.refused.to_pylist()]


# ------------------------------------------------------------------ reject, quarantine, warn

COUNTED = (Field(name="x", dtype=Int32, ge=0, nullable=False), Field(name="y", dtype=Int32, le=9))
MIXED = {"x": pa.array([1, -1, None, 2**40, 2], pa.int64()), "y": pa.array([1, 10, 1, 1, 10], pa.int64())}
COUNTS = {"x:dtype": 1, "x:not_null": 1, "x:ge": 1, "y:le": 2}


def test_reject_fails_the_whole_batch_with_counts_and_the_place_of_the_first() -> None:
    with pytest.raises(ContractViolation) as caught:
        check(view_of(*COUNTED, on_violation="reject"), MIXED)
    assert caught.value.counts == COUNTS
    assert caught.value.view == "weather@1"
    assert "weather/a.parquet, row 103: x has no exact int32 value" in str(caught.value)
    assert 'on_violation="quarantine"' in str(caught.value)


def test_quarantine_keeps_the_good_rows_and_names_the_first_breach_of_each_bad_one() -> None:
    passed = check(view_of(*COUNTED), MIXED)
    assert kept(passed, "origin", "x", "y") == [("k0", 1, 1)]
    assert set_aside(passed) == [(101, "x", "ge"), (102, "x", "not_null"), (103, "x", "dtype"), (104, "y", "le")]
    assert passed.breaches == COUNTS
    assert passed.warned == 0


def test_warn_keeps_rows_that_can_be_stored_and_sets_the_others_aside() -> None:
    passed = check(view_of(*COUNTED, on_violation="warn"), MIXED)
    assert kept(passed, "origin", "x", "y") == [("k0", 1, 1), ("k1", -1, 10), ("k2", None, 1), ("k4", 2, 10)]
    assert set_aside(passed) == [(103, "x", "dtype")]
    assert passed.breaches == COUNTS
    assert passed.warned == 3


@pytest.mark.parametrize("on_violation", ["quarantine", "warn"])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"origin": ["a", None]}, (101, "origin", "not_null")),
        ({"origin": ["a", "b\0"]}, (101, "origin", "dtype")),
        ({"at": pa.array([0, None], pa.timestamp("us", "UTC"))}, (101, "at", "not_null")),
        ({"at": pa.array([0, 1], pa.timestamp("ns", "UTC"))}, (101, "at", "dtype")),
        ({"at": pa.array([0, 2**62], pa.timestamp("us", "UTC"))}, (101, "at", "dtype")),
        ({"known": pa.array([0, None], pa.timestamp("us", "UTC"))}, (101, "known", "not_null")),
    ],
    ids=["null key", "bad key", "null event", "nanoseconds", "far", "null created"],
)
def test_keys_and_times_are_never_null_nor_inexact(on_violation: str, columns: Any, expected: Any) -> None:
    known = pa.array([0, 0], pa.timestamp("us", "UTC"))
    view = view_of(Field(name="x", dtype=Int32), on_violation=on_violation, created_timestamp_column="known")
    passed = check(view, {"x": [1, 2], "known": known, **columns})
    assert set_aside(passed) == [expected]
    assert kept(passed, "x") == [1]
    with pytest.raises(ContractViolation):
        check(
            view_of(Field(name="x", dtype=Int32), on_violation="reject", created_timestamp_column="known"),
            {"x": [1, 2], "known": known, **columns},
        )


@pytest.mark.parametrize("on_violation", ["reject", "quarantine", "warn"])
def test_a_clean_batch_comes_through_whole(on_violation: str) -> None:
    passed = check(view_of(*COUNTED, on_violation=on_violation), {"x": [1, 2], "y": [None, 3]})
    assert passed == Passed(rows=passed.rows)
    assert passed.rows.column_names == ["origin", "event_timestamp", "created_timestamp", "x", "y"]
    assert kept(passed, "x", "y") == [(1, None), (2, 3)]
    empty = check(view_of(*COUNTED, on_violation=on_violation), {"x": pa.array([], pa.int32()), "y": pa.nulls(0)})
    assert empty.rows.num_rows == 0


def test_created_is_the_event_time_where_the_source_has_none() -> None:
    later = pa.array([NOW + timedelta(hours=1)], pa.timestamp("us", "UTC"))
    plain = check(view_of(Field(name="x", dtype=Int32)), {"x": [1]})
    created = check(view_of(Field(name="x", dtype=Int32), created_timestamp_column="known"), {"x": [1], "known": later})
    assert kept(plain, "created_timestamp") == [NOW]
    assert kept(created, "event_timestamp", "created_timestamp") == [(NOW, NOW + timedelta(hours=1))]


# ------------------------------------------------------------------ the quarantine


def raw(column: pa.Array, dtype: Any) -> Any:
    """What quarantine shows of a bad value: the first of `column`."""
    passed = check(view_of(Field(name="x", dtype=dtype)), {"x": column})
    assert passed.refused is not None
    row = json.loads(passed.refused["raw"][0].as_py(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert row["origin"] == "k0"
    return row["x"]


def broken_string() -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff")]
    )


@pytest.mark.parametrize(
    ("column", "dtype", "shown"),
    [
        (pa.array([2**40]), Int32, 2**40),
        (pa.array([2**64 - 1], pa.uint64()), Int64, 2**64 - 1),
        (pa.array([0.1]), Float32, 0.1),
        (pa.array(["a\0"]), String, "a\0"),
        (broken_string(), String, {"hex": "61ff"}),
        (pa.DictionaryArray.from_arrays([0], broken_string()), String, {"hex": "61ff"}),
        (pa.ListArray.from_arrays([0, 1], broken_string()), List(String), [{"hex": "61ff"}]),
        (pa.array([[1, None]]), List(Int64), [1, None]),
        (pa.array([1], pa.timestamp("ns", "UTC")), Timestamp, "1970-01-01 00:00:00.000000001Z"),
        (pa.array([86_400_001], pa.date64()), Date, 86_400_001),
    ],
    ids=["int", "uint64", "float", "zero", "utf8", "dictionary", "list of broken", "null element", "ns", "date64"],
)
def test_the_raw_value_of_a_refused_row_can_be_read(column: pa.Array, dtype: Any, shown: Any) -> None:
    assert raw(column, dtype) == shown


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pa.array([2**62], pa.timestamp("s", "UTC")), Timestamp),
        (pa.array([2**63 - 1], pa.timestamp("us", "UTC")), Timestamp),
        (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), Date),
    ],
    ids=str,
)
def test_times_that_python_cannot_hold_are_shown_as_numbers(column: pa.Array, dtype: Any) -> None:
    assert raw(column, dtype) in (2**62, 2**63 - 1, 2**31 - 1)


def test_numbers_that_json_cannot_hold_are_shown_as_text() -> None:
    passed = check(view_of(Field(name="x", dtype=Float64, ge=0)), {"x": [math.nan, -math.inf]})
    assert passed.refused is not None
    assert [json.loads(text)["x"] for text in passed.refused["raw"].to_pylist()] == ["nan", "-inf"]


def test_bytes_are_shown_as_hex_and_columns_that_the_view_does_not_know_are_shown_too() -> None:
    view = view_of(Field(name="x", dtype=Bytes, max_length=1))
    extra = pa.array([{"a": [math.inf], "t": datetime(2020, 1, 1, tzinfo=UTC)}])
    passed = check(view, {"x": [b"\xff\0"], "extra": extra, "span": pa.array([5], pa.duration("ns"))})
    assert passed.refused is not None
    shown = json.loads(passed.refused["raw"][0].as_py())
    assert shown["x"] == "ff00"
    assert shown["extra"] == {"a": ["inf"], "t": "2020-01-01 00:00:00.000000Z"}
    assert shown["span"] == 5


def test_a_refused_row_says_where_it_came_from() -> None:
    passed = check(view_of(Field(name="x", dtype=Int32, ge=0)), {"x": [1, -1]})
    assert passed.refused is not None
    (row,) = passed.refused.to_pylist()
    assert row["view"] == "weather@1"
    assert row["run"] == "run1"
    assert row["source"] == "weather/a.parquet"
    assert row["source_row"] == 101
    assert row["quarantined_at"] == RUN_AT
    assert "x" in row["reason"]
    assert "0" in row["reason"]


# ------------------------------------------------------------------ columns


def test_missing_columns_are_named_with_those_that_are_there() -> None:
    batch = SourceBatch(rows=pa.table({"at": [1], "z": [1]}), source="a.csv", row_numbers=np.arange(1))
    with pytest.raises(SourceError, match=r"weather@1: a.csv lacks the columns 'origin', 'x'; it has: at, z"):
        Gate(view_of(Field(name="x", dtype=Int32)), "run", 0).check(batch)


def test_a_column_that_occurs_twice_is_refused_by_name() -> None:
    rows = batch_of({"x": [1]}).rows.append_column("x", pa.array([2]))
    batch = SourceBatch(rows=rows, source="a.csv", row_numbers=np.arange(1))
    with pytest.raises(SourceError, match=r"a.csv has several columns named 'x'; rename"):
        Gate(view_of(Field(name="x", dtype=Int32)), "run", 0).check(batch)


def test_a_type_that_can_never_fit_is_refused_with_view_and_source() -> None:
    with pytest.raises(SourceError, match=r"weather@1, weather/a.parquet: column 'x' holds double, declared is int32"):
        check(view_of(Field(name="x", dtype=Int32)), {"x": [1.0]})
    with pytest.raises(SourceError, match=r"weather@1, .*column 'at' holds timestamps without a time zone"):
        check(view_of(Field(name="x", dtype=Int32)), {"x": [1], "at": pa.array([0], pa.timestamp("s"))})


def test_the_columns_of_a_view_may_be_columns_of_time_and_key_as_well() -> None:
    passed = check(view_of(Field(name="at", dtype=Timestamp), Field(name="flag", dtype=Bool)), {"flag": [True]})
    assert kept(passed, "at", "event_timestamp") == [(NOW, NOW)]


# ------------------------------------------------------------------ the window

HOURS = pa.array([NOW + timedelta(hours=hour) for hour in range(4)] + [None], pa.timestamp("us", "UTC"))


def window(start: int | None, end: int | None) -> RowWindow:
    def at(hour: int | None) -> int | None:
        return None if hour is None else to_us(NOW + timedelta(hours=hour))

    return RowWindow(start_us=at(start), end_us=at(end))


@pytest.mark.parametrize(
    ("start", "end", "inside"),
    [(1, 3, [1, 2]), (None, 2, [0, 1]), (2, None, [2, 3]), (None, None, [0, 1, 2, 3]), (9, None, []), (None, 0, [])],
)
def test_a_window_of_event_times_is_half_open_and_rows_without_time_are_refused_not_skipped(
    start: int | None, end: int | None, inside: list[int]
) -> None:
    passed = check(view_of(Field(name="x", dtype=Int32)), {"x": range(5), "at": HOURS}, window(start, end))
    assert kept(passed, "x") == inside
    assert passed.outside == 4 - len(inside)
    assert set_aside(passed) == [(104, "at", "not_null")]


def test_rows_outside_the_window_are_not_checked() -> None:
    view = view_of(Field(name="x", dtype=Int32, ge=2), on_violation="reject")
    passed = check(view, {"x": range(4), "at": HOURS[:4]}, window(2, None))
    assert kept(passed, "x") == [2, 3]
    assert passed.breaches == {}


@pytest.mark.parametrize(
    ("after", "unread_from", "inside"),
    [(1, None, [2, 3]), (1, 1, [1, 2, 3]), (9, 2, [2, 3]), (9, None, [])],
)
def test_a_window_of_arrival_takes_rows_known_later_or_never_read(
    after: int, unread_from: int | None, inside: list[int]
) -> None:
    view = view_of(Field(name="x", dtype=Int32), created_timestamp_column="known")
    edges = RowWindow(
        created_after_us=to_us(NOW + timedelta(hours=after)),
        unread_from_us=None if unread_from is None else to_us(NOW + timedelta(hours=unread_from)),
    )
    passed = check(view, {"x": range(4), "at": HOURS[:4], "known": HOURS[:4]}, edges)
    assert kept(passed, "x") == inside


# ------------------------------------------------------------------ single columns


def test_check_column_gives_canonical_values_and_the_rows_that_break_each_rule() -> None:
    field = Field(name="x", dtype=Int32, ge=0, nullable=False)
    values, broken = check_column(field, pa.array([1, -1, 2**40, None]))
    assert values.to_pylist() == [1, -1, None, None]
    assert {says: rows.tolist() for says, rows in broken.items()} == {
        "x has no exact int32 value": [False, False, True, False],
        "x is null": [False, False, False, True],
        "x is below the least allowed 0": [False, True, False, False],
    }
    assert check_column(field, pa.array([1]))[1] == {}
    with pytest.raises(SourceError, match="column 'x' holds double"):
        check_column(field, pa.array([1.0]))
