"""What changed between an applied definition and a declared one, change by change, and what each means for readers.

*compatible*: what was written stays valid and readers notice nothing. *signature*: columns of a service change, so
models and clients must bind anew. *breaking*: rows, meanings or promises that readers rely on change; a feature view
then needs a new version. This module is the one place where evolution is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from featurestore.clock import duration_text
from featurestore.dtypes import FLOATS
from featurestore.entity import Entity
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.fingerprint import definition_fingerprint, service_signature
from featurestore.labels import LABELS
from featurestore.registry.document import canonical_json, encode_value
from featurestore.registry.validate_field import lower_bound, upper_bound
from featurestore.source import SqlSource
from featurestore.view_rules import Condition, Reference, Volume

Impact = Literal["compatible", "signature", "breaking"]
#: From harmless to harmful.
IMPACTS: tuple[Impact, ...] = ("compatible", "signature", "breaking")
#: What is left of a change that means nothing, as `gt=0` in place of `ge=1` on an integer.
REWORDED = "the same in other words"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that changed, in words."""

    what: str
    impact: Impact = "compatible"


def worst(impacts: Sequence[Impact]) -> Impact:
    """The most harmful of them; nothing is compatible."""
    return max(impacts, key=IMPACTS.index, default="compatible")


def entity_changes(applied: Entity, declared: Entity) -> list[Change]:
    """What changed in an entity."""
    changes = list(_labels(applied, declared))
    if list(applied.join_keys.items()) != list(declared.join_keys.items()):
        changes.append(
            Change(what=f"join keys {_keys(applied.join_keys)} become {_keys(declared.join_keys)}", impact="breaking")
        )
    return changes


def view_changes(applied: FeatureView, declared: FeatureView, schemas: Mapping[int, Sequence[Field]]) -> list[Change]:
    """What changed in a view of one version; `schemas` are the field lists it has had, by schema id."""
    if definition_fingerprint(applied) == definition_fingerprint(declared):
        return []
    changes = [*_key_changes(applied, declared), *_field_list_changes(applied, declared)]
    first = {field.name for field in schemas[min(schemas)]} if schemas else set(applied.fields)
    for name, before in applied.fields.items():
        if name in declared.fields:
            changes += _field_changes(before, declared.fields[name], always=name in first)
    changes += [*_source_changes(applied, declared), *_promise_changes(applied, declared)]
    changes += _view_rule_changes(applied, declared)
    changes += _labels(applied, declared)
    return changes or [Change(what=REWORDED)]


def service_changes(
    applied: FeatureService,
    declared: FeatureService,
    views: Mapping[str, FeatureView],
    signatures: tuple[str, str] | None = None,
) -> list[Change]:
    """What changed in a service; `signatures` are the recorded one and the new one, computed here when not given."""
    before, after = signatures or (service_signature(applied, views), service_signature(declared, views))
    changes = []
    if before != after:
        changes.append(Change(what=f"signature changes: {_signature_words(applied, declared)}", impact="signature"))
    changes += _request_changes(applied, declared)
    if applied.on_stale != declared.on_stale:
        changes.append(Change(what=f"on_stale {applied.on_stale} -> {declared.on_stale}"))
    changes += _labels(applied, declared)
    reworded = definition_fingerprint(applied) != definition_fingerprint(declared)
    return changes or ([Change(what=REWORDED)] if reworded else [])


def _request_changes(applied: FeatureService, declared: FeatureService) -> Iterator[Change]:
    """Rules that callers keep; names, types and order of request fields are part of the signature."""
    after = {field.name: field for field in declared.request_fields}
    for before in applied.request_fields:
        if before.name in after and after[before.name].dtype == before.dtype:
            for change in _field_changes(before, after[before.name], always=True):
                yield Change(what=f"request {change.what}", impact=change.impact)


# ------------------------------------------------------------------ keys and columns of a view


