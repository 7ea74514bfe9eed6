"""The rules of a feature service: pinned views and fields exist, columns do not clash, fills fit the matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from featurestore.errors import Problem, suggest
from featurestore.feature_service import ON_STALE, FeatureService
from featurestore.feature_view import FeatureView, SelectedField, ViewSelection
from featurestore.field import Field
from featurestore.location import Location
from featurestore.registry.names import clashes, column_fault, name_fault
from featurestore.registry.validate_field import Fault, field_faults, label_faults
from featurestore.registry.values import FLOAT32_MAX


def service_problems(service: FeatureService, views: Mapping[str, FeatureView], *, whole: bool) -> Iterator[Problem]:
    """Every problem of a service; views that are not in `views` are reported only when `whole`."""
    subject = f"feature service {service.name!r}"
    yield from _at(service.at, subject, _service_faults(service))
    for chosen in service.selections:
        if isinstance(chosen, ViewSelection):
            # A selection made elsewhere is mended where the service takes it.
            at = chosen.at if chosen.at.path == service.at.path else service.at
            yield from _at(at, subject, _selection_faults(chosen, views, whole))
    for field in service.request_fields:
        if isinstance(field, Field):
            yield from _at(field.at, f"{subject}: request field {field.name!r}", _request_faults(field))
    yield from _at(service.at, subject, _column_faults(service, views))


def _at(location: Location, subject: str, faults: Iterator[Fault]) -> Iterator[Problem]:
    for what, way_out in faults:
        yield Problem(what=f"{subject}: {what}", way_out=way_out, path=location.path, line=location.line)


def _service_faults(service: FeatureService) -> Iterator[Fault]:
    if fault := name_fault(service.name):
        yield fault
    yield from label_faults(service)
    if service.on_stale not in ON_STALE:
        yield f"on_stale={service.on_stale!r} is unknown", f"choose {', '.join(map(repr, ON_STALE))}"
    if not service.features:
        yield "it asks for no feature", "write features=[view] or features=[view[[...]]]"
    for item in service.features:
        if not isinstance(item, ViewSelection):
            yield f"features holds {item!r}", 'choose from a view object: weather, or weather[["temp"]]'
    for field in service.request_fields:
        if not isinstance(field, Field):
            yield f"request_fields holds {field!r}, which is not a Field", 'write Field(name="hour", dtype=Int32)'


def _request_faults(field: Field) -> Iterator[Fault]:
    yield from field_faults(field)
    if field.on_violation is not None:
        yield (
            f"on_violation={field.on_violation!r}",
            "a request that breaks its contract is always refused; leave it out",
        )


def _selection_faults(chosen: ViewSelection, views: Mapping[str, FeatureView], whole: bool) -> Iterator[Fault]:
    view = views.get(f"{chosen.view}@{chosen.version}")
    if view is None:
        if whole:
            yield _unknown_view(chosen, views)
        return
    if not chosen.fields:
        yield f"it chooses no field of {chosen.view!r}", "name at least one field"
    for selected in chosen.fields:
        if selected.field not in view.fields:
            known = suggest(str(selected.field), list(view.fields)).removeprefix("; ")
            yield f"{view.ref} has no field {selected.field!r}", known
        if selected.alias is not None and (fault := column_fault(selected.alias)):
            yield f"alias of {selected.field!r}: {fault[0]}", fault[1]
        if fault := _fill_fault(selected):
            yield fault


def _unknown_view(chosen: ViewSelection, views: Mapping[str, FeatureView]) -> Fault:
    versions = sorted(view.version for view in views.values() if view.name == chosen.view)
    if versions:
        known = ", ".join(map(str, versions))
        return f"no version {chosen.version} of feature view {chosen.view!r}", f"declared versions: {known}"
    names = sorted({view.name for view in views.values()})
    what = f"no feature view {chosen.view!r} is declared at the top of a definitions file"
    return what, f"assign it to a name there{suggest(chosen.view, names)}"


def _fill_fault(selected: SelectedField) -> Fault | None:
    fill: Any = selected.fill
    if fill is None:
        return None
    if not isinstance(fill, float):
        return f"fill of {selected.field!r} is {fill!r}, not a float", "write a number, as in .fill(temp=0.0)"
    if math.isfinite(fill) and abs(fill) > FLOAT32_MAX:
        return f"fill {fill!r} of {selected.field!r} does not fit float32", "choose a smaller number"
    return None


def _column_faults(service: FeatureService, views: Mapping[str, FeatureView]) -> Iterator[Fault]:
    """Request fields, join keys and output columns stand side by side in a training set."""
    chosen = [item for item in service.selections if isinstance(item, ViewSelection)]
    pinned = [views[ref] for item in chosen if (ref := f"{item.view}@{item.version}") in views]
    keys: dict[str, Any] = {}
    for view in pinned:
        for name, dtype in view.join_keys.items():
            if keys.setdefault(name, dtype) != dtype:
                yield (
                    f"join key {name!r} is {keys[name]} in one view and {dtype} in {view.ref}",
                    "give the key one type, or another name in one of the entities",
                )
    requested = [field.name for field in service.request_fields if isinstance(field, Field)]
    outputs = [selected.output for item in chosen for selected in item.fields]
    kinds = {name: "a request field" for name in requested} | {name: "a join key" for name in keys}
    for index, name, earlier in clashes([*keys, *requested, *outputs]):
        what = f"column {name!r} clashes with {kinds.get(earlier, 'another column')} {earlier!r}"
        if index < len(keys) + len(requested):
            yield what, "rename the request field, and the column that callers send"
        else:
            yield what, f'rename it with an alias, as in view[["{name}"]].alias({name}="other_{name}")'
