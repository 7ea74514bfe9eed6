"""Every rule about the rules of a view, each with a view that breaks it alone; and sound ones that break none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurestore import (
    Condition,
    Entity,
    FeatureView,
    Field,
    FileSource,
    Float32,
    Float64,
    Int32,
    Int64,
    Reference,
    String,
    Timestamp,
    Volume,
)
from featurestore.registry.validate import validate

AIRPORT = Entity(name="airport", join_keys={"airport": String})
ROUTE = Entity(name="route", join_keys={"origin": String, "dest": String})
SOURCE = FileSource(path="w.csv", timestamp_field="t")
SCHEMA = [
    Field(name="delay", dtype=Int32, ge=-60, le=1440),
    Field(name="share", dtype=Float32, ge=0.1, le=1),
    Field(name="free", dtype=Float64),
    Field(name="total", dtype=Int64, nullable=False),
    Field(name="dest", dtype=String),
    Field(name="left_at", dtype=Timestamp),
]


def view(**changes: Any) -> FeatureView:
    arguments: dict[str, Any] = {"name": "legs", "entities": [AIRPORT], "schema": SCHEMA, "source": SOURCE}
    return FeatureView(**{**arguments, **changes})


AIRPORTS = FeatureView(name="airports", entities=[AIRPORT], schema=[Field(name="alt", dtype=Int32)], source=SOURCE)
ROUTES = FeatureView(name="routes", entities=[ROUTE], schema=[Field(name="n", dtype=Int32)], source=SOURCE)


def problems(*views: FeatureView) -> list[str]:
    """The texts of all problems, each checked to say where and to end with a way out."""
    found = validate([], views, [])
    for problem in found:
        assert problem.way_out
        assert problem.path == __file__
        assert problem.line > 0
    return [f"{problem.what}; {problem.way_out}" for problem in found]


def test_sound_rules_have_no_problem() -> None:
    ruled = view(
        conditions=[
            Condition(name="a", sql="delay <= 24 * 60 AND (share >= 0.1 OR free IS NULL)"),
            Condition(name="b", sql="CASE WHEN delay > 15 THEN total > 0 ELSE true END", on_violation="warn"),
            Condition(name="c", sql="event_timestamp - left_at BETWEEN INTERVAL 0 SECOND AND INTERVAL '2' DAY"),
            Condition(name="d", sql="length(lower(dest)) = 3 AND airport IN ('JFK', 'LGA') AND NOT isnan(free)"),
            Condition(name="e", sql="left_at > TIMESTAMPTZ '2013-01-01 00:00:00+00' AND share <= 0.1"),
        ],
        references=[Reference(view=AIRPORTS, columns={"airport": "dest"}, on_violation="quarantine")],
        unique=True,
        future_tolerance=timedelta(0),
        volume=Volume(at_least=0, at_most=0, per=timedelta(days=1)),
        largest_gap=timedelta(hours=1),
        max_breach_share=0.5,
    )
    assert problems(ruled, AIRPORTS) == []


VIEW_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"conditions": ["delay > 0"]}, "conditions holds 'delay > 0', which is not a Condition"),
    ({"references": [AIRPORTS]}, "which is not a Reference"),
    ({"unique": 1}, "unique=1 is not a bool"),
    ({"future_tolerance": timedelta(-1)}, "future_tolerance=-1d is negative"),
    ({"future_tolerance": 5}, "future_tolerance=5 is not a duration"),
    ({"largest_gap": timedelta(0)}, "largest_gap=0s is not positive"),
    ({"future_tolerance": timedelta.max}, "us is longer than 100,000 years; give a shorter duration"),
    ({"volume": Volume(per=timedelta(days=40_000_000), at_least=1)}, "per=40000000d is longer than 100,000 years"),
    ({"volume": 20}, "volume=20 is not a Volume"),
    ({"volume": Volume(per=timedelta(1))}, "volume: it limits nothing"),
    ({"volume": Volume(per=timedelta(0), at_least=1)}, "volume: per=0s is not positive"),
    ({"volume": Volume(per=timedelta(1), at_least=-1)}, "at_least=-1 is not a number of rows"),
    ({"volume": Volume(per=timedelta(1), at_least=2, at_most=1)}, "at_least=2 is above at_most=1"),
    ({"max_breach_share": 1}, "max_breach_share=1 is not a share"),
    ({"max_breach_share": "1 %"}, "is not a share"),
    ({"max_breach_share": float("nan")}, "is not a share"),
]


@pytest.mark.parametrize(("changes", "text"), VIEW_FAULTS)
def test_faults_of_the_rules_of_a_view(changes: dict[str, Any], text: str) -> None:
    (problem,) = problems(view(**changes), AIRPORTS)
    assert problem.startswith("feature view 'legs': ")
    assert text in problem


def test_conditions_have_names_of_their_own() -> None:
    twice = view(conditions=[Condition(name="a", sql="delay > 0"), Condition(name="A", sql="total > 0")])
    (problem,) = problems(twice)
    assert "condition 'A' is declared twice; rename one of them" in problem


CONDITION_FAULTS: list[tuple[str, str]] = [
    ("", "it is empty"),
    ("delay >", "is not one SQL expression"),
    ("any > 0", 'quote a field whose name is a word of SQL, as in "order"'),
    ("delay > 0; total > 0", "is not one SQL expression"),
    ("(" * 5000 + "delay > 0" + ")" * 5000, "nested too deeply"),
    (" AND ".join(["delay > 0"] * 400), "it is too long, or nested too deeply; write several conditions"),
    ("delay + 1", "is a number, not a boolean"),
    ("1 < 2", "names no field"),
    ("dely > 0", "it names 'dely'; did you mean 'delay'?"),
    ("legs.delay > 0", "names 'legs.delay', a column of a table"),
    ("delay > '1'", "mixes number and text; a value is never coerced"),
    ("left_at > '2013-01-01'", "mixes timestamp and text"),
    ("delay AND total > 0", "'delay' is a number where"),
    ("dest LIKE 'J%'", "is not of the subset; conditions know comparisons, AND"),
    ("random() > delay", "'RANDOM()' is not of the subset"),
    ("delay IN (SELECT 1)", "has no list of values"),
    ("EXISTS (SELECT 1) AND delay > 0", "is not of the subset"),
    ("count(delay) > 1", "is not of the subset"),
    ("lag(delay) OVER () > 1", "is not of the subset"),
    ("CAST(dest AS INTEGER) > 1", "casts a text to INT"),
    ("left_at > TIMESTAMP '2013-01-01'", "casts a text to TIMESTAMP"),
    ("left_at > TIMESTAMPTZ 'yesterday'", "has no value; write it as in TIMESTAMPTZ"),
    ("left_at + INTERVAL 1 MONTH > left_at", "has no fixed length"),
    ("left_at - event_timestamp < INTERVAL 1.5 HOUR", "has no fixed length; write INTERVAL and a whole number"),
    ("left_at - event_timestamp < INTERVAL 'two' DAY", "has no fixed length"),
    ("left_at - event_timestamp < INTERVAL 99999999999 DAY", "a whole number, of at most 9 digits"),
    ("length(dest, dest) > 1", "length has too many arguments; give it 1"),
    ("floor(free, 2) > 1", "floor has too many arguments"),
    ("delay BETWEEN SYMMETRIC 3 AND 1", "is not of the subset"),
    ("round(total, free) > 1", "the engine cannot compute 'ROUND(total, free) > 1'"),
    ("CAST(free AS DECIMAL(50, 2)) > 1", "the engine cannot compute"),
    ("(delay = 0) = (total = 0) = (free = 0)", "the engine cannot compute"),
    ("delay > 2000", "no values within the declared bounds keep 'delay > 2000'"),
    ("delay > 2000 AND total > 0", "no values within the declared bounds"),
    ("delay BETWEEN 1500 AND 1600 OR delay < -60", "no values within the declared bounds"),
    ("delay + 100 > share + 100000 OR delay = 24 * 60 + 1", "no values within the declared bounds"),
    ("share < 0.05", "no values within the declared bounds"),
]


@pytest.mark.parametrize(("sql", "text"), CONDITION_FAULTS)
def test_faults_of_a_condition(sql: str, text: str) -> None:
    (problem,) = problems(view(conditions=[Condition(name="rule", sql=sql)]))
    assert problem.startswith("feature view 'legs': condition 'rule': ")
    assert text in problem


def test_a_condition_says_its_own_line() -> None:
    written = Condition(name="rule", sql="nope > 1")
    (problem,) = validate([], [view(conditions=[written])], [])
    assert problem.line == written.at.line != view().at.line


@pytest.mark.parametrize(
    "sql", ["share <= 0.1", "free > 1e300", "delay >= 1440", "share * 2 > 1.9", "delay - total > 5", "free = 1"]
)
def test_a_condition_that_some_value_keeps_is_not_refused(sql: str) -> None:
    assert problems(view(conditions=[Condition(name="rule", sql=sql)])) == []


REFERENCE_FAULTS: list[tuple[Reference, str]] = [
    (
        Reference(view="airport@1"),
        "no such feature view; give the view, or its name@version; did you mean 'airports@1'",
    ),
    (Reference(view=7), "no such feature view"),
    (Reference(view="legs@1"), "it is the view itself"),
    (Reference(view=ROUTES, columns={"origin": "dest"}), "nothing stands for its join key 'dest'"),
    (Reference(view="airports@1"), "nothing stands for its join key 'airport'; map every join key"),
    (Reference(view=ROUTES), "legs@1 has no field or join key 'origin'"),
    (Reference(view=AIRPORTS, columns={"airport": "nope"}), "legs@1 has no field or join key 'nope'"),
    (Reference(view=AIRPORTS, columns={"airport": "delay"}), "'delay' is int32, its join key 'airport' is string"),
    (Reference(view=AIRPORTS, on_violation="no"), "on_violation='no' is unknown"),
]


@pytest.mark.parametrize(("rule", "text"), REFERENCE_FAULTS)
def test_faults_of_a_reference(rule: Reference, text: str) -> None:
    (problem,) = problems(view(references=[rule]), AIRPORTS, ROUTES)
    assert problem.startswith("feature view 'legs': reference to ")
    assert text in problem


def test_references_that_lead_back_are_refused() -> None:
    first = view(references=[Reference(view="second@1", columns={"airport": "airport"})])
    second = view(name="second", references=[Reference(view="third@1", columns={"airport": "airport"})])
    third = view(name="third", references=[Reference(view="legs@1", columns={"airport": "airport"})])
    found = problems(first, second, third)
    assert len(found) == 3
    assert "second@1 refers back to legs@1" in found[0]
