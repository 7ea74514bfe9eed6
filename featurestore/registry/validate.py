"""All rules that definitions keep among themselves; every break is collected, none stops the others."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from featurestore.clock import duration_text
from featurestore.dtypes import JOIN_KEY_TYPES, DType
from featurestore.entity import Entity
from featurestore.errors import Problem, suggest
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.location import Location
from featurestore.registry.names import VIEW_NAME_LENGTH_MAX, clashes, column_fault, name_fault
from featurestore.registry.validate_field import Fault, field_faults, label_faults
from featurestore.registry.validate_rules import reference_problems, rule_problems, too_long
from featurestore.registry.validate_service import service_problems
from featurestore.source import FileSource, SqlSource
from featurestore.view_rules import ON_VIOLATION

VERSION_MAX = 999_999
_AMBIGUOUS = ("earlier", "later")


def validate(
    entities: Sequence[Entity],
    views: Sequence[FeatureView],
    services: Sequence[FeatureService],
    *,
    whole: bool = True,
) -> list[Problem]:
    """Every problem, in no particular order. `whole=False`: some files did not load, so an unknown view is no news."""
    problems = [problem for entity in entities for problem in _entity_problems(entity)]
    problems += [problem for view in views for problem in _view_problems(view)]
    by_ref = {view.ref: view for view in views if _readable(view)}
    whole = whole and len(by_ref) == len(views)
    problems += [problem for view in by_ref.values() for problem in reference_problems(view, by_ref, whole=whole)]
    problems += [problem for service in services for problem in service_problems(service, by_ref, whole=whole)]
    problems += _twice("entity", [(entity.name, entity.at) for entity in entities])
    problems += _twice("feature service", [(service.name, service.at) for service in services])
    return problems + _views_twice(views)


def _readable(view: FeatureView) -> bool:
    """Whether keys and fields of the view can be asked for at all."""
    entities = all(isinstance(entity, Entity) and isinstance(entity.join_keys, Mapping) for entity in view.entities)
    return entities and all(isinstance(field, Field) for field in view.schema)


def _at(location: Location, subject: str, faults: Iterator[Fault]) -> Iterator[Problem]:
    for what, way_out in faults:
        yield Problem(what=f"{subject}: {what}", way_out=way_out, path=location.path, line=location.line)


# ------------------------------------------------------------------ names across files


def _twice(kind: str, declared: Sequence[tuple[Any, Location]]) -> list[Problem]:
    problems = []
    for index, name, earlier in clashes(name for name, _ in declared):
        first = next(at for other, at in declared if other == earlier)
        problems.append(_second(kind, name, earlier, declared[index][1], first))
    return problems


def _second(kind: str, name: str, earlier: str, at: Location, first: Location) -> Problem:
    where = f"line {first.line}" if first.path == at.path else f"{first.path}:{first.line}"
    if name == earlier:
        what, way_out = (
            f"{kind} {name!r} is declared twice (first at {where})",
            "import the first one, or rename this one",
        )
    else:
        what = f"{kind} {name!r} and {earlier!r} ({where}) differ in letter case only"
        way_out = "SQL takes them for one name; rename one of them"
    return Problem(what=what, way_out=way_out, path=at.path, line=at.line)


def _views_twice(views: Sequence[FeatureView]) -> list[Problem]:
    """(name, version) is unique; versions of one view share the name letter by letter."""
    problems = []
    first_of_ref: dict[tuple[str, str], FeatureView] = {}
    for view in views:
        if not isinstance(view.name, str):
            continue
        earlier = first_of_ref.setdefault((view.name.lower(), repr(view.version)), view)
        if earlier is not view:
            problems.append(_second("feature view", view.ref, earlier.ref, view.at, earlier.at))
    spelled: dict[str, FeatureView] = {}
    for view in views:
        if isinstance(view.name, str):
            earlier = spelled.setdefault(view.name.lower(), view)
            if earlier.name != view.name and earlier.version != view.version:
                problems.append(_second("feature view", view.name, earlier.name, view.at, earlier.at))
    return problems


# ------------------------------------------------------------------ entities


def _entity_problems(entity: Entity) -> Iterator[Problem]:
    yield from _at(entity.at, f"entity {entity.name!r}", _entity_faults(entity))


def _entity_faults(entity: Entity) -> Iterator[Fault]:
    if fault := name_fault(entity.name):
        yield fault
    yield from label_faults(entity)
    keys = entity.join_keys
    if not isinstance(keys, Mapping) or not keys:
        yield f"join_keys={keys!r} names no key", 'write join_keys={"airport": String}'
        return
    for name, dtype in keys.items():
        if fault := column_fault(name):
            yield f"join key: {fault[0]}", fault[1]
        if not isinstance(dtype, DType) or dtype not in JOIN_KEY_TYPES:
            yield f"join key {name!r} is a {dtype}", f"a join key is one of {', '.join(map(str, JOIN_KEY_TYPES))}"
    for _, name, earlier in clashes(keys):
        yield f"join keys {earlier!r} and {name!r} differ in letter case only", "rename one of them"


# ------------------------------------------------------------------ views


def _view_problems(view: FeatureView) -> Iterator[Problem]:
    subject = f"feature view {view.name!r}"
    yield from _at(view.at, subject, _view_faults(view))
    yield from rule_problems(view, subject, readable=_readable(view))
    for field in view.schema:
        if isinstance(field, Field):
            yield from _at(field.at, f"{subject}: field {field.name!r}", field_faults(field))
    if isinstance(view.source, (FileSource, SqlSource)):
        yield from _at(view.source.at, f"{subject}: source", _source_faults(view.source))


def _view_faults(view: FeatureView) -> Iterator[Fault]:
    if fault := name_fault(view.name, VIEW_NAME_LENGTH_MAX):
        yield fault
    if not isinstance(view.version, int) or isinstance(view.version, bool) or not 1 <= view.version <= VERSION_MAX:
        yield f"version={view.version!r} is not a version", "count versions 1, 2, 3, ..."
    yield from label_faults(view)
    if not isinstance(view.source, (FileSource, SqlSource)):
        yield f"source={view.source!r} is not a source", "give a FileSource or an SqlSource"
    if view.on_violation not in ON_VIOLATION:
        yield f"on_violation={view.on_violation!r} is unknown", f"choose {', '.join(map(repr, ON_VIOLATION))}"
    for name in ("ttl", "freshness"):
        value = getattr(view, name)
        if value is not None and not isinstance(value, timedelta):
            yield f"{name}={value!r} is not a duration", f"write {name}=timedelta(hours=3), or None"
        elif value is not None and value <= timedelta(0):
            none = "never expires" if name == "ttl" else "promises nothing"
            yield f"{name}={duration_text(value)} is not positive", f"give a positive duration, or None, which {none}"
        elif value is not None:
            yield from too_long(name, value)
    yield from _column_faults(view)


def _column_faults(view: FeatureView) -> Iterator[Fault]:
    strangers = [item for item in view.entities if not isinstance(item, Entity)]
    if strangers:
        yield f"entities holds {strangers[0]!r}, which is not an Entity", "write entities=[airport]"
    if not view.entities:
        yield "it has no entity", "write entities=[...]: rows are found by their join keys"
    if not view.schema:
        yield "its schema is empty", "declare at least one Field"
    for item in view.schema:
        if not isinstance(item, Field):
            yield f"schema holds {item!r}, which is not a Field", 'write Field(name="temp", dtype=Float64)'
    if strangers or any(not isinstance(entity.join_keys, Mapping) for entity in view.entities):
        return
    keys = [name for entity in view.entities for name in entity.join_keys]
    for _, name, _earlier in clashes(keys):
        yield f"join key {name!r} comes from two of its entities", "rename the key in one of them"
    names = [field.name for field in view.schema if isinstance(field, Field)]
    for index, name, earlier in clashes([*dict.fromkeys(keys), *names]):
        if index < len(dict.fromkeys(keys)):
            continue
        if earlier in keys:
            yield f"field {name!r} is a join key too", "keys are always there; take the field out, or rename it"
        elif earlier == name:
            yield f"field {name!r} is declared twice", "rename one of them"
        else:
            yield f"fields {earlier!r} and {name!r} differ in letter case only", "rename one of them"


# ------------------------------------------------------------------ sources


def _source_faults(source: FileSource | SqlSource) -> Iterator[Fault]:
    yield from label_faults(source)
    if not isinstance(source.timestamp_field, str) or not source.timestamp_field:
        yield f"timestamp_field={source.timestamp_field!r} names no column", "name the column of the event time"
    created = source.created_timestamp_column
    if created is not None and (not isinstance(created, str) or not created):
        yield f"created_timestamp_column={created!r} names no column", "name the column, or leave it out"
    elif created is not None and created == source.timestamp_field:
        yield (
            "created_timestamp_column is timestamp_field again",
            "leave it out: rows are then known at their event time",
        )
    yield from _zone_faults(source)
    if isinstance(source, FileSource):
        if not isinstance(source.path, str) or not source.path:
            yield f"path={source.path!r} names no file", "give a file, a folder or a glob, relative to the repository"
    else:
        yield from _sql_faults(source)


def _zone_faults(source: FileSource | SqlSource) -> Iterator[Fault]:
    zone = source.timezone
    if zone is not None and not _is_zone(zone):
        known = sorted(zoneinfo.available_timezones())
        near = suggest(str(zone), known).partition("? known")[0].partition("; known")[0]
        yield f"timezone={zone!r} is not an IANA time zone{near}", 'write one, as in "America/New_York"'
    if source.ambiguous is not None and source.ambiguous not in _AMBIGUOUS:
        yield f"ambiguous={source.ambiguous!r} is unknown", 'choose "earlier" or "later"'
    elif source.ambiguous is not None and zone is None:
        yield "ambiguous is set, and no timezone", "set timezone too, or leave it out"


def _is_zone(name: object) -> bool:
    if not isinstance(name, str):
        return False
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _sql_faults(source: SqlSource) -> Iterator[Fault]:
    if not isinstance(source.query, str) or not source.query.strip():
        yield "the query is empty", "write a SELECT over the names of inputs"
    if not isinstance(source.inputs, Mapping) or not source.inputs:
        yield f"inputs={source.inputs!r} names no file", 'write inputs={"flights": "data/flights.parquet"}'
    else:
        for name, path in source.inputs.items():
            if fault := name_fault(name):
                yield f"input: {fault[0]}", fault[1]
            if not isinstance(path, str) or not path:
                yield f"input {name!r}: {path!r} names no file", "give a file, a folder or a glob"
        for _, name, earlier in clashes(source.inputs):
            yield f"inputs {earlier!r} and {name!r} differ in letter case only", "rename one of them"
    if not isinstance(source.threads, int) or isinstance(source.threads, bool) or source.threads < 1:
        yield f"threads={source.threads!r} is not a number of threads", "give 1 or more"
    for name in ("overlap", "lookback"):
        value = getattr(source, name)
        if value is None and name == "lookback":
            continue
        if not isinstance(value, timedelta) or value < timedelta(0):
            yield f"{name}={value!r} is not a duration from zero on", f"write {name}=timedelta(days=1)"
        else:
            yield from too_long(name, value)
