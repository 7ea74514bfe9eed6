"""Every rule of definitions, each with a definition that breaks it alone; and sound ones that break none."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from featurestore import (
    Bool,
    Bytes,
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
    SqlSource,
    String,
    Timestamp,
    Vector,
)
from featurestore.feature_view import SelectedField, ViewSelection
from featurestore.registry.validate import validate

AIRPORT = Entity(name="airport", join_keys={"airport": String})
FILE = FileSource(path="w.csv", timestamp_field="t")
SQL = SqlSource(query="SELECT * FROM a", inputs={"a": "a.csv"}, timestamp_field="t")


def changed(definition: Any, **changes: Any) -> Any:
    """A definition written here with some arguments changed (`dataclasses.replace` would be written elsewhere)."""
    arguments = {argument.name: getattr(definition, argument.name) for argument in fields(definition) if argument.init}
    return type(definition)(**{**arguments, **changes})


def view(**changes: Any) -> FeatureView:
    arguments = {
        "name": "weather",
        "entities": [AIRPORT],
        "schema": [Field(name="temp", dtype=Float64)],
        "source": FILE,
    }
    return FeatureView(**{**arguments, **changes})


def service(**changes: Any) -> FeatureService:
    return FeatureService(**{"name": "late", "features": [view()], **changes})


def problems(*declared: Entity | FeatureView | FeatureService) -> list[str]:
    """The texts of all problems, each checked to say where and to end with a way out."""
    entities = [item for item in declared if isinstance(item, Entity)]
    views = [item for item in declared if isinstance(item, FeatureView)]
    services = [item for item in declared if isinstance(item, FeatureService)]
    found = validate(entities, views, services)
    for problem in found:
        assert problem.way_out
        assert problem.path == __file__
        assert problem.line > 0
    return [f"{problem.what}; {problem.way_out}" for problem in found]


def test_sound_definitions_of_every_kind_have_no_problem() -> None:
    fields = [
        Field(name="a", dtype=Int32, ge=0, lt=10, allowed_values=[1, 2], default=1),
        Field(name="b", dtype=Float32, gt=0.1, le=0.2, allow_nan=True, default=math.nan),
        Field(name="c", dtype=String, pattern="[A-Z]{3}", min_length=3, max_length=3, default="ABC"),
        Field(name="d", dtype=Decimal(5, 2), ge=decimal.Decimal("-999.99"), le=999, default=decimal.Decimal("0.10")),
        Field(name="e", dtype=List(String), max_length=2, default=["x"]),
        Field(name="f", dtype=Vector(Float32, 2), default=[0.0, 1]),
        Field(name="g", dtype=Timestamp, default=datetime(2024, 1, 1, tzinfo=UTC)),
        Field(name="h", dtype=Date, allowed_values=[date(2024, 1, 1)]),
        Field(name="i", dtype=Bytes, min_length=1, default=b"x"),
        Field(name="j", dtype=Bool, allowed_values=[True], default=True),
        Field(name="k", dtype=Int64, ge=-(2**63), le=2**63 - 1),
        Field(name="l", dtype=Float32, allowed_values=[0.1, 0.2], default=0.1),
        Field(name="m", dtype=Int32, gt=0, lt=2),
    ]
    one = view(schema=fields, ttl=timedelta(microseconds=1), freshness=timedelta(1), on_violation="warn")
    two = changed(one, version=2, source=changed(SQL, timezone="America/New_York", ambiguous="later"))
    chosen = service(
        features=[one, two[["a", "b"]].alias(a="a2", b="b2").fill(a=math.nan, b=-math.inf)],
        request_fields=[Field(name="hour", dtype=Int32)],
        on_stale="fail",
    )
    assert problems(AIRPORT, one, two, chosen) == []


# ------------------------------------------------------------------ names

BAD_NAMES: list[tuple[Any, str]] = [
    ("", "is not a name"),
    ("2nd", "'2nd' is not a name; use letters, digits and _ only, a letter first"),
    ("a-b", "is not a name"),
    ("a b", "is not a name"),
    ("é", "is not a name"),
    ("a\n", "is not a name"),
    (None, "None is not a name"),
    (7, "7 is not a name"),
    ("x" * 64, "has 64 characters; use at most"),
]


@pytest.mark.parametrize(("name", "text"), BAD_NAMES, ids=lambda value: repr(value)[:20])
def test_bad_names_are_refused_wherever_a_name_stands(name: Any, text: str) -> None:
    declared: list[tuple[Any, ...]] = [
        (Entity(name=name, join_keys={"k": String}),),
        (Entity(name="e", join_keys={name: String}),),
        (view(name=name),),
        (view(schema=[Field(name=name, dtype=Int32)]),),
        (view(), service(name=name)),
        (view(), service(request_fields=[Field(name=name, dtype=Int32)])),
        (view(source=changed(SQL, inputs={name: "a.csv"})),),
    ]
    for items in declared:
        assert any(text in problem for problem in problems(*items)), items


@pytest.mark.parametrize("name", ["event_timestamp", "Created_Timestamp", "as_of", "_hidden", "_"])
def test_names_of_our_own_columns_are_refused_for_columns(name: str) -> None:
    for declared in (
        [Entity(name="e", join_keys={name: String})],
        [view(schema=[Field(name=name, dtype=Int32)])],
        [view(), service(request_fields=[Field(name=name, dtype=Int32)])],
        [view(), service(features=[view()[["temp"]].alias(temp=name)])],
    ):
        assert any(f"the name {name!r} is reserved" in problem for problem in problems(*declared))


def test_a_name_of_the_greatest_length_is_fine() -> None:
    assert problems(Entity(name="e" * 63, join_keys={"k" * 63: String})) == []
    assert problems(view(name="v" * 54)) == []
    assert len(problems(view(name="v" * 55))) == 1


def test_duplicates_name_the_place_of_the_first() -> None:
    again = Entity(name="airport", join_keys={"other": String})
    (problem,) = problems(AIRPORT, again)
    where = f"first at line {AIRPORT.at.line}"
    assert problem == f"entity 'airport' is declared twice ({where}); import the first one, or rename this one"
    assert "feature view 'weather@1' is declared twice" in problems(view(), view(ttl=timedelta(1)))[0]
    assert "feature service 'late' is declared twice" in problems(view(), service(), service())[0]


def test_names_that_differ_in_letter_case_only_are_refused() -> None:
    assert "differ in letter case only" in problems(AIRPORT, Entity(name="Airport", join_keys={"x": String}))[0]
    assert "differ in letter case only" in problems(view(), view(name="Weather"))[0]
    assert "differ in letter case only" in problems(view(), view(name="Weather", version=2))[0]
    fields = [Field(name="temp", dtype=Int32), Field(name="Temp", dtype=Int32)]
    assert "fields 'temp' and 'Temp' differ in letter case only" in problems(view(schema=fields))[0]
    assert "join keys 'a' and 'A'" in problems(Entity(name="e", join_keys={"a": String, "A": String}))[0]


# ------------------------------------------------------------------ entities and views

ENTITY_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"join_keys": {}}, "join_keys={} names no key"),
    ({"join_keys": "airport"}, "names no key"),
    ({"join_keys": {"k": Float64}}, "join key 'k' is a float64; a join key is one of bool, int32"),
    ({"join_keys": {"k": Timestamp}}, "join key 'k' is a timestamp"),
    ({"join_keys": {"k": List(String)}}, "join key 'k' is a list<string>"),
    ({"join_keys": {"k": str}}, "join key 'k' is a <class 'str'>"),
    ({"description": 1}, "description=1 is not a text"),
    ({"owner": None}, "owner=None is not a text"),
    ({"tags": ["a"]}, "tags=['a'] does not map texts to texts"),
    ({"tags": {"a": 1}}, "does not map texts to texts"),
    ({"tier": "gold"}, "tier='gold' is unknown; choose 'critical', 'standard', 'experimental', or leave it out"),
    ({"tier": None}, "tier=None is unknown"),
    ({"links": ["https://a"]}, "links=['https://a'] does not map names to addresses"),
    ({"links": {"": "https://a"}}, "does not map names to addresses"),
    ({"links": {"wiki": "a page"}}, "link 'wiki' is 'a page', which is not an http or https address"),
    ({"links": {"wiki": "ftp://host/a"}}, "is not an http or https address"),
    ({"links": {"wiki": "https://me:secret@host/a"}}, "is not an http or https address without a login"),
]


@pytest.mark.parametrize(("changes", "text"), ENTITY_FAULTS)
def test_faults_of_an_entity(changes: dict[str, Any], text: str) -> None:
    (problem,) = problems(Entity(**{"name": "airport", "join_keys": {"airport": String}, **changes}))
    assert problem.startswith("entity 'airport': ")
    assert text in problem


ROUTE = Entity(name="route", join_keys={"origin": String, "Airport": String})

VIEW_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"entities": []}, "it has no entity; write entities=[...]"),
    ({"entities": ["airport"]}, "entities holds 'airport', which is not an Entity"),
    ({"entities": [AIRPORT, AIRPORT]}, "join key 'airport' comes from two of its entities"),
    ({"entities": [AIRPORT, ROUTE]}, "join key 'Airport' comes from two of its entities"),
    ({"schema": []}, "its schema is empty"),
    ({"schema": ["temp"]}, "schema holds 'temp', which is not a Field"),
    ({"schema": [Field(name="a", dtype=Int32), Field(name="a", dtype=Int32)]}, "field 'a' is declared twice"),
    ({"schema": [Field(name="airport", dtype=Int32)]}, "field 'airport' is a join key too"),
    ({"schema": [Field(name="AIRPORT", dtype=Int32)]}, "field 'AIRPORT' is a join key too"),
    ({"version": 0}, "version=0 is not a version; count versions 1, 2, 3, ..."),
    ({"version": True}, "version=True is not a version"),
    ({"version": "1"}, "version='1' is not a version"),
    ({"version": 1_000_000}, "is not a version"),
    ({"ttl": timedelta(0)}, "ttl=0s is not positive; give a positive duration, or None, which never expires"),
    ({"ttl": timedelta(seconds=-1)}, "is not positive"),
    ({"ttl": 3600}, "ttl=3600 is not a duration; write ttl=timedelta(hours=3), or None"),
    ({"ttl": timedelta.max}, "ttl=86399999999999999999us is longer than 100,000 years; give a shorter"),
    ({"freshness": timedelta(days=40_000_000)}, "freshness=40000000d is longer than 100,000 years"),
    ({"freshness": timedelta(0)}, "freshness=0s is not positive"),
    ({"on_violation": "drop"}, "on_violation='drop' is unknown; choose 'reject', 'quarantine', 'warn'"),
    ({"source": "w.csv"}, "source='w.csv' is not a source; give a FileSource or an SqlSource"),
    ({"owner": 1}, "owner=1 is not a text"),
]


@pytest.mark.parametrize(("changes", "text"), VIEW_FAULTS)
def test_faults_of_a_view(changes: dict[str, Any], text: str) -> None:
    (problem,) = problems(view(**changes))
    assert problem.startswith("feature view 'weather': ")
    assert text in problem


SOURCE_FAULTS: list[tuple[FileSource | SqlSource, str]] = [
    (changed(FILE, path=""), "path='' names no file"),
    (changed(FILE, timestamp_field=""), "timestamp_field='' names no column"),
    (changed(FILE, timestamp_field=None), "timestamp_field=None names no column"),
    (changed(FILE, created_timestamp_column=""), "created_timestamp_column='' names no column"),
    (changed(FILE, created_timestamp_column="t"), "created_timestamp_column is timestamp_field again"),
    (changed(FILE, timezone="America/New_Yrok"), "did you mean 'America/New_York'; write one"),
    (changed(FILE, timezone="EST5 EDT"), "is not an IANA time zone"),
    (changed(FILE, timezone="../etc/passwd"), "is not an IANA time zone"),
    (changed(FILE, timezone="America"), "is not an IANA time zone"),
    (changed(FILE, timezone="America/New_York", ambiguous="first"), "ambiguous='first' is unknown"),
    (changed(FILE, ambiguous="later"), "ambiguous is set, and no timezone"),
    (changed(SQL, query=" "), "the query is empty"),
    (changed(SQL, inputs={}), "inputs={} names no file"),
    (changed(SQL, inputs={"a": ""}), "input 'a': '' names no file"),
    (changed(SQL, inputs={"a": "x", "A": "y"}), "inputs 'a' and 'A' differ in letter case only"),
    (changed(SQL, threads=0), "threads=0 is not a number of threads"),
    (changed(SQL, overlap=timedelta(-1)), "overlap=datetime.timedelta(days=-1) is not a duration from zero on"),
    (changed(SQL, overlap=None), "overlap=None is not a duration"),
    (changed(SQL, lookback=timedelta(-1)), "lookback="),
]


@pytest.mark.parametrize(("source", "text"), SOURCE_FAULTS)
def test_faults_of_a_source(source: FileSource | SqlSource, text: str) -> None:
    (problem,) = problems(view(source=source))
    assert problem.startswith("feature view 'weather': source: ")
    assert text in problem


# ------------------------------------------------------------------ fields

FIELD_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"dtype": str}, "<class 'str'> is not a type of featurestore; choose Bool, Int32"),
    ({"dtype": "int32"}, "'int32' is not a type of featurestore"),
    ({"dtype": Decimal(39, 2)}, "decimal(39,2) needs 1 <= precision <= 38"),
    ({"dtype": Decimal(4, 5)}, "decimal(4,5) needs"),
    ({"dtype": List(List(Int32))}, "a list holds a scalar"),
    ({"dtype": Vector(String, 3)}, "a vector holds one of"),
    ({"dtype": Vector(Float32, 0)}, "the length is from 1 to"),
    ({"nullable": "no"}, "nullable='no' is not a bool"),
    ({"ge": 5, "le": 3}, "no value keeps the bounds ge=5, le=3"),
    ({"gt": 3, "le": 3}, "no value keeps the bounds"),
    ({"gt": 3, "lt": 4}, "no value keeps the bounds"),
    ({"dtype": Float64, "gt": 1.0, "lt": 1.0}, "no value keeps the bounds"),
    ({"ge": 1.5}, "bound ge=1.5 is not an int; give a number that fits int32"),
    ({"ge": True}, "bound ge=True is not an int"),
    ({"le": 2**31}, "bound le=2147483648 does not fit int32"),
    ({"dtype": Int64, "ge": -(2**63) - 1}, "does not fit int64"),
    ({"dtype": Float64, "ge": math.nan}, "bound ge=nan is NaN"),
    ({"dtype": Float64, "ge": "0"}, "bound ge='0' is not a float"),
    ({"dtype": Float64, "le": 10**400}, "does not fit float64"),
    ({"dtype": Float32, "le": 1e39}, "bound le=1e+39 does not fit float32"),
    ({"dtype": Decimal(4, 1), "le": decimal.Decimal("0.05")}, "does not fit decimal(4,1) exactly"),
    ({"dtype": Decimal(4, 1), "le": 1000}, "does not fit decimal(4,1) exactly"),
    ({"dtype": Decimal(4, 1), "le": 0.5}, "bound le=0.5 is not a decimal.Decimal"),
    ({"dtype": Decimal(4, 1), "le": decimal.Decimal("Infinity")}, "does not fit decimal(4,1)"),
    ({"dtype": String, "ge": "a"}, "ge on a string; bounds are for numbers"),
    ({"dtype": Vector(Float32, 2), "ge": 0}, "ge on a vector<float32,2>"),
    ({"allow_nan": True}, "allow_nan=True on a int32"),
    ({"allowed_values": []}, "allowed_values is empty, so no value is allowed"),
    ({"allowed_values": "abc", "dtype": String}, "allowed_values='abc' is not a list"),
    ({"allowed_values": [1, 2, 1]}, "allowed value 1 is listed twice"),
    ({"allowed_values": [1, "2"]}, "allowed value '2' is not an int"),
    ({"allowed_values": [1, None]}, "allowed_values holds None; nullable=True allows null"),
    ({"allowed_values": [1, True]}, "allowed value True is not an int"),
    ({"allowed_values": [1, 9], "le": 5}, "allowed value 9 breaks the bounds"),
    ({"allowed_values": [math.nan], "dtype": Float64}, "allowed value nan is NaN"),
    ({"allowed_values": [0.1, 0.1 + 1e-12], "dtype": Float32}, "is listed twice"),
    ({"allowed_values": [[1]], "dtype": List(Int32)}, "allowed_values on a list<int32>"),
    ({"pattern": "a"}, "pattern on a int32; patterns are for strings"),
    ({"dtype": String, "pattern": "("}, "pattern '(' is not RE2: missing )"),
    ({"dtype": String, "pattern": "a(?=b)"}, "RE2 knows no lookaround and no backreferences"),
    ({"dtype": String, "pattern": "a)|(?:b"}, "is not RE2: unexpected )"),
    ({"dtype": String, "pattern": "[A-Z"}, "is not RE2: missing ]: [A-Z;"),
    ({"dtype": String, "pattern": 7}, "pattern=7 is not a text"),
    ({"dtype": String, "pattern": "a{800}b{800}" * 90}, "is too large a program, and would slow every load"),
    ({"dtype": String, "pattern": r"(\p{L}|[ab])*a(\p{L}|a){50}"}, "write + and declare max_length"),
    ({"dtype": String, "pattern": r"(?P<a>\p{L}){1,500}"}, "pattern"),
    ({"dtype": String, "pattern": "[a-z]+", "allowed_values": ["a", "B"]}, "allowed value 'B' does not match"),
    ({"dtype": String, "max_length": 2, "allowed_values": ["ab", "abc"]}, "allowed value 'abc' has length 3"),
    ({"on_violation": "drop"}, "on_violation='drop' is unknown; choose 'reject', 'quarantine', 'warn'"),
    ({"min_length": 1}, "min_length on a int32"),
    ({"dtype": String, "max_length": -1}, "max_length=-1 is not a length"),
    ({"dtype": String, "max_length": 1.5}, "max_length=1.5 is not a length"),
    ({"dtype": String, "min_length": 3, "max_length": 2}, "min_length=3 is above max_length=2"),
    ({"default": "x"}, "default='x' is not an int; give a value of int32"),
    ({"default": 2**31}, "default=2147483648 does not fit int32"),
    ({"default": 7, "le": 5}, "default=7 breaks the bounds; choose a default that keeps the contract"),
    ({"dtype": Float64, "default": math.nan, "le": 5}, "default=nan breaks the bounds"),
    ({"default": 7, "allowed_values": [1]}, "default=7 is not an allowed value"),
    ({"dtype": String, "default": "ab1", "pattern": "[a-z]+"}, "default='ab1' does not match the pattern"),
    ({"dtype": String, "default": "ab\n", "pattern": "[a-z]+"}, "does not match the pattern"),
    ({"dtype": String, "default": "abc", "max_length": 2}, "default='abc' has length 3"),
    ({"dtype": String, "default": "a\0"}, "holds U+0000"),
    ({"dtype": String, "default": "\ud800"}, "is not valid Unicode"),
    ({"dtype": Bytes, "default": "x"}, "default='x' is not a bytes"),
    ({"dtype": Bool, "default": 1}, "default=1 is not a bool"),
    ({"dtype": Timestamp, "default": datetime(2024, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - the fault under test
    ({"dtype": Timestamp, "default": date(2024, 1, 1)}, "is not a datetime"),
    ({"dtype": Date, "default": datetime(2024, 1, 1, tzinfo=UTC)}, "is not a datetime.date"),
    ({"dtype": List(Int32), "default": [1, "x"]}, "holds an element that is not an int"),
    ({"dtype": List(Int32), "default": [1, None]}, "holds an element that is not an int"),
    ({"dtype": List(String), "default": "abc"}, "is not a list"),
    ({"dtype": Vector(Float32, 3), "default": [1.0, 2.0]}, "has 2 elements, not 3"),
]


@pytest.mark.parametrize(("changes", "text"), FIELD_FAULTS, ids=lambda value: str(value)[:60])
def test_faults_of_a_field(changes: dict[str, Any], text: str) -> None:
    (problem,) = problems(view(schema=[Field(**{"name": "temp", "dtype": Int32, **changes})]))
    assert problem.startswith("feature view 'weather': field 'temp': ")
    assert text in problem


def test_a_field_reports_all_its_faults_at_once() -> None:
    field = Field(name="9", dtype=Int32, ge="a", allowed_values=[], pattern="x", min_length=1, default="b")
    assert len(problems(view(schema=[field]))) == 6


# ------------------------------------------------------------------ services

WIND = FeatureView(
    name="wind",
    entities=[Entity(name="airport_number", join_keys={"airport": Int64})],
    schema=[Field(name="temp", dtype=Float64), Field(name="gust", dtype=Float64)],
    source=FILE,
)
CHOSEN = ViewSelection(view="weather", version=1, fields=(SelectedField(field="temp"),))

TEXT: Any = "x"

SERVICE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"features": []}, "it asks for no feature"),
    ({"features": ["weather:temp"]}, "features holds 'weather:temp'; choose from a view object"),
    ({"features": [changed(CHOSEN, version=3)]}, "no version 3 of feature view 'weather'; declared versions: 1"),
    ({"features": [changed(CHOSEN, view="wether")]}, "no feature view 'wether' is declared"),
    ({"features": [view()[["tmp"]]]}, "weather@1 has no field 'tmp'; did you mean 'temp'? known: temp"),
    ({"features": [view()[[]]]}, "it chooses no field of 'weather'"),
    ({"features": [view(), view()]}, "column 'temp' clashes with another column 'temp'; rename it with an alias"),
    ({"features": [view()[["temp"]].alias(temp="airport")]}, "column 'airport' clashes with a join key 'airport'"),
    ({"features": [view()[["temp"]].alias(temp="9")]}, "alias of 'temp': '9' is not a name"),
    ({"request_fields": [Field(name="temp", dtype=Int32)]}, "clashes with a request field 'temp'"),
    ({"request_fields": [Field(name="airport", dtype=Int32)]}, "clashes with a join key 'airport'"),
    ({"request_fields": ["hour"]}, "request_fields holds 'hour', which is not a Field"),
    (
        {"request_fields": [Field(name="hour", dtype=Int32, ge=1, le=0)]},
        "request field 'hour': no value keeps the bounds",
    ),
    ({"on_stale": "drop"}, "on_stale='drop' is unknown; choose 'serve', 'null', 'fail'"),
    ({"features": [changed(CHOSEN, fields=(SelectedField(field="temp", fill=TEXT),))]}, "not a float"),
    ({"features": [view()[["temp"]].fill(temp=1e39)]}, "fill 1e+39 of 'temp' does not fit float32"),
    ({"features": [view(), WIND[["gust"]]]}, "join key 'airport' is string in one view and int64 in wind@1"),
]


@pytest.mark.parametrize(("changes", "text"), SERVICE_FAULTS, ids=lambda value: str(value)[:60])
def test_faults_of_a_service(changes: dict[str, Any], text: str) -> None:
    (problem,) = problems(view(), WIND, service(**changes))
    assert problem.startswith("feature service 'late': ")
    assert text in problem


def test_two_versions_of_a_view_in_one_service_need_an_alias() -> None:
    first, second = view(), view(version=2)
    assert len(problems(first, second, service(features=[first, second]))) == 1
    renamed = service(features=[first, second[["temp"]].alias(temp="temp_new")])
    assert problems(first, second, renamed) == []


def test_a_broken_view_does_not_hide_the_problems_of_others() -> None:
    broken = view(name="broken", entities=["x"], schema=["y"])
    found = problems(broken, view(ttl=timedelta(0)), service(on_stale="x"))
    assert len(found) == 4


@pytest.mark.parametrize("make", [lambda: view(name=["x"]), lambda: view(version=[1]), lambda: view(ttl="1h")])
def test_no_value_of_the_wrong_kind_crashes_the_check(make: Callable[[], FeatureView]) -> None:
    assert problems(make(), make(), service()) != []
