"""Evolution is judged in one place: which change is compatible, which one breaks readers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from featurestore import (
    Condition,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Float64,
    Int32,
    Int64,
    Reference,
    SqlSource,
    String,
    Vector,
    Volume,
)
from featurestore.registry.diff import Change, entity_changes, service_changes, view_changes, worst

AIRPORT = Entity(name="airport", join_keys={"airport": String})
SOURCE = FileSource(path="w.csv", timestamp_field="t", created_timestamp_column="c", timezone="America/New_York")
TEMP = Field(name="temp", dtype=Float64, ge=-90.0, le=60.0)
COUNT = Field(name="count", dtype=Int32, gt=0, default=1)
SKY = Field(name="sky", dtype=String, allowed_values=["clear", "cloudy"], min_length=2, max_length=9, pattern="[a-z]+")
WEATHER = FeatureView(
    name="weather",
    entities=[AIRPORT],
    schema=[TEMP, COUNT, SKY],
    source=SOURCE,
    ttl=timedelta(hours=3),
)
#: Every row ever written has all fields but `sky`.
SCHEMAS = {1: (TEMP, COUNT), 2: (TEMP, COUNT, SKY)}


def changes(declared: FeatureView) -> list[Change]:
    return view_changes(WEATHER, declared, SCHEMAS)


def with_field(old: Field, **what: Any) -> FeatureView:
    new = replace(old, **what)
    return replace(WEATHER, schema=[new if field is old else field for field in WEATHER.schema])


def with_source(**what: Any) -> FeatureView:
    return replace(WEATHER, source=replace(SOURCE, **what))


HOT = Condition(name="hot", sql="temp > 0")
RULED = replace(
    WEATHER,
    conditions=[HOT],
    references=[Reference(view="airports@1", columns={"code": "airport"})],
    unique=True,
    future_tolerance=timedelta(hours=1),
    volume=Volume(at_least=20, at_most=24, per=timedelta(days=1)),
    largest_gap=timedelta(hours=2),
    max_breach_share=0.01,
)
NARROWS = ", which narrows the contract"
RULE_CHANGES: dict[str, dict[str, Any]] = {
    "condition hot is dropped": {"conditions": ()},
    "condition hot: on_violation None -> 'warn'": {"conditions": [replace(HOT, on_violation="warn")]},
    "condition hot: description '' -> 'x'": {"conditions": [replace(HOT, description="x")]},
    "condition hot: sql 'temp > 0' -> 'temp > 1'" + NARROWS: {"conditions": [replace(HOT, sql="temp > 1")]},
    "condition cold is added" + NARROWS: {"conditions": [HOT, Condition(name="cold", sql="temp < 9")]},
    "reference of airport as code to airports@1 is dropped": {"references": ()},
    "reference of airport to hubs@1 is added" + NARROWS: {
        "references": [*RULED.references, Reference(view="hubs@1", columns={"airport": "airport"})]
    },
    "reference of airport as code to airports@1: on_violation None -> 'warn'": {
        "references": [replace(RULED.references[0], on_violation="warn")]
    },
    "unique True -> False": {"unique": False},
    "future_tolerance moves (1h -> 2h)": {"future_tolerance": timedelta(hours=2)},
    "future_tolerance is dropped (1h -> none)": {"future_tolerance": None},
    "future_tolerance moves (1h -> 0s)" + NARROWS: {"future_tolerance": timedelta(0)},
    "volume at least 20 and at most 24 rows per 1d -> none": {"volume": None},
    "largest_gap 2h -> 1h": {"largest_gap": timedelta(hours=1)},
    "max_breach_share 0.01 -> 0.0": {"max_breach_share": 0.0},
}

REFUSED = [
    "median(temp) > 0",
    "round(count, temp) > 0",
    "event_timestamp > TIMESTAMPTZ '2013-02-30 00:00:00+00'",
]


COMPATIBLE: dict[str, FeatureView] = {
    "field wind (float64) is added": replace(WEATHER, schema=[*WEATHER.schema, Field(name="wind", dtype=Float64)]),
    "field n (int32) is added, 0 in rows written before": replace(
        WEATHER, schema=[*WEATHER.schema, Field(name="n", dtype=Int32, nullable=False, default=0)]
    ),
    "fields stand in another order": replace(WEATHER, schema=[SKY, TEMP, COUNT]),
    "field temp: lower bound moves (-90.0 -> -100.0)": with_field(TEMP, ge=-100.0),
    "field temp: upper bound is dropped (60.0 -> none)": with_field(TEMP, le=None),
    "field temp: NaN is allowed": with_field(TEMP, allow_nan=True),
    "field count: lower bound moves (1 -> 0)": with_field(COUNT, gt=None, ge=0),
    "field count: default 1 -> 2": with_field(COUNT, default=2),
    "field sky: allowed values foggy are added": with_field(SKY, allowed_values=["clear", "cloudy", "foggy"]),
    "field sky: allowed values stand in another order": with_field(SKY, allowed_values=["cloudy", "clear"]),
    "field sky: any value is allowed": with_field(SKY, allowed_values=None),
    "field sky: pattern '[a-z]+' -> None": with_field(SKY, pattern=None),
    "field sky: max_length moves (9 -> 10)": with_field(SKY, max_length=10),
    "field sky: min_length is dropped (2 -> none)": with_field(SKY, min_length=None),
    "field sky: on_violation None -> warn": with_field(SKY, on_violation="warn"),
    "field sky: description": with_field(SKY, description="x"),
    "source: path": with_source(path="other.csv"),
    "source becomes SQL": replace(
        WEATHER,
        source=SqlSource(
            query="SELECT 1",
            inputs={"a": "a"},
            timestamp_field="t",
            created_timestamp_column="c",
            timezone="America/New_York",
        ),
    ),
    "freshness none -> 1h": replace(WEATHER, freshness=timedelta(hours=1)),
    "on_violation reject -> warn": replace(WEATHER, on_violation="warn"),
    "description": replace(WEATHER, description="x"),
    "owner": replace(WEATHER, owner="x"),
    "tags": replace(WEATHER, tags={"a": "b"}),
}

BREAKING: dict[str, FeatureView] = {
    "join keys (airport string) become (airport int64)": replace(
        WEATHER, entities=[replace(AIRPORT, join_keys={"airport": Int64})]
    ),
    "entities airport become station": replace(WEATHER, entities=[replace(AIRPORT, name="station")]),
    "field sky is removed": replace(WEATHER, schema=[TEMP, COUNT]),
    "field n is added, not nullable and without default, so earlier rows have no value": replace(
        WEATHER, schema=[*WEATHER.schema, Field(name="n", dtype=Int32, nullable=False)]
    ),
    "field count: int32 becomes int64": with_field(COUNT, dtype=Int64),
    "field temp is no longer nullable": with_field(TEMP, nullable=False),
    "field temp: lower bound moves (-90.0 -> -80.0), which narrows the contract": with_field(TEMP, ge=-80.0),
    "field temp: lower bound moves (-90.0 -> -90.0 excluded), which narrows the contract": with_field(
        TEMP, ge=None, gt=-90.0
    ),
    "field temp: upper bound moves (60.0 -> 60.0 excluded), which narrows the contract": with_field(
        TEMP, le=None, lt=60.0
    ),
    "field count: upper bound is added (none -> 9), which narrows the contract": with_field(COUNT, le=9),
    "field sky: allowed values clear are removed, which narrows the contract": with_field(
        SKY, allowed_values=["cloudy", "foggy"]
    ),
    "field sky: pattern '[a-z]+' -> '[a-y]+', which narrows the contract": with_field(SKY, pattern="[a-y]+"),
    "field sky: max_length moves (9 -> 8), which narrows the contract": with_field(SKY, max_length=8),
    "field sky: min_length moves (2 -> 3), which narrows the contract": with_field(SKY, min_length=3),
    "field sky: default None -> 'clear', which rewrites rows from before the field": with_field(SKY, default="clear"),
    "ttl 3h -> none, which changes when values expire": replace(WEATHER, ttl=None),
    "ttl 3h -> 4h, which changes when values expire": replace(WEATHER, ttl=timedelta(hours=4)),
    "source: created_timestamp_column 'c' -> None, which changes what time means": with_source(
        created_timestamp_column=None
    ),
    "source: timestamp_field 't' -> 'u', which changes what time means": with_source(timestamp_field="u"),
    "source: timezone 'America/New_York' -> 'UTC', which changes what time means": with_source(timezone="UTC"),
    "source: ambiguous None -> 'later', which changes what time means": with_source(ambiguous="later"),
}


def test_an_unchanged_view_has_no_changes() -> None:
    assert changes(replace(WEATHER)) == []


@pytest.mark.parametrize("what", COMPATIBLE)
def test_compatible_changes_of_a_view(what: str) -> None:
    assert changes(COMPATIBLE[what]) == [Change(what=what)]


@pytest.mark.parametrize("what", BREAKING)
def test_breaking_changes_of_a_view(what: str) -> None:
    assert changes(BREAKING[what]) == [Change(what=what, impact="breaking")]


@pytest.mark.parametrize("what", RULE_CHANGES)
def test_changes_of_the_rules_of_a_view(what: str) -> None:
    told = view_changes(RULED, replace(RULED, **RULE_CHANGES[what]), SCHEMAS)
    assert told == [Change(what=what, impact="breaking" if what.endswith(NARROWS) else "compatible")]


@pytest.mark.parametrize("refused", REFUSED)
def test_a_condition_that_judges_no_row_any_more_may_be_corrected_in_place(refused: str) -> None:
    applied = replace(RULED, conditions=[replace(HOT, sql=refused)])
    (change,) = view_changes(applied, RULED, SCHEMAS)
    assert (change.what, change.impact) == (f"condition hot: sql {refused!r} -> 'temp > 0'", "compatible")


def test_the_first_bound_of_a_field_refuses_nan_too() -> None:
    before = replace(WEATHER, schema=[Field(name="temp", dtype=Float64)])
    bounded = replace(WEATHER, schema=[Field(name="temp", dtype=Float64, ge=0.0)])
    found = view_changes(before, bounded, {1: before.schema})
    assert [change.what for change in found] == [
        "field temp: lower bound is added (none -> 0.0), which narrows the contract",
        "field temp: NaN is refused, which narrows the contract",
    ]


def test_the_length_of_a_vector_is_its_type() -> None:
    before = replace(WEATHER, schema=[Field(name="v", dtype=Vector(Float64, 3))])
    after = replace(WEATHER, schema=[Field(name="v", dtype=Vector(Float64, 4))])
    (change,) = view_changes(before, after, {1: before.schema})
    assert change == Change(what="field v: vector<float64,3> becomes vector<float64,4>", impact="breaking")


def test_a_default_is_compared_as_rows_hold_it() -> None:
    def with_default(default: float, **more: Any) -> FeatureView:
        return replace(WEATHER, schema=[TEMP, Field(name="wind", dtype=Float64, default=default, **more)])

    unchanged = view_changes(with_default(float("nan")), with_default(float("nan"), description="x"), {1: (TEMP,)})
    assert unchanged == [Change(what="field wind: description")]
    (change,) = view_changes(with_default(0.0), with_default(-0.0), {1: (TEMP,)})
    assert change.impact == "breaking"


def test_several_changes_are_all_told_and_the_worst_counts() -> None:
    found = changes(replace(WEATHER, owner="x", ttl=None, schema=[TEMP, COUNT]))
    assert [change.impact for change in found] == ["breaking", "breaking", "compatible"]
    assert worst([change.impact for change in found]) == "breaking"
    assert worst(["compatible", "signature"]) == "signature"
    assert worst([]) == "compatible"


def test_changes_of_an_entity() -> None:
    assert entity_changes(AIRPORT, replace(AIRPORT)) == []
    assert entity_changes(AIRPORT, replace(AIRPORT, owner="x")) == [Change(what="owner")]
    (change,) = entity_changes(AIRPORT, replace(AIRPORT, join_keys={"airport": String, "runway": String}))
    assert change.impact == "breaking"
    turned = replace(AIRPORT, join_keys={"b": String, "a": String})
    (change,) = entity_changes(replace(AIRPORT, join_keys={"a": String, "b": String}), turned)
    assert change.what == "join keys (a string, b string) become (b string, a string)"


SERVICE = FeatureService(
    name="late", features=[WEATHER[["temp", "count"]]], request_fields=[Field(name="hour", dtype=Int32)]
)
NEXT = replace(WEATHER, version=2)
SERVICES: dict[str, FeatureService] = {
    "weather@1:count gone": replace(SERVICE, features=[WEATHER[["temp"]]]),
    "weather@1:sky new": replace(SERVICE, features=[WEATHER[["temp", "count", "sky"]]]),
    "weather@1:temp, weather@1:count gone, weather@2:temp, weather@2:count new": replace(
        SERVICE, features=[NEXT[["temp", "count"]]]
    ),
    "weather@1:temp gone, weather@1:temp as t new": replace(
        SERVICE, features=[WEATHER[["temp", "count"]].alias(temp="t")]
    ),
    "columns stand in another order": replace(SERVICE, features=[WEATHER[["count", "temp"]]]),
    "fill of weather@1:temp NaN -> 0.0": replace(SERVICE, features=[WEATHER[["temp", "count"]].fill(temp=0.0)]),
    "request:hour gone": replace(SERVICE, request_fields=[]),
}


@pytest.mark.parametrize("what", SERVICES)
def test_changes_that_clients_must_bind_anew_for(what: str) -> None:
    found = service_changes(SERVICE, SERVICES[what], {WEATHER.ref: WEATHER, NEXT.ref: NEXT})
    assert found == [Change(what=f"signature changes: {what}", impact="signature")]


def test_changes_of_a_service_that_clients_do_not_notice() -> None:
    declared = replace(
        SERVICE, on_stale="fail", owner="x", request_fields=[Field(name="hour", dtype=Int32, description="x")]
    )
    found = service_changes(SERVICE, declared, {WEATHER.ref: WEATHER})
    assert found == [
        Change(what="request field hour: description"),
        Change(what="on_stale serve -> fail"),
        Change(what="owner"),
    ]


def test_a_narrower_request_field_breaks_those_who_call_though_the_signature_stays() -> None:
    declared = replace(SERVICE, request_fields=[Field(name="hour", dtype=Int32, ge=0, nullable=False)])
    assert service_changes(SERVICE, declared, {WEATHER.ref: WEATHER}) == [
        Change(what="request field hour is no longer nullable", impact="breaking"),
        Change(
            what="request field hour: lower bound is added (none -> 0), which narrows the contract", impact="breaking"
        ),
    ]


def test_the_same_rule_in_other_words_is_told_as_such() -> None:
    assert changes(with_field(COUNT, gt=None, ge=1)) == [Change(what="the same in other words")]
    hour = Field(name="hour", dtype=Int32, gt=0)
    before = replace(SERVICE, request_fields=[hour])
    after = replace(SERVICE, request_fields=[replace(hour, gt=None, ge=1)])
    assert service_changes(before, after, {WEATHER.ref: WEATHER}) == [Change(what="the same in other words")]
