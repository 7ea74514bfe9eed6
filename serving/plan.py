"""A feature service compiled for lookups: everything that depends on names and types is decided here, once.

Takes plain definitions and row schemas; knows no registry, store or clock. A plan never changes once made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from featurestore.clock import timedelta_us
from featurestore.dtypes import DType
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.fingerprint import service_signature
from featurestore.ingest.rules import Rule, field_rules
from featurestore.matrix import MatrixPlan
from featurestore.online.row_codec import RowDecoder
from featurestore.outputs import Output, common_join_keys, pinned_views, service_outputs

RowSchemas = Mapping[int, Sequence[Field]]
"""Schema id -> the fields a row of that schema holds, for every id ever applied to a view."""


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """How one view of a service is read and judged."""

    ref: str
    name: str
    join_keys: tuple[str, ...]
    key_types: tuple[DType, ...]
    fields: tuple[Field, ...]
    decoder: RowDecoder
    ttl_us: int | None
    freshness_us: int | None


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """What a service takes (join keys, request fields) and gives (outputs), and how its views are read.

    `places` says for each output where its values are: which view, and which of its fields; None for request fields.
    """

    service: FeatureService
    signature: str
    views: tuple[ViewPlan, ...]
    outputs: tuple[Output, ...]
    places: tuple[tuple[int, int] | None, ...]
    join_keys: Mapping[str, DType]

    @property
    def name(self) -> str:
        """The service's name; empty for a list of features."""
        return self.service.name

    @cached_property
    def owner(self) -> str:
        """Who asks for columns, in messages."""
        return f"feature service {self.name!r}" if self.name else "the list of features"

    @cached_property
    def request_fields(self) -> dict[str, Field]:
        """The request fields by name, in declared order."""
        return {field.name: field for field in self.service.request_fields}

    @cached_property
    def request_rules(self) -> dict[str, tuple[Field, tuple[Rule, ...]]]:
        """Each request field with the rules of its contract, made once: requests come by the thousand."""
        return {name: (field, tuple(field_rules(field))) for name, field in self.request_fields.items()}

    @cached_property
    def matrix(self) -> MatrixPlan:
        """How replies become a matrix; InputError naming every field that cannot."""
        return MatrixPlan.compile([(output.name, output.field, output.fill) for output in self.outputs])


def compile_plan(
    service: FeatureService,
    views: Mapping[str, FeatureView],
    row_schemas: Mapping[str, RowSchemas],
    *,
    full_feature_names: bool = False,
) -> ServicePlan:
    """The plan of `service` over the views it pins; `views` and `row_schemas` are keyed by name@version.

    A view that the service names several times is read once. InputError when two outputs share a name.
    """
    outputs = service_outputs(service, views, full_feature_names=full_feature_names)
    pinned = pinned_views(service, views)
    join_keys = common_join_keys(pinned.values())
    read = {ref: list(dict.fromkeys(out.field.name for out in outputs if out.view == ref)) for ref in pinned}
    order = list(pinned)
    return ServicePlan(
        service=service,
        signature=service_signature(service, views),
        views=tuple(_view_plan(view, read[ref], row_schemas[ref], join_keys) for ref, view in pinned.items()),
        outputs=outputs,
        places=tuple(
            (order.index(out.view), read[out.view].index(out.field.name)) if out.view else None for out in outputs
        ),
        join_keys=join_keys,
    )


def _view_plan(
    view: FeatureView, names: Sequence[str], schemas: RowSchemas, key_types: Mapping[str, DType]
) -> ViewPlan:
    fields = tuple(view.fields[name] for name in names)
    return ViewPlan(
        ref=view.ref,
        name=view.name,
        join_keys=tuple(view.join_keys),
        key_types=tuple(key_types[name] for name in view.join_keys),
        fields=fields,
        decoder=RowDecoder(schemas, fields),
        ttl_us=None if view.ttl is None else timedelta_us(view.ttl),
        freshness_us=None if view.freshness is None else timedelta_us(view.freshness),
    )
