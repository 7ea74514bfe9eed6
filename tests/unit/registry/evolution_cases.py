"""Every attribute of every object, what may become of it, and the class that `plan` gives the change.

THE source of the table in docs/evolution.md: `python -m tests.unit.registry.test_evolution` writes it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

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
    Volume,
)
from featurestore.feature_view import SelectedField, ViewSelection
from featurestore.registry.definitions import Definitions
from featurestore.registry.diff import Impact
from tests.unit.registry.evolution_world import (
    AIRPORT,
    APPLIED,
    CODE,
    COUNT,
    DAILY,
    DELAYS,
    FILE,
    HOUR,
    KNOWN,
    MODEL,
    PLACES,
    SKY,
    SQL,
    TEMP,
    WARM,
    WEATHER,
    WIND,
)

LABELS = {"description": "x", "owner": "x", "tier": "critical", "tags": {"a": "b"}, "links": {"wiki": "https://a"}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table: `kind` is a class of definitions, `change` completes "attribute: ..."."""

    kind: type
    attribute: str
    change: str
    impact: Impact
    why: str
    declared: Definitions


def _with(*definitions: Entity | FeatureView | FeatureService) -> Definitions:
    """What is applied with these in the place of those of the same name."""
    entities, views, services = dict(APPLIED.entities), dict(APPLIED.views), dict(APPLIED.services)
    for item in definitions:
        match item:
            case Entity():
                entities[item.name] = item
            case FeatureView():
                views[item.ref] = item
            case FeatureService():
                services[item.name] = item
    return Definitions(entities=entities, views=views, services=services)


def _entity(**changes: Any) -> Definitions:
    entity = replace(AIRPORT, **changes)
    return _with(entity, *(replace(view, entities=[entity]) for view in (WEATHER, DELAYS, PLACES)))


def _view(**changes: Any) -> Definitions:
    return _with(replace(WEATHER, **changes))


def _field(old: Field, **changes: Any) -> Definitions:
    return _view(schema=[replace(field, **changes) if field is old else field for field in WEATHER.schema])


def _condition(**changes: Any) -> Definitions:
    return _view(conditions=[replace(WARM, **changes)])


def _reference(**changes: Any) -> Definitions:
    return _view(references=[replace(KNOWN, **changes)])


def _file(**changes: Any) -> Definitions:
    return _view(source=replace(FILE, **changes))


def _sql(**changes: Any) -> Definitions:
    return _with(replace(DELAYS, source=replace(SQL, **changes)))


def _service(**changes: Any) -> Definitions:
    return _with(replace(MODEL, **changes))


def _selecting(weather: Any) -> Definitions:
    return _service(features=[weather, DELAYS[["count"]]])


def _request(**changes: Any) -> Definitions:
    return _service(request_fields=[replace(HOUR, **changes)])


def _without(*, entity: str = "", view: str = "", service: str = "") -> Definitions:
    return Definitions(
        entities={name: one for name, one in APPLIED.entities.items() if name != entity},
        views={ref: one for ref, one in APPLIED.views.items() if ref != view},
        services={name: one for name, one in APPLIED.services.items() if name != service},
    )


def _renamed_view() -> Definitions:
    other = replace(WEATHER, name="climate")
    moved = replace(MODEL, features=[other[["temp", "sky"]], DELAYS[["count"]]])
    left = _without(view=WEATHER.ref)
    return replace(left, views={**left.views, other.ref: other}, services={moved.name: moved})


def _next_version() -> Definitions:
    second = replace(WEATHER, version=2)
    chosen = second[["temp", "sky"]].alias(sky="clouds").fill(temp=0.0)
    return _with(second, replace(MODEL, features=[chosen, DELAYS[["count"]]]))


def _renamed_entity() -> Definitions:
    station = replace(AIRPORT, name="station")
    return _with(station, *(replace(view, entities=[station]) for view in (WEATHER, DELAYS, PLACES)))


def _renamed_service() -> Definitions:
    other = replace(MODEL, name="other")
    return replace(APPLIED, services={other.name: other})


#: attribute, change, class, why, what is then declared.
Row = tuple[str, str, Impact, str, Callable[[], Definitions]]
COMPATIBLE: Impact = "compatible"
SIGNATURE: Impact = "signature"
BREAKING: Impact = "breaking"
_NARROW = "rows that history holds may break it"
_WIDE = "every row that was good stays good"
_ANEW = "models and clients bind to names, order, types and fills"
_TIME = "the same source rows would get other times"
_FATE = "decides what becomes of rows to come"
_WHOLE = "judges history as a whole, refuses no row"
_ARRIVE = "history stays; rows arrive from then on as it says"