def _key_changes(applied: FeatureView, declared: FeatureView) -> Iterator[Change]:
    before = [(entity.name, list(entity.join_keys.items())) for entity in applied.entities]
    after = [(entity.name, list(entity.join_keys.items())) for entity in declared.entities]
    if list(applied.join_keys.items()) != list(declared.join_keys.items()):
        keys = f"join keys {_keys(applied.join_keys)} become {_keys(declared.join_keys)}"
        yield Change(what=keys, impact="breaking")
    elif before != after:
        names = [" ".join(name for name, _ in side) for side in (before, after)]
        yield Change(what=f"entities {names[0]} become {names[1]}", impact="breaking")


def _field_list_changes(applied: FeatureView, declared: FeatureView) -> Iterator[Change]:
    for name in applied.fields:
        if name not in declared.fields:
            yield Change(what=f"field {name} is removed", impact="breaking")
    for name, field in declared.fields.items():
        if name not in applied.fields:
            filled = "" if field.default is None else f", {field.default!r} in rows written before"
            if field.nullable or field.default is not None:
                yield Change(what=f"field {name} ({field.dtype}) is added{filled}")
            else:
                what = f"field {name} is added, not nullable and without default, so earlier rows have no value"
                yield Change(what=what, impact="breaking")
    kept = [name for name in applied.fields if name in declared.fields]
    if kept != [name for name in declared.fields if name in applied.fields]:
        yield Change(what="fields stand in another order")


def _field_changes(before: Field, after: Field, *, always: bool) -> Iterator[Change]:
    """`always`: every row ever written has the field, so its default is never used."""
    name = f"field {before.name}"
    if before.dtype != after.dtype:
        yield Change(what=f"{name}: {before.dtype} becomes {after.dtype}", impact="breaking")
        return
    if before.nullable and not after.nullable:
        yield Change(what=f"{name} is no longer nullable", impact="breaking")
    elif after.nullable and not before.nullable:
        yield Change(what=f"{name} becomes nullable")
    for rule in _rule_changes(before, after):
        yield Change(what=f"{name}: {rule.what}", impact=rule.impact)
    if _default(before) != _default(after):
        what = f"{name}: default {before.default!r} -> {after.default!r}"
        if always:
            yield Change(what=what)
        else:
            yield Change(what=f"{what}, which rewrites rows from before the field", impact="breaking")
    if before.on_violation != after.on_violation:
        yield Change(what=f"{name}: on_violation {before.on_violation} -> {after.on_violation}")
    yield from _labels(before, after, f"{name}: ")


def _default(field: Field) -> str:
    """The default as rows get it, for comparison: NaN is itself, -0.0 is not 0.0."""
    return "" if field.default is None else canonical_json(encode_value(field.default, field.dtype)).decode("ascii")


def _rule_changes(before: Field, after: Field) -> Iterator[Change]:
    yield from _limit_change("lower bound", lower_bound(before), lower_bound(after), _lower_is_narrower)
    yield from _limit_change("upper bound", upper_bound(before), upper_bound(after), _upper_is_narrower)
    nan_before, nan_after = (not field.bounded or field.allow_nan for field in (before, after))
    if nan_before != nan_after and before.dtype in FLOATS:
        yield _judged("NaN is allowed" if nan_after else "NaN is refused", narrower=not nan_after)
    yield from _allowed_change(before, after)
    if before.pattern != after.pattern:
        what = f"pattern {before.pattern!r} -> {after.pattern!r}"
        yield _judged(what, narrower=after.pattern is not None)
    shorter = (before.max_length, after.max_length)
    yield from _limit_change("max_length", *shorter, lambda old, new: bool(new < old))
    longer = (before.min_length or None, after.min_length or None)
    yield from _limit_change("min_length", *longer, lambda old, new: bool(new > old))


