"""The rules that a view declares as a whole: every fault, before data moves, with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from featurestore.clock import duration_text, timedelta_us
from featurestore.dtypes import dtype_fault
from featurestore.errors import Problem, suggest
from featurestore.feature_view import FeatureView
from featurestore.location import Location
from featurestore.registry.names import clashes, name_fault
from featurestore.registry.validate_field import Fault, field_faults
from featurestore.view_rules import ON_VIOLATION, Condition, Reference, Volume

#: Sums of it and any timestamp stay far inside an int64.
DURATION_MAX_US = 100_000 * timedelta_us(timedelta(days=365))


def rule_problems(view: FeatureView, subject: str, *, readable: bool) -> Iterator[Problem]:
    """Every problem of the rules of a view, other views aside; `readable`: its keys and fields can be asked for."""
    yield from _at(view.at, subject, _view_faults(view))
    typed = readable and not any(dtype_fault(dtype) for dtype in [*view.join_keys.values(), *_types(view)])
    for rule in view.conditions:
        if isinstance(rule, Condition):
            yield from _at(rule.at, f"{subject}: condition {rule.name!r}", _condition_faults(rule, view, typed))
    for reference in view.references:
        if isinstance(reference, Reference):
            yield from _at(reference.at, f"{subject}: reference to {reference.view!r}", _policy_faults(reference))
    if isinstance(view.volume, Volume):
        yield from _at(view.volume.at, f"{subject}: volume", _volume_faults(view.volume))


def reference_problems(view: FeatureView, views: Mapping[str, FeatureView], *, whole: bool) -> Iterator[Problem]:
    """What references of `view` need of other views (by ref); one that is unknown is reported only when `whole`."""
    for rule in view.references:
        if isinstance(rule, Reference):
            subject = f"feature view {view.name!r}: reference to {rule.view!r}"
            yield from _at(rule.at, subject, _reference_faults(rule, view, views, whole))


def _types(view: FeatureView) -> list[object]:
    return [field.dtype for field in view.schema]


def _at(location: Location, subject: str, faults: Iterator[Fault]) -> Iterator[Problem]:
    for what, way_out in faults:
        yield Problem(what=f"{subject}: {what}", way_out=way_out, path=location.path, line=location.line)


def _view_faults(view: FeatureView) -> Iterator[Fault]:
    for name, kind in (("conditions", Condition), ("references", Reference)):
        for item in getattr(view, name):
            if not isinstance(item, kind):
                yield f"{name} holds {item!r}, which is not a {kind.__name__}", f"write {name}=[{kind.__name__}(...)]"
    named = [rule.name for rule in view.conditions if isinstance(rule, Condition)]
    for _, name, _earlier in clashes(named):
        yield f"condition {name!r} is declared twice", "rename one of them"
    if not isinstance(view.unique, bool):
        yield f"unique={view.unique!r} is not a bool", "write True or False"
    yield from _duration_faults("future_tolerance", view.future_tolerance, least=timedelta(0))
    yield from _duration_faults("largest_gap", view.largest_gap, least=timedelta(microseconds=1))
    if view.volume is not None and not isinstance(view.volume, Volume):
        yield f"volume={view.volume!r} is not a Volume", "write volume=Volume(at_least=20, per=timedelta(days=1))"
    share: Any = view.max_breach_share
    if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1):
        yield f"max_breach_share={share!r} is not a share", "give a number from 0 up to, not including, 1: 0.01 is 1 %"


def _duration_faults(name: str, value: object, *, least: timedelta) -> Iterator[Fault]:
    if value is not None and not isinstance(value, timedelta):
        yield f"{name}={value!r} is not a duration", f"write {name}=timedelta(hours=3), or None"
    elif value is not None and value < least:
        yield (
            f"{name}={duration_text(value)} is {'not positive' if least else 'negative'}",
            "give a longer duration, or None",
        )
    elif value is not None:
        yield from too_long(name, value)


def too_long(name: str, value: timedelta) -> Iterator[Fault]:
    """The fault of a duration that sums of timestamps have no room for; all that lie apart in the calendar have."""
    if timedelta_us(value) > DURATION_MAX_US:
        yield f"{name}={duration_text(value)} is longer than 100,000 years", "give a shorter duration"


def _volume_faults(volume: Volume) -> Iterator[Fault]:
    yield from _duration_faults("per", volume.per, least=timedelta(microseconds=1))
    if volume.per is None:
        yield "per=None is not a duration", "write per=timedelta(days=1)"
    limits = {name: value for name in ("at_least", "at_most") if (value := getattr(volume, name)) is not None}
    if not limits:
        yield "it limits nothing", "give at_least, at_most or both"
    counts = {name: n for name, n in limits.items() if isinstance(n, int) and not isinstance(n, bool) and n >= 0}
    for name in limits.keys() - counts.keys():
        yield f"{name}={limits[name]!r} is not a number of rows", "give a whole number from 0"
    if len(counts) == 2 and counts["at_least"] > counts["at_most"]:
        yield f"at_least={volume.at_least} is above at_most={volume.at_most}", "mend one of them"


def _policy_faults(rule: Condition | Reference) -> Iterator[Fault]:
    if rule.on_violation is not None and rule.on_violation not in ON_VIOLATION:
        yield f"on_violation={rule.on_violation!r} is unknown", f"choose {', '.join(map(repr, ON_VIOLATION))}"
    if not isinstance(rule.description, str):
        yield f"description={rule.description!r} is not a text", 'write description="..."'


def _condition_faults(rule: Condition, view: FeatureView, typed: bool) -> Iterator[Fault]:
    """`typed`: all that it may name has a type."""
    if fault := name_fault(rule.name):
        yield fault
    yield from _policy_faults(rule)
    if not isinstance(rule.sql, str):
        yield f"sql={rule.sql!r} is not a text", 'write sql="arrived_at >= left_at"'
    elif typed:
        yield from _sql_faults(rule.sql, view)


def sql_is_judged(sql: str, view: FeatureView) -> bool:
    """Whether the gate can judge rows of the view by a condition."""
    from featurestore.compiler.condition import ConditionFault, columns_of, parse_condition
    from featurestore.offline.conditions import engine_fault

    columns = columns_of(view)
    try:
        return engine_fault(parse_condition(sql, columns), columns) is None
    except ConditionFault:
        return False


def _sql_faults(sql: str, view: FeatureView) -> Iterator[Fault]:
    # Parsing and judging SQL is not loaded for views that need none.
    from featurestore.compiler.condition import ConditionFault, columns_of, condition_columns, parse_condition
    from featurestore.offline.conditions import engine_fault
    from featurestore.registry.unsatisfiable import never_holds

    columns = columns_of(view)
    try:
        tree = parse_condition(sql, columns)
    except ConditionFault as fault:
        yield fault.what, fault.way_out
        return
    if wrong := engine_fault(tree, columns):
        yield wrong.what, wrong.way_out
        return
    named = [view.fields[name] for name in condition_columns(tree) if name in view.fields]
    if not any(any(field_faults(field)) for field in named) and never_holds(tree, view.fields):
        yield f"no values within the declared bounds keep {sql!r}", "mend the condition, or the bounds"


def _reference_faults(
    rule: Reference, view: FeatureView, views: Mapping[str, FeatureView], whole: bool
) -> Iterator[Fault]:
    other = views.get(rule.view) if isinstance(rule.view, str) else None
    if other is None:
        if whole or not isinstance(rule.view, str):
            yield "no such feature view", f"give the view, or its name@version{suggest(str(rule.view), sorted(views))}"
        return
    if other.ref == view.ref:
        yield "it is the view itself", "refer to another view: the rows of a batch arrive together"
        return
    if _leads_back(other, view.ref, views):
        yield f"{other.ref} refers back to {view.ref}", "leave one of the references out: one view is loaded first"
    if not isinstance(rule.columns, Mapping):
        yield f"columns={rule.columns!r} is not a mapping", 'write columns={"its_key": "our_field"}'
        return
    yield from _reference_column_faults(rule, view, other)


def _reference_column_faults(rule: Reference, view: FeatureView, other: FeatureView) -> Iterator[Fault]:
    named = rule.columns
    ours = {**view.join_keys, **{name: field.dtype for name, field in view.fields.items()}}
    for key in other.join_keys:
        if key not in named:
            yield f"nothing stands for its join key {key!r}", "map every join key: an entity is named by all of them"
    for key, column in named.items():
        if key not in other.join_keys:
            yield f"it has no join key {key!r}", suggest(str(key), list(other.join_keys)).removeprefix("; ")
        elif column not in ours:
            known = suggest(str(column), list(ours)).removeprefix("; ")
            yield f"{view.ref} has no field or join key {column!r}", f"map {key!r} to one; {known}"
        elif ours[column] != other.join_keys[key]:
            yield f"{column!r} is {ours[column]}, its join key {key!r} is {other.join_keys[key]}", "give them one type"


def _leads_back(view: FeatureView, ref: str, views: Mapping[str, FeatureView]) -> bool:
    seen: set[str] = set()
    ahead = [view]
    while ahead:
        at = ahead.pop()
        for rule in at.references:
            if getattr(rule, "view", None) == ref:
                return True
            if isinstance(rule, Reference) and rule.view in views and rule.view not in seen:
                seen.add(rule.view)
                ahead.append(views[rule.view])
    return False