_ENTITY: list[Row] = [
    ("name", "another name, in the views too", BREAKING, "a view's rows belong to its entity", _renamed_entity),
    (
        "join_keys",
        "another name, type or order",
        BREAKING,
        "keys are the identity of rows",
        lambda: _entity(join_keys={"airport": Int64}),
    ),
]
_VIEW: list[Row] = [
    ("name", "another name", BREAKING, "the old view is removed, a new and empty one made", _renamed_view),
    (
        "version",
        "a version beside the others",
        COMPATIBLE,
        "it has a history of its own, nobody reads it yet",
        lambda: _with(replace(WEATHER, version=2, ttl=None)),
    ),
    (
        "version",
        "removed, with rows or readers",
        BREAKING,
        "what reads it would miss it, and its rows would go",
        lambda: replace(
            _without(view=DELAYS.ref), services={"model": replace(MODEL, features=[WEATHER[["temp", "sky"]]])}
        ),
    ),
    (
        "entities",
        "other entities, or another order",
        BREAKING,
        "keys are the identity of rows",
        lambda: _view(entities=[AIRPORT, Entity(name="runway", join_keys={"runway": Int32})]),
    ),
    (
        "schema",
        "a field that is nullable, or has a default, is added",
        COMPATIBLE,
        "earlier rows answer null, or the default",
        lambda: _view(schema=[*WEATHER.schema, Field(name="rain", dtype=Float64)]),
    ),
    (
        "schema",
        "a field that is neither is added",
        BREAKING,
        "earlier rows have no value for it",
        lambda: _view(schema=[*WEATHER.schema, Field(name="rain", dtype=Float64, nullable=False)]),
    ),
    (
        "schema",
        "a field is removed",
        BREAKING,
        "those who read it lose it",
        lambda: _view(schema=[TEMP, SKY, WIND, CODE]),
    ),
    (
        "schema",
        "another order of fields",
        COMPATIBLE,
        "services have their own; one that takes the whole view follows, with a new signature",
        lambda: _view(schema=[COUNT, SKY, TEMP, WIND, CODE]),
    ),
    (
        "source",
        "a file becomes SQL, or SQL a file",
        COMPATIBLE,
        _ARRIVE,
        lambda: _view(source=replace(SQL, created_timestamp_column="c", timezone="America/New_York")),
    ),
    ("ttl", "any change", BREAKING, "the same row would expire at another time", lambda: _view(ttl=timedelta(hours=4))),
    (
        "freshness",
        "any change",
        COMPATIBLE,
        "a promise about publishing, not about values",
        lambda: _view(freshness=timedelta(hours=9)),
    ),
    ("on_violation", "any change", COMPATIBLE, _FATE, lambda: _view(on_violation="warn")),
    ("conditions", "one is dropped", COMPATIBLE, _WIDE, lambda: _view(conditions=[])),
    ("conditions", "one is added", BREAKING, _NARROW, lambda: _view(conditions=[WARM, replace(WARM, name="other")])),
    ("references", "one is dropped", COMPATIBLE, _WIDE, lambda: _view(references=[])),
    ("references", "one is added", BREAKING, _NARROW, lambda: _with(replace(DELAYS, references=[KNOWN]))),
    ("unique", "true becomes false", COMPATIBLE, _WIDE, lambda: _with(replace(PLACES, unique=False))),
    ("unique", "false becomes true", BREAKING, _NARROW, lambda: _view(unique=True)),
    ("future_tolerance", "longer, or dropped", COMPATIBLE, _WIDE, lambda: _view(future_tolerance=None)),
    ("future_tolerance", "shorter, or added", BREAKING, _NARROW, lambda: _view(future_tolerance=timedelta(0))),
    ("volume", "added or dropped", COMPATIBLE, _WHOLE, lambda: _view(volume=None)),
    ("largest_gap", "any change", COMPATIBLE, _WHOLE, lambda: _view(largest_gap=timedelta(hours=1))),
    (
        "max_breach_share",
        "any change",
        COMPATIBLE,
        "when a run stops; no row is judged by it",
        lambda: _view(max_breach_share=0.0),
    ),
]
_FIELD: list[Row] = [
    (
        "name",
        "another name",
        BREAKING,
        "the field is removed, and another one added",
        lambda: _view(schema=[TEMP, replace(COUNT, name="flights"), SKY, WIND, CODE]),
    ),
    (
        "dtype",
        "any change, a vector's length too",
        BREAKING,
        "rows would decode otherwise",
        lambda: _field(COUNT, dtype=Int64),
    ),
    ("nullable", "false becomes true", COMPATIBLE, _WIDE, lambda: _field(COUNT, nullable=True)),
    ("nullable", "true becomes false", BREAKING, "history may hold nulls", lambda: _field(TEMP, nullable=False)),
    *(
        (
            name,
            "wider, or dropped",
            COMPATIBLE,
            _WIDE,
            lambda field=field, name=name, value=value: _field(field, **{name: value}),
        )
        for name, field, value in (("ge", TEMP, -99.0), ("gt", COUNT, -1), ("le", TEMP, None), ("lt", COUNT, 200))
    ),
    *(
        (
            name,
            "narrower, or added",
            BREAKING,
            _NARROW,
            lambda field=field, name=name, value=value: _field(field, **{name: value}),
        )
        for name, field, value in (("ge", TEMP, -9.0), ("gt", COUNT, 5), ("le", TEMP, 50.0), ("lt", COUNT, 50))
    ),
    ("allow_nan", "false becomes true", COMPATIBLE, _WIDE, lambda: _field(WIND, allow_nan=True)),
    ("allow_nan", "true becomes false, on a bounded field", BREAKING, _NARROW, lambda: _field(TEMP, allow_nan=False)),
    (
        "allowed_values",
        "more values, another order, or none listed; no service reads it",
        COMPATIBLE,
        _WIDE,
        lambda: _field(CODE, allowed_values=["b", "a", "c"]),
    ),
    (
        "allowed_values",
        "the same, of a string that a service reads",
        SIGNATURE,
        "the matrix holds a value's place in the list",
        lambda: _field(SKY, allowed_values=["clear", "cloudy", "rain"]),
    ),
    (
        "allowed_values",
        "values are removed, or the list is added",
        BREAKING,
        _NARROW,
        lambda: _field(SKY, allowed_values=["clear"]),
    ),
    ("pattern", "dropped", COMPATIBLE, _WIDE, lambda: _field(SKY, pattern=None)),
    (
        "pattern",
        "added, or another one",
        BREAKING,
        "whether one pattern admits all that another does is not decided",
        lambda: _field(SKY, pattern="[a-z ]+"),
    ),
    ("min_length", "smaller, or dropped", COMPATIBLE, _WIDE, lambda: _field(SKY, min_length=1)),
    ("min_length", "greater, or added", BREAKING, _NARROW, lambda: _field(SKY, min_length=3)),
    ("max_length", "greater, or dropped", COMPATIBLE, _WIDE, lambda: _field(SKY, max_length=None)),
    ("max_length", "smaller, or added", BREAKING, _NARROW, lambda: _field(SKY, max_length=8)),
    ("on_violation", "any change", COMPATIBLE, _FATE, lambda: _field(COUNT, on_violation="warn")),
    (
        "default",
        "any change, where every row has the field",
        COMPATIBLE,
        "it fills nothing",
        lambda: _field(COUNT, default=2),
    ),
    (
        "default",
        "any change, where rows are older than the field",
        BREAKING,
        "what those rows answer would change",
        lambda: _with(replace(DELAYS, schema=[COUNT, replace(DELAYS.schema[1], default=9)])),
    ),
]
_CONDITION: list[Row] = [
    (
        "name",
        "another name",
        BREAKING,
        "rules are told apart by name: one is dropped, one added",
        lambda: _condition(name="hot"),
    ),
    (
        "sql",
        "any change",
        BREAKING,
        "whether one admits all that another does is not decided",
        lambda: _condition(sql="true"),
    ),
    ("on_violation", "any change", COMPATIBLE, _FATE, lambda: _condition(on_violation="warn")),
]
_REFERENCE: list[Row] = [
    ("view", "another view, or version", BREAKING, _NARROW, lambda: _reference(view=DELAYS)),
    ("columns", "any change", BREAKING, _NARROW, lambda: _reference(columns={"airport": "sky"})),
    ("on_violation", "any change", COMPATIBLE, _FATE, lambda: _reference(on_violation="warn")),
]
_VOLUME: list[Row] = [
    ("per", "any change", COMPATIBLE, _WHOLE, lambda: _view(volume=replace(DAILY, per=timedelta(days=7)))),
    ("at_least", "any change", COMPATIBLE, _WHOLE, lambda: _view(volume=replace(DAILY, at_least=1))),
    ("at_most", "any change", COMPATIBLE, _WHOLE, lambda: _view(volume=replace(DAILY, at_most=99))),
]
_TIMES: list[tuple[str, Any]] = [
    ("timestamp_field", "u"),
    ("created_timestamp_column", None),
    ("timezone", "UTC"),
    ("ambiguous", "later"),
]
_FILE: list[Row] = [
    ("path", "any change", COMPATIBLE, _ARRIVE, lambda: _file(path="v.csv")),
    *(
        (name, "any change", BREAKING, _TIME, lambda name=name, value=value: _file(**{name: value}))
        for name, value in _TIMES
    ),
]
_SQL: list[Row] = [
    ("query", "any change", COMPATIBLE, _ARRIVE, lambda: _sql(query="SELECT 2")),
    ("inputs", "any change", COMPATIBLE, _ARRIVE, lambda: _sql(inputs={"b": "b.csv"})),
    *(
        (name, "any change", BREAKING, _TIME, lambda name=name, value=value: _sql(**{name: value or "c"}))
        for name, value in _TIMES
    ),
    ("threads", "any change", COMPATIBLE, "the author promises that the answer is the same", lambda: _sql(threads=2)),
    ("overlap", "any change", COMPATIBLE, "how much is read again", lambda: _sql(overlap=timedelta(days=2))),
    ("lookback", "any change", COMPATIBLE, "how much is read again", lambda: _sql(lookback=timedelta(days=2))),
]
_SERVICE: list[Row] = [
    ("name", "another name", SIGNATURE, "the old service is removed: who asks for it gets an error", _renamed_service),
    (
        "features",
        "features are added, removed or stand in another order",
        SIGNATURE,
        _ANEW,
        lambda: _selecting(WEATHER[["temp"]]),
    ),
    (
        "request_fields",
        "one is added, removed, of another type or order",
        SIGNATURE,
        _ANEW,
        lambda: _request(dtype=Int64),
    ),
    (
        "request_fields",
        "a rule is wider or dropped, a label changes",
        COMPATIBLE,
        "every request that was good stays good",
        lambda: _request(ge=-1),
    ),
    (
        "request_fields",
        "a rule is narrower or added",
        BREAKING,
        "requests that were good are refused",
        lambda: _request(le=20),
    ),
    (
        "on_stale",
        "any change",
        COMPATIBLE,
        "a policy of serving; statuses, parity and training do not see it",
        lambda: _service(on_stale="null"),
    ),
]
_SELECTION: list[Row] = [
    ("view", "another view", SIGNATURE, _ANEW, lambda: _service(features=[DELAYS[["count"]]])),
    ("version", "another version", SIGNATURE, _ANEW, _next_version),
    (
        "fields",
        "other fields, or another order",
        SIGNATURE,
        _ANEW,
        lambda: _selecting(WEATHER[["sky", "temp"]].alias(sky="clouds").fill(temp=0.0)),
    ),
]
_SELECTED: list[Row] = [
    ("field", "another field", SIGNATURE, _ANEW, lambda: _selecting(WEATHER[["count", "sky"]].alias(sky="clouds"))),
    ("alias", "any change", SIGNATURE, _ANEW, lambda: _selecting(WEATHER[["temp", "sky"]].fill(temp=0.0))),
    (
        "fill",
        "any change",
        SIGNATURE,
        "the matrix holds it",
        lambda: _selecting(WEATHER[["temp", "sky"]].alias(sky="clouds").fill(temp=1.0)),
    ),
]