def _limit_change(what: str, before: Any, after: Any, narrower: Any) -> Iterator[Change]:
    if before == after:
        return
    tighter = after is not None and (before is None or narrower(before, after))
    words = "is dropped" if after is None else "is added" if before is None else "moves"
    yield _judged(f"{what} {words} ({_limit(before)} -> {_limit(after)})", narrower=tighter)


def _lower_is_narrower(before: tuple[Any, bool], after: tuple[Any, bool]) -> bool:
    return bool(after > before)


def _upper_is_narrower(before: tuple[Any, bool], after: tuple[Any, bool]) -> bool:
    return bool(after[0] < before[0] or (after[0] == before[0] and after[1] and not before[1]))


def _allowed_change(before: Field, after: Field) -> Iterator[Change]:
    if before.allowed_values == after.allowed_values:
        return
    if after.allowed_values is None:
        yield _judged("any value is allowed", narrower=False)
    elif before.allowed_values is None:
        yield _judged("allowed_values is added", narrower=True)
    else:
        gone = [value for value in before.allowed_values if value not in set(after.allowed_values)]
        fresh = [value for value in after.allowed_values if value not in set(before.allowed_values)]
        if gone:
            yield _judged(f"allowed values {_some(gone)} are removed", narrower=True)
        elif fresh:
            yield _judged(f"allowed values {_some(fresh)} are added", narrower=False)
        else:
            yield _judged("allowed values stand in another order", narrower=False)


def _judged(what: str, *, narrower: bool) -> Change:
    return Change(what=f"{what}, which narrows the contract" if narrower else what, impact=_breaking_if(narrower))


def _breaking_if(condition: bool) -> Impact:
    return "breaking" if condition else "compatible"


# ------------------------------------------------------------------ source and promises of a view


