"""What a condition answers for one row: integers are computed exactly, wherever they stand."""

from __future__ import annotations

import decimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore import Condition, Decimal, Entity, FeatureView, Field, FileSource, Float64, Int32, Int64, String
from featurestore.offline.base import history_schema
from featurestore.offline.conditions import Conditions

FIELDS = [
    Field(name="i", dtype=Int32),
    Field(name="j", dtype=Int64),
    Field(name="g", dtype=Float64),
    Field(name="m", dtype=Decimal(10, 2)),
    Field(name="s", dtype=String),
]
GREATEST, WIDEST = 2**31 - 1, 2**63 - 1


def breaks(sql: str, **values: Any) -> bool:
    """Whether a row with these values (null otherwise) breaks the condition."""
    view = FeatureView(
        name="v",
        entities=[Entity(name="e", join_keys={"k": Int64})],
        schema=FIELDS,
        source=FileSource(path="v.csv", timestamp_field="t"),
        conditions=[Condition(name="c", sql=sql)],
    )
    schema = history_schema(view)
    columns = {field.name: pa.array([values.get(field.name)], field.type) for field in schema}
    ((broken,),) = Conditions(view).broken(pa.table(columns, schema=schema))
    return bool(broken)


@pytest.mark.parametrize(
    "sql",
    [
        "i + i < 0",
        "i * i * i < 0",
        "j * j < 0",
        "coalesce(i, 0) + coalesce(i, 0) < 0",
        "CASE WHEN j > 0 THEN i ELSE 0 END + i < 0",
        "CASE WHEN i * i * i < 0 THEN 1 ELSE j END + 1 < 0",
        "coalesce(j, 0) + coalesce(j, 0) < 0",
        "nullif(j, 0) * 2 < 0",
        "CAST(i AS BIGINT) * CAST(j AS BIGINT) < 0",
        "CAST(i AS INTEGER) * i < 0",
        "round(i) * 2 < 0",
        "floor(j) + 1 < 0",
        "length(s) * 2147483647 * 2147483647 * 4 < 0",
        "abs(-9223372036854775808 + j - j) < 0",
        "(i * i * i) / 2 < 0",
    ],
)
def test_integers_are_computed_without_loss_wherever_they_stand(sql: str) -> None:
    """A sum that overflowed would be null, and null keeps the rule."""
    assert breaks(sql, i=GREATEST, j=WIDEST, s="four")


@pytest.mark.parametrize(
    ("sql", "broken"),
    [
        ("round(i, -2) = 100", False),
        ("round(j, -2) = 200", True),
        ("j * m = 150.00", False),
        ("i * g = 50.0", False),
        ("coalesce(i, g) + 1 = 101", False),
        ("-(-i) = 100", False),
        ("i % -3 = 1", False),
        ("i / 8 = 12.5", False),
        ("i / 0 = 1", False),
        ("floor(i + j) + 1 = 201", False),
        ("i + 340282366920938463463374607431768211456 < 0", True),
    ],
)
def test_numbers_of_other_kinds_stay_what_they_are(sql: str, broken: bool) -> None:
    assert breaks(sql, i=100, j=100, g=0.5, m=decimal.Decimal("1.50")) is broken