def _cases(kind: type, rows: list[Row], changed: Callable[..., Definitions] | None = None) -> list[Case]:
    """The rows of one kind; its labels, which `changed` sets, are compatible."""
    made = [
        Case(kind=kind, attribute=attribute, change=change, impact=impact, why=why, declared=declare())
        for attribute, change, impact, why, declare in rows
    ]
    if changed is None:
        return made
    names = [argument.name for argument in fields(kind) if argument.name in LABELS]
    return made + [
        Case(
            kind=kind,
            attribute=name,
            change="any change",
            impact="compatible",
            why="for people; no value and no signature depends on it",
            declared=changed(**{name: LABELS[name]}),
        )
        for name in names
    ]


def cases() -> list[Case]:
    """All rows of the table, in its order."""
    return [
        *_cases(Entity, _ENTITY, _entity),
        *_cases(FeatureView, _VIEW, _view),
        *_cases(Field, _FIELD, lambda **changes: _field(COUNT, **changes)),
        *_cases(Condition, _CONDITION, _condition),
        *_cases(Reference, _REFERENCE, _reference),
        *_cases(Volume, _VOLUME),
        *_cases(FileSource, _FILE, _file),
        *_cases(SqlSource, _SQL, _sql),
        *_cases(FeatureService, _SERVICE, _service),
        *_cases(ViewSelection, _SELECTION),
        *_cases(SelectedField, _SELECTED),
    ]
