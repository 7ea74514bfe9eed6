"""Documents are lossless and canonical: what is read back equals what was written, and has the same bytes."""

from __future__ import annotations

import decimal
import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    Bool,
    Bytes,
    Condition,
    Date,
    Decimal,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    Reference,
    SqlSource,
    String,
    Timestamp,
    Vector,
    Volume,
)
from featurestore.dtypes import DType
from featurestore.registry.document import (
    canonical_json,
    decode_value,
    encode_value,
    entity_document,
    entity_from,
    field_document,
    field_from,
    service_document,
    service_from,
    source_document,
    source_from,
    view_document,
    view_from,
)

VALUES: dict[DType, st.SearchStrategy[Any]] = {
    Bool: st.booleans(),
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Float32: st.floats(width=32, allow_nan=False),
    Float64: st.floats(allow_nan=False),
    String: st.text(),
    Bytes: st.binary(),
    Timestamp: st.datetimes(timezones=st.just(UTC)).map(lambda value: value.replace(fold=0)),
    Date: st.dates(),
    Decimal(38, 10): st.decimals(-(10**28) + 1, 10**28 - 1, places=10),
    Decimal(5, 5): st.decimals(decimal.Decimal("-0.99999"), decimal.Decimal("0.99999"), places=5),
}
SCALARS = tuple(VALUES)


def values_of(dtype: DType) -> st.SearchStrategy[Any]:
    match dtype:
        case List(element):
            return st.lists(VALUES[element], max_size=4).map(tuple)
        case Vector(element, length):
            return st.lists(VALUES[element], min_size=length, max_size=length).map(tuple)
    return VALUES[dtype]


dtypes = st.one_of(
    st.sampled_from(SCALARS),
    st.sampled_from(SCALARS).map(List),
    st.builds(Vector, st.sampled_from([Bool, Int32, Int64, Float32, Float64]), st.integers(1, 4)),
)
typed_values = dtypes.flatmap(lambda dtype: st.tuples(st.just(dtype), values_of(dtype)))


def through_json(document: Any) -> Any:
    return json.loads(canonical_json(document))


@given(typed_values)
@settings(max_examples=500, deadline=None)
def test_a_value_comes_back_exactly(typed: tuple[DType, Any]) -> None:
    dtype, value = typed
    decoded = decode_value(through_json(encode_value(value, dtype)), dtype)
    assert decoded == value
    # -0.0 == 0.0, 1 == True and Decimal("1.0") == Decimal("1"): the text tells them apart, equality does not.
    assert repr(decoded) == repr(value) or isinstance(dtype, Decimal) or isinstance(value, tuple)
    assert canonical_json(encode_value(decoded, dtype)) == canonical_json(encode_value(value, dtype))


@given(st.sampled_from(SCALARS).flatmap(lambda t: st.tuples(st.just(t), st.lists(VALUES[t], min_size=1, max_size=4))))
@settings(max_examples=200, deadline=None)
def test_a_field_comes_back_with_its_whole_contract(drawn: tuple[DType, list[Any]]) -> None:
    dtype, values = drawn
    field = Field(
        name="f",
        dtype=dtype,
        nullable=False,
        ge=values[0],
        lt=values[-1],
        allowed_values=values,
        default=values[0],
        pattern="[a-z]+",
        min_length=0,
        max_length=7,
        allow_nan=True,
        description="é ☃",
        tags={"b": "2", "a": "1"},
        links={"wiki": "https://wiki.example.com/f"},
    )
    document = through_json(field_document(field))
    assert field_from(document) == field
    assert canonical_json(field_document(field_from(document))) == canonical_json(document)


def test_infinities_and_nan_stay_json() -> None:
    for value in (math.inf, -math.inf):
        assert decode_value(through_json(encode_value(value, Float64)), Float64) == value
    assert math.isnan(decode_value(through_json(encode_value(math.nan, Float32)), Float32))


def test_equal_bounds_give_one_document_however_they_are_written() -> None:
    """An int bound on a float, 1.0 and 1.00 of a decimal, one instant in two zones: same meaning, same bytes."""
    pairs = [
        (Field(name="f", dtype=Float64, ge=1), Field(name="f", dtype=Float64, ge=1.0)),
        (
            Field(name="f", dtype=Decimal(6, 2), ge=decimal.Decimal("1.0")),
            Field(name="f", dtype=Decimal(6, 2), ge=decimal.Decimal("1.00")),
        ),
        (
            Field(name="f", dtype=Timestamp, default=datetime(2024, 1, 1, 12, tzinfo=UTC)),
            Field(name="f", dtype=Timestamp, default=datetime(2024, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))),
        ),
    ]
    for one, other in pairs:
        assert canonical_json(field_document(one)) == canonical_json(field_document(other))