def _source_changes(applied: FeatureView, declared: FeatureView) -> Iterator[Change]:
    before, after = applied.source, declared.source
    for name in ("timestamp_field", "created_timestamp_column", "timezone", "ambiguous"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield Change(what=f"source: {name} {old!r} -> {new!r}, which changes what time means", impact="breaking")
    yield from _labels(before, after, "source: ")
    if type(before) is not type(after):
        yield Change(what=f"source becomes {'SQL' if isinstance(after, SqlSource) else 'a file'}")
        return
    for name in ("path", "query", "inputs", "threads", "overlap", "lookback"):
        if getattr(before, name, None) != getattr(after, name, None):
            yield Change(what=f"source: {name}")


def _promise_changes(applied: FeatureView, declared: FeatureView) -> Iterator[Change]:
    if applied.ttl != declared.ttl:
        what = f"ttl {_limit(applied.ttl)} -> {_limit(declared.ttl)}, which changes when values expire"
        yield Change(what=what, impact="breaking")
    if applied.freshness != declared.freshness:
        yield Change(what=f"freshness {_limit(applied.freshness)} -> {_limit(declared.freshness)}")
    if applied.on_violation != declared.on_violation:
        yield Change(what=f"on_violation {applied.on_violation} -> {declared.on_violation}")


# ------------------------------------------------------------------ rules of whole rows, expectations of the history


def _view_rule_changes(applied: FeatureView, declared: FeatureView) -> Iterator[Change]:
    conditions = [{rule.name: rule for rule in view.conditions} for view in (applied, declared)]
    yield from _listed_changes("condition", *conditions, narrows=partial(_condition_narrows, applied))
    references = [{reference_name(rule): rule for rule in view.references} for view in (applied, declared)]
    yield from _listed_changes("reference", *references)
    if applied.unique != declared.unique:
        yield _judged(f"unique {applied.unique} -> {declared.unique}", narrower=declared.unique)
    ahead = (applied.future_tolerance, declared.future_tolerance)
    yield from _limit_change("future_tolerance", *ahead, lambda old, new: bool(new < old))
    for name in ("volume", "largest_gap", "max_breach_share"):  # they judge the whole and refuse no row
        old, new = getattr(applied, name), getattr(declared, name)
        if old != new:
            yield Change(what=f"{name} {_expected(old)} -> {_expected(new)}")


def _listed_changes(
    kind: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    narrows: Callable[[Any, str], bool] = lambda rule, attribute: False,
) -> Iterator[Change]:
    """Rules by name; `narrows`: whether fewer rows may keep a rule when that attribute of it changes."""
    for name in before:
        if name not in after:
            yield _judged(f"{kind} {name} is dropped", narrower=False)
    for name, rule in after.items():
        if name not in before:
            yield _judged(f"{kind} {name} is added", narrower=True)
            continue
        for attribute in ("sql", "on_violation", "description"):
            old, new = getattr(before[name], attribute, None), getattr(rule, attribute, None)
            if old != new:
                narrower = narrows(before[name], attribute)
                yield _judged(f"{kind} {name}: {attribute} {old!r} -> {new!r}", narrower=narrower)


def _condition_narrows(applied: FeatureView, rule: Condition, attribute: str) -> bool:
    """Another SQL does, but in place of one that judges no row: this release refuses what an earlier one took."""
    if attribute != "sql":
        return False
    from featurestore.registry.validate_rules import sql_is_judged  # SQL is parsed only where it changes

    return sql_is_judged(rule.sql, applied)


def reference_name(rule: Reference) -> str:
    """A reference in words: what names what."""
    columns = ", ".join(f"{ours} as {theirs}" if ours != theirs else ours for theirs, ours in rule.columns.items())
    return f"of {columns} to {rule.view}"


def _expected(value: object) -> str:
    if isinstance(value, Volume):
        limits = [
            f"{words} {n}" for words, n in (("at least", value.at_least), ("at most", value.at_most)) if n is not None
        ]
        return f"{' and '.join(limits)} rows per {duration_text(value.per)}"
    return _limit(value)


# ------------------------------------------------------------------ words


def _labels(applied: Any, declared: Any, prefix: str = "") -> Iterator[Change]:
    for name in LABELS:
        if getattr(applied, name, None) != getattr(declared, name, None):
            yield Change(what=f"{prefix}{name}")


def _signature_words(applied: FeatureService, declared: FeatureService) -> str:
    """The chosen columns tell most; ttl, types and allowed values come with the view version."""
    before, after = [_columns(service) for service in (applied, declared)]
    gone = [column for column in before if column not in after]
    fresh = [column for column in after if column not in before]
    words = [f"{_some(gone)} gone"] if gone else []
    words += [f"{_some(fresh)} new"] if fresh else []
    if not words and list(before) != list(after):
        words = ["columns stand in another order"]
    for column, fill in before.items():
        if column in after and repr(fill) != repr(after[column]):
            words.append(f"fill of {column} {_fill(fill)} -> {_fill(after[column])}")
    return ", ".join(words) or "a column's type or allowed values"


def _columns(service: FeatureService) -> dict[str, float | None]:
    """The columns in words, and what fills each."""
    columns = {
        f"{chosen.view}@{chosen.version}:{selected.field}"
        + (f" as {selected.alias}" if selected.alias else ""): selected.fill
        for chosen in service.selections
        for selected in chosen.fields
    }
    return columns | {f"request:{field.name}": None for field in service.request_fields}


def _fill(fill: float | None) -> str:
    return "NaN" if fill is None else str(fill)


def _keys(keys: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{name} {dtype}" for name, dtype in keys.items()) + ")"


def _limit(limit: Any) -> str:
    if limit is None:
        return "none"
    if isinstance(limit, timedelta):
        return duration_text(limit)
    return f"{limit[0]}{' excluded' if limit[1] else ''}" if isinstance(limit, tuple) else str(limit)


def _some(values: Sequence[Any], shown: int = 5) -> str:
    return ", ".join(map(str, values[:shown])) + (f" and {len(values) - shown} more" if len(values) > shown else "")
