"""What a feature service gives, column by column: the one place that names outputs, for training and serving alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from featurestore.dtypes import INTEGERS, DType, Int64
from featurestore.errors import InputError, NotFoundError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView, ViewSelection
from featurestore.field import Field


@dataclass(frozen=True, kw_only=True)
class Output:
    """One column of an answer, in the service's order; `view` is empty for a request field.

    `field` is the declaration its values keep, `fill` what stands in the matrix for a missing value.
    """

    name: str
    field: Field
    fill: float | None = None
    view: str = ""


def service_outputs(
    service: FeatureService, views: Mapping[str, FeatureView], *, full_feature_names: bool = False
) -> tuple[Output, ...]:
    """The columns of a service: features, then request fields. InputError when two have the same name."""
    outputs = [
        Output(
            name=f"{selection.view}__{selected.output}" if full_feature_names else selected.output,
            field=view.fields[selected.field],
            fill=selected.fill,
            view=view.ref,
        )
        for selection, view in _selected(service, views)
        for selected in selection.fields
    ]
    outputs += [Output(name=field.name, field=field) for field in service.request_fields]
    seen: dict[str, Output] = {}
    for output in outputs:
        if (other := seen.setdefault(output.name, output)) is not output:
            raise InputError(
                f"two columns are named {output.name!r} (from {other.view or 'the request'} and "
                f"{output.view or 'the request'}); give one an alias"
                + ("" if full_feature_names else ", or ask for full feature names")
            )
    return tuple(outputs)


def pinned_views(service: FeatureService, views: Mapping[str, FeatureView]) -> dict[str, FeatureView]:
    """The views a service reads, by ref, in the order it first names them."""
    return {view.ref: view for _, view in _selected(service, views)}


def common_join_keys(views: Iterable[FeatureView]) -> dict[str, DType]:
    """Name -> type of the join keys of several views; integers of different widths meet in int64."""
    keys: dict[str, tuple[DType, str]] = {}
    for view in views:
        for name, dtype in view.join_keys.items():
            known, ref = keys.setdefault(name, (dtype, view.ref))
            if known == dtype:
                continue
            if known not in INTEGERS or dtype not in INTEGERS:
                raise InputError(
                    f"join key {name!r} is {known} in {ref} and {dtype} in {view.ref}; ask for these views separately"
                )
            keys[name] = (Int64, ref)
    return {name: dtype for name, (dtype, _) in keys.items()}


def service_of(features: Sequence[str], views: Mapping[str, FeatureView]) -> FeatureService:
    """An unnamed service of features named one by one, as `view:field` or `view@version:field`, in their order."""
    if not features:
        raise InputError("no features are named; name a service, or features as view:field")
    selections: list[FeatureView | ViewSelection] = []
    for feature in features:
        view_name, colon, field = feature.partition(":")
        if not colon:
            raise InputError(f"feature {feature!r} is not of the form view:field or view@version:field")
        view = _named(view_name, views)
        if field not in view.fields:
            raise NotFoundError(f"field of {view.ref}", field, view.fields)
        selections.append(view[field])
    return FeatureService(name="", features=selections)


def _selected(service: FeatureService, views: Mapping[str, FeatureView]) -> Iterable[tuple[ViewSelection, FeatureView]]:
    return ((selection, views[f"{selection.view}@{selection.version}"]) for selection in service.selections)


def _named(name: str, views: Mapping[str, FeatureView]) -> FeatureView:
    """The view `name@version`, or the highest version of `name`."""
    if name in views:
        return views[name]
    versions = [view for view in views.values() if view.name == name]
    if not versions:
        raise NotFoundError("feature view", name, views)
    return max(versions, key=lambda view: view.version)