def test_canonical_json_does_not_depend_on_the_order_of_insertion() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == canonical_json({"a": None, "b": [1, "é"]})
    assert canonical_json({"b": [1, "é"], "a": None}) == b'{"a":null,"b":[1,"\\u00e9"]}'


def test_what_equals_its_default_is_not_written() -> None:
    assert field_document(Field(name="f", dtype=Int32)) == {"name": "f", "dtype": "int32"}
    assert source_document(FileSource(path="a.csv", timestamp_field="t")) == {
        "kind": "file",
        "path": "a.csv",
        "timestamp_field": "t",
    }


LABELS: dict[str, Any] = {
    "description": "d",
    "owner": "me",
    "tier": "critical",
    "tags": {"x": "y"},
    "links": {"wiki": "https://wiki.example.com/a"},
}
ROUTE = Entity(name="route", join_keys={"origin": String, "dest": Int64}, **LABELS)
SOURCES: list[FileSource | SqlSource] = [
    FileSource(path="a/*.parquet", timestamp_field="t"),
    FileSource(
        path="a.csv",
        timestamp_field="t",
        created_timestamp_column="c",
        timezone="America/New_York",
        ambiguous="later",
        **LABELS,
    ),
    SqlSource(query="SELECT 1", inputs={"b": "b.csv", "a": "a.csv"}, timestamp_field="t"),
    SqlSource(
        query="SELECT 1",
        inputs={"a": "a.csv"},
        timestamp_field="t",
        threads=2,
        overlap=timedelta(0),
        lookback=timedelta(days=3, microseconds=1),
    ),
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_comes_back(source: FileSource | SqlSource) -> None:
    assert source_from(through_json(source_document(source))) == source


def test_an_entity_keeps_the_order_of_its_keys() -> None:
    back = entity_from(through_json(entity_document(ROUTE)))
    assert back == ROUTE
    assert list(back.join_keys) == ["origin", "dest"]


@pytest.mark.parametrize("ttl", [None, timedelta(microseconds=1), timedelta(days=400)])
def test_a_view_stands_alone_in_its_document(ttl: timedelta | None) -> None:
    view = FeatureView(
        name="delay",
        version=3,
        entities=[ROUTE],
        schema=[Field(name="b", dtype=List(String)), Field(name="a", dtype=Vector(Float32, 3), nullable=False)],
        source=SOURCES[1],
        ttl=ttl,
        freshness=timedelta(hours=1),
        on_violation="quarantine",
        conditions=[Condition(name="c", sql="length(b) > 1", on_violation="warn", description="why")],
        references=[Reference(view="airports@2", columns={"airport": "dest"}, on_violation="reject")],
        unique=True,
        future_tolerance=timedelta(0),
        volume=Volume(at_least=0, at_most=9, per=timedelta(days=1)),
        largest_gap=timedelta(hours=2),
        max_breach_share=0.0,
        **LABELS,
    )
    back = view_from(through_json(view_document(view)))
    assert back == view
    assert list(back.fields) == ["b", "a"]


def test_a_service_comes_back_with_aliases_fills_and_request_fields() -> None:
    view = FeatureView(
        name="delay",
        entities=[ROUTE],
        schema=[Field(name="a", dtype=Float64), Field(name="b", dtype=Float64), Field(name="c", dtype=Float64)],
        source=SOURCES[0],
    )
    service = FeatureService(
        name="late",
        features=[view[["b", "a"]].alias(a="x").fill(b=-1.5, a=math.inf), view[["c"]]],
        request_fields=[Field(name="hour", dtype=Int32, ge=0, le=23)],
        on_stale="null",
        **LABELS,
    )
    assert service_from(through_json(service_document(service))) == service


def test_a_date_is_not_a_timestamp() -> None:
    assert encode_value(date(2024, 2, 29), Date) == "2024-02-29"
    assert decode_value("2024-02-29", Date) == date(2024, 2, 29)
