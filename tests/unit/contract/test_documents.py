"""The documents of a contract: the JSON Schema judges rows as the gate does, ODCS says all, YAML reads back."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal as Number
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore import (
    Bool,
    Bytes,
    Condition,
    Date,
    Decimal,
    Entity,
    FeatureView,
    Field,
    FileSource,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    Reference,
    String,
    Timestamp,
    Vector,
    Volume,
)
from featurestore.arrow_types import arrow_type
from featurestore.contract.json_schema import beyond_row_schema, json_schema
from featurestore.contract.odcs import open_data_contract
from featurestore.contract.plain_pattern import ecma_pattern
from featurestore.contract.yaml_text import yaml_text
from featurestore.ingest.rules import field_rules
from featurestore.registry.document import encode_value

AT = datetime(2024, 2, 29, 23, 59, 59, 5, tzinfo=UTC)
TENTH = float(np.float32(0.1))
TEXTS = st.sampled_from(["", "a", "b\n", "12", "12\n", "١", "ab", "É", "😀", "a.b", "AZ"])


def view(*schema: Field, **changes: Any) -> FeatureView:
    arguments: dict[str, Any] = {
        "name": "legs",
        "entities": [Entity(name="plane", join_keys={"tailnum": String, "n": Int64})],
        "schema": schema,
        "source": FileSource(path="x", timestamp_field="at", created_timestamp_column="known"),
    }
    return FeatureView(**{**arguments, **changes})


def accepts(declared: Field, encoded: Any) -> bool:
    """Whether the row schema takes an otherwise good row with this value."""
    moment = encode_value(AT, Timestamp)
    row = {"tailnum": "N1", "n": 2**53 + 1, "event_timestamp": moment, "created_timestamp": moment}
    schema = json_schema(view(declared))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid(row | {declared.name: encoded})


@st.composite
def fields_and_values(draw: st.DrawFn) -> tuple[Field, Any]:
    dtype, values = draw(
        st.sampled_from(
            [
                (Int32, st.integers(-4, 4)),
                (Int64, st.sampled_from([-(2**63), -1, 0, 3, 2**63 - 1])),
                (Float32, st.sampled_from([0.0, -0.0, TENTH, 0.5, -2.0, math.inf, -math.inf, math.nan])),
                (Float64, st.sampled_from([0.0, 0.1, 3.5, -2.0, 1e300, math.inf, -math.inf, math.nan])),
                (String, TEXTS),
                (Bytes, st.binary(max_size=4)),
                (List(Int32), st.lists(st.integers(-1, 1), max_size=3)),
            ]
        )
    )
    rules: dict[str, Any] = {"nullable": draw(st.booleans())}
    if dtype in (Int32, Int64, Float32, Float64):
        bounds = st.sampled_from([-2, 0, 3] if dtype in (Int32, Int64) else [0.1, -2.0, 3.5, math.inf])
        rules |= {name: draw(bounds) for name in draw(st.sets(st.sampled_from(["ge", "gt", "le", "lt"]), max_size=2))}
        rules["allow_nan"] = dtype in (Float32, Float64) and draw(st.booleans())
    else:
        rules |= {
            name: draw(st.integers(0, 3)) for name in draw(st.sets(st.sampled_from(["min_length", "max_length"])))
        }
    if dtype == String and draw(st.booleans()):
        rules["pattern"] = draw(st.sampled_from(["[a-z]+", r"\d+", "(?:a|b)*", "[A-Z]{2}", r"a\.b", ".*", "[^a]"]))
    if dtype in (Int32, String) and draw(st.booleans()):
        rules["allowed_values"] = draw(st.lists(values, min_size=1, max_size=3))
    return Field(name="x", dtype=dtype, **rules), draw(st.none() | values)


@given(drawn=fields_and_values())
@example(drawn=(Field(name="x", dtype=Float32, le=0.1), TENTH))
@example(drawn=(Field(name="x", dtype=String, pattern="[0-9]+"), "12\n"))
@example(drawn=(Field(name="x", dtype=String, pattern=r"\d+"), "١"))
@settings(max_examples=100, deadline=None)
def test_the_schema_judges_a_value_as_the_gate_does_but_for_rules_it_names(drawn: tuple[Field, Any]) -> None:
    declared, value = drawn
    column = pa.array([value], arrow_type(declared.dtype))
    broken = {rule.name for rule in field_rules(declared) if rule.breaches(column)[0]}
    encoded = None if value is None else encode_value(value, declared.dtype)
    assert accepts(declared, encoded) == (not broken - beyond_row_schema(declared).keys())


GOOD_AND_BAD: list[tuple[Any, list[Any], list[Any]]] = [
    (Bool, [True], [1, "true"]),
    (Int32, [-(2**31), 1.0], [2**31, 1.5, "1", True]),
    (Int64, [2**63 - 1], [2**63]),
    (Float64, [1, 1e308, "nan", "-inf"], ["NaN", "x", True]),
    (String, ["", "😀"], ["a\0", 1]),
    (Bytes, ["", "AAE=", "AAEC"], ["AAE", "?"]),
    (Date, ["2024-02-29"], ["29.2.2024", "2024-02-29\n"]),
    (Timestamp, ["2024-02-29T01:02:03.000005+00:00", "2024-02-29T01:02:03Z"], ["2024-02-29T01:02:03", "now"]),
    (Decimal(4, 1), ["999.9", "-0.10", "12", ".5"], ["1000.0", "0.05", "", ".", "-", 1]),
    (List(Int32), [[], [1]], [[None], ["1"], 1]),
    (Vector(Float32, 2), [[1, 2.5]], [[1], [1, 2, 3]]),
]


@pytest.mark.parametrize(("dtype", "good", "bad"), GOOD_AND_BAD, ids=[str(case[0]) for case in GOOD_AND_BAD])
def test_the_schema_knows_the_values_of_a_type(dtype: Any, good: list[Any], bad: list[Any]) -> None:
    declared = Field(name="x", dtype=dtype, nullable=False)
    assert [accepts(declared, value) for value in good] == [True] * len(good)
    assert [accepts(declared, value) for value in [*bad, None]] == [False] * (len(bad) + 1)
    assert accepts(Field(name="x", dtype=dtype), None)


@pytest.mark.parametrize(
    "pattern", [".", r"\d", "[^a]", "(?i)a", "^a", "a$", r"\pL", "(?P<n>a)", r"\bA", "é", "[[:alpha:]]"]
)
def test_a_pattern_that_may_mean_something_else_is_not_handed_on(pattern: str) -> None:
    assert ecma_pattern(pattern) is None
    declared = Field(name="x", dtype=String, pattern=pattern)
    assert json_schema(view(declared))["x-featurestore"]["fields"] == {"x": {"pattern": pattern}}
    (check,) = open_data_contract(view(declared), "p")["schema"][0]["properties"][-1]["quality"]
    assert check["implementation"] == {"rule": "pattern", "value": pattern}


RULED = view(
    Field(name="delay", dtype=Int32, nullable=False, ge=-60, lt=1440, on_violation="warn", description="Minutes: late"),
    Field(
        name="price", dtype=Decimal(6, 2), ge=Number("0.10"), tags={"unit": "usd"}, links={"rates": "https://x.org/r"}
    ),
    Field(name="sky", dtype=String, allowed_values=["clear", "no", "😀"], max_length=5),
    Field(name="share", dtype=Float64, le=1e300),
    description='Legs: "flown"\nby a plane — 😀',
    owner="team # one",
    tier="critical",
    tags={"domain": "traffic"},
    links={"runbook": "https://x.org/legs"},
    freshness=timedelta(hours=3),
    ttl=timedelta(days=2),
    on_violation="quarantine",
    conditions=[Condition(name="fits", sql="delay > 0 OR sky = 'clear'")],
    references=[Reference(view="planes@1", columns={"tailnum": "tailnum"})],
    unique=True,
    future_tolerance=timedelta(seconds=1),
    volume=Volume(at_least=1, per=timedelta(days=1)),
    largest_gap=timedelta(hours=6),
    max_breach_share=0.01,
)


def test_the_open_data_contract_has_what_the_standard_requires_and_every_rule() -> None:
    document = open_data_contract(RULED, "flights")
    head = {key: document[key] for key in ("apiVersion", "kind", "id", "version", "status", "name")}
    assert head == {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "flights.legs@1",
        "version": "1",
        "status": "active",
        "name": "legs",
    }
    (history,) = document["schema"]
    by_name = {column["name"]: column for column in history["properties"]}
    keys = ["tailnum", "n", "event_timestamp", "created_timestamp"]
    assert list(by_name) == [*keys, "delay", "price", "sky", "share"]
    assert [by_name[key]["required"] for key in keys] == [True] * 4
    assert by_name["delay"]["logicalTypeOptions"] == {"format": "i32", "minimum": -60, "exclusiveMaximum": 1440}
    assert by_name["sky"]["quality"][0]["arguments"] == {"validValues": ["clear", "no", "😀"]}
    assert by_name["price"]["quality"][0]["implementation"] == {"rule": "ge", "value": "0.10"}
    told = {check["implementation"]["rule"] for check in history["quality"]}
    assert told == {"condition", "reference", "unique", "future_tolerance_us", "volume", "largest_gap_us"}
    assert history["relationships"] == [{"type": "foreignKey", "from": "legs.tailnum", "to": "planes.tailnum"}]
    assert document["slaProperties"][0]["value"] == 10800
    assert document["tags"] == ["domain:traffic"]
    assert document["authoritativeDefinitions"] == [{"type": "runbook", "url": "https://x.org/legs"}]
    assert by_name["price"]["authoritativeDefinitions"] == [{"type": "rates", "url": "https://x.org/r"}]
    assert {"property": "tier", "value": "critical"} in document["customProperties"]
    assert json_schema(RULED)["x-featurestore"]["conditions"] == [{"name": "fits", "sql": "delay > 0 OR sky = 'clear'"}]


def test_yaml_reads_back_as_what_was_written() -> None:
    for document in (open_data_contract(RULED, "flights"), json_schema(RULED)):
        assert yaml.safe_load(yaml_text(document)) == document


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(st.text() | st.sampled_from(["no", "on", "a", "1"]), json_values, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_json_document_reads_back_from_its_yaml(document: dict[str, Any]) -> None:
    text = yaml_text(document)
    assert text.isascii()
    assert yaml.safe_load(text) == document
