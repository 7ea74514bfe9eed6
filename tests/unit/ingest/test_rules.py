"""Each rule of a field's contract at its edge; null passes every rule but `not_null`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal as Number
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Bytes, Decimal, Field, Float32, Float64, Int32, Int64, List, String, Timestamp
from featurestore.arrow_types import arrow_type
from featurestore.ingest.rules import field_rules

NAN, INF = math.nan, math.inf
TENTH = float(np.float32(0.1))
ABOVE = float(np.nextafter(np.float32(0.1), np.float32(1)))
BELOW = float(np.nextafter(np.float32(0.1), np.float32(0)))
NOW = datetime(2020, 1, 1, tzinfo=UTC)


def broken(field: Field, values: Sequence[Any]) -> list[Any]:
    """The values that break a rule of the field."""
    column = pa.array(values, arrow_type(field.dtype))
    (rule,) = field_rules(field)
    marks = rule.breaches(column)
    assert marks.dtype == np.bool_
    assert marks.tolist() == rule.breaches(pa.concat_arrays([column, column]).slice(len(column))).tolist()
    return [value for value, mark in zip(values, marks, strict=True) if mark]


def test_null_breaks_only_not_null() -> None:
    assert broken(Field(name="x", dtype=Int32, nullable=False), [1, None, 0]) == [None]
    rules: list[dict[str, Any]] = [{"ge": 0}, {"gt": 0}, {"le": 0}, {"lt": 0}, {"allowed_values": [0]}]
    for rule in rules:
        assert broken(Field(name="x", dtype=Int32, **rule), [None]) == []
    text_rules: list[dict[str, Any]] = [{"pattern": "a"}, {"min_length": 1}, {"max_length": 1}]
    for rule in text_rules:
        assert broken(Field(name="x", dtype=String, **rule), [None]) == []
    assert list(field_rules(Field(name="x", dtype=Int32))) == []


@pytest.mark.parametrize(
    ("rule", "values", "breaking"),
    [
        ({"ge": 0.1}, [BELOW, TENTH, ABOVE], [BELOW]),
        ({"gt": 0.1}, [BELOW, TENTH, ABOVE], [BELOW, TENTH]),
        ({"le": 0.1}, [BELOW, TENTH, ABOVE], [ABOVE]),
        ({"lt": 0.1}, [BELOW, TENTH, ABOVE], [TENTH, ABOVE]),
        ({"ge": 0}, [-0.0, 0.0, -1e-45], [-1e-45]),
        ({"le": INF}, [INF], []),
        ({"lt": INF}, [INF, 1e38], [INF]),
        ({"ge": -1e38}, [-INF, -1e38], [-INF]),
    ],
)
def test_float32_bounds_hold_in_float32(rule: dict[str, Any], values: list[float], breaking: list[float]) -> None:
    assert broken(Field(name="x", dtype=Float32, **rule), values) == breaking


@pytest.mark.parametrize("bound", ["ge", "gt", "le", "lt"])
@pytest.mark.parametrize("dtype", [Float32, Float64], ids=str)
def test_nan_breaks_any_bound_unless_allowed(bound: str, dtype: Any) -> None:
    rule: dict[str, Any] = {bound: 0}
    assert len(broken(Field(name="x", dtype=dtype, **rule), [NAN])) == 1
    assert broken(Field(name="x", dtype=dtype, allow_nan=True, **rule), [NAN]) == []
    assert len(broken(Field(name="x", dtype=dtype, allow_nan=True, **rule), [-1.0, 1.0])) == 1


def test_integer_bounds_are_exact_beyond_2_to_the_53() -> None:
    edge = 2**53 + 1
    assert broken(Field(name="x", dtype=Int64, le=edge), [edge - 1, edge, edge + 1, 2**63 - 1]) == [edge + 1, 2**63 - 1]
    assert broken(Field(name="x", dtype=Int64, gt=-(2**63)), [-(2**63), -(2**63) + 1]) == [-(2**63)]


def test_decimal_bounds_compare_as_numbers() -> None:
    values = [Number("1.49"), Number("1.50"), Number("2.00"), Number("1.99"), Number("-9.99")]
    assert broken(Field(name="x", dtype=Decimal(5, 2), ge=Number("1.5")), values) == [Number("1.49"), Number("-9.99")]
    assert broken(Field(name="x", dtype=Decimal(5, 2), lt=Number(2)), values) == [Number("2.00")]
    assert broken(Field(name="x", dtype=Decimal(5, 2), lt=2), values) == [Number("2.00")]


@pytest.mark.parametrize(
    ("dtype", "allowed", "values", "breaking"),
    [
        (String, ["a", ""], ["a", "", "A", "a ", "é"], ["A", "a ", "é"]),
        (Int64, [2**53 + 1], [2**53, 2**53 + 1, 2**53 + 2], [2**53, 2**53 + 2]),
        (Bytes, [b"\0"], [b"\0", b"", b"\0\0"], [b"", b"\0\0"]),
        (Timestamp, [NOW], [NOW, NOW + timedelta(microseconds=1)], [NOW + timedelta(microseconds=1)]),
        (Decimal(5, 2), [Number("1.5")], [Number("1.50"), Number("1.51")], [Number("1.51")]),
        (Float32, [0.1], [TENTH, ABOVE], [ABOVE]),
        (Float64, [0.5], [0.5, INF], [INF]),
    ],
    ids=str,
)
def test_allowed_values_are_exact(dtype: Any, allowed: list[Any], values: list[Any], breaking: list[Any]) -> None:
    assert broken(Field(name="x", dtype=dtype, allowed_values=allowed), values) == breaking


def test_nan_is_allowed_only_when_listed() -> None:
    assert len(broken(Field(name="x", dtype=Float64, allowed_values=[0.0]), [NAN, 0.0])) == 1
    assert broken(Field(name="x", dtype=Float64, allowed_values=[0.0, NAN]), [NAN, 0.0]) == []


@pytest.mark.parametrize(
    ("pattern", "values", "breaking"),
    [
        (r"\d+", ["12", "12\n", "\n12", "1 2", "", "١٢", "a12"], ["12\n", "\n12", "1 2", "", "١٢", "a12"]),
        ("a|bc", ["a", "bc", "ac", "abc", "b"], ["ac", "abc", "b"]),
        (".*", ["", "é𝄞", "a\nb", "\n"], ["a\nb", "\n"]),
        ("(?s).*", ["a\nb"], []),
        ("(?i)jfk", ["JFK", "jfk", "jfkx"], ["jfkx"]),
        ("^a$", ["a", "a\n", "b\na"], ["a\n", "b\na"]),
        ("(?m)^a$", ["a", "b\na"], ["b\na"]),
        (r"\w", ["a", "_", "é"], ["é"]),
        (".", ["é", "𝄞", "e\u0301"], ["e\u0301"]),
        ("", ["", "a"], ["a"]),
        (r"a\.b", ["a.b", "axb"], ["axb"]),
    ],
)
def test_a_pattern_matches_the_whole_string(pattern: str, values: list[str], breaking: list[str]) -> None:
    assert broken(Field(name="x", dtype=String, pattern=pattern), values) == breaking


@pytest.mark.parametrize(
    ("dtype", "values", "shorter_than_2", "longer_than_2"),
    [
        (String, ["", "é", "𝄞𝄞", "e\u0301", "abc", "ééé"], ["", "é"], ["abc", "ééé"]),
        (Bytes, [b"", b"a", "é".encode(), b"\0\0\0"], [b"", b"a"], [b"\0\0\0"]),
        (List(String), [[], ["abc"], ["a", "b"], ["a", "b", "c"]], [[], ["abc"]], [["a", "b", "c"]]),
    ],
    ids=["code points", "bytes", "elements"],
)
def test_lengths_count_code_points_bytes_or_elements(
    dtype: Any, values: list[Any], shorter_than_2: list[Any], longer_than_2: list[Any]
) -> None:
    assert broken(Field(name="x", dtype=dtype, min_length=2), values) == shorter_than_2
    assert broken(Field(name="x", dtype=dtype, max_length=2), values) == longer_than_2


def test_rules_come_in_the_order_in_which_a_breach_is_named() -> None:
    field = Field(
        name="x", dtype=Int64, nullable=False, le=9, ge=0, lt=9, gt=0, allowed_values=[1, 2], description="anything"
    )
    assert [rule.name for rule in field_rules(field)] == ["not_null", "ge", "gt", "le", "lt", "allowed_values"]
    text = Field(name="x", dtype=String, pattern="a", min_length=1, max_length=2, allowed_values=["a"])
    assert [rule.name for rule in field_rules(text)] == ["allowed_values", "pattern", "min_length", "max_length"]
    assert all("x" in rule.says for rule in (*field_rules(field), *field_rules(text)))
