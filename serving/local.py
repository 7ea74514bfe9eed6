"""The serving answer without a server: the same plan and lookup, on the stores of an open repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from featurestore.clock import Clock
from featurestore.dtypes import DType
from featurestore.errors import InputError
from featurestore.offline.sources import read_table
from featurestore.online.base import OnlineStore
from serving.catalog import Catalog, RegistryReader
from serving.inputs import arrow_columns, text_columns
from serving.lookup import OnlineLookup
from serving.response import OnlineResponse
from serving.watermarks import PublishedWatermarks, PublishStates

Keys = Mapping[str, object] | Sequence[Mapping[str, str]]


def local_lookup(
    registry: RegistryReader,
    states: PublishStates,
    store: OnlineStore,
    clock: Clock,
    service: str | None,
    features: Sequence[str] | None,
    *,
    full_feature_names: bool = False,
) -> OnlineLookup:
    """The lookup of a service, or of features named one by one."""
    if (service is None) == (features is None):
        raise InputError("name a feature service, or features as view:field; one of the two")
    catalog = Catalog(registry.snapshot())
    if features is not None:
        plan = catalog.plan_of(features, full_feature_names=full_feature_names)
    else:
        assert service is not None
        plan = catalog.plan(service, full_feature_names=full_feature_names)
    return OnlineLookup(plan, store, clock, PublishedWatermarks(states))


def answer(lookup: OnlineLookup, columns: Mapping[str, object], max_age: timedelta | None) -> OnlineResponse:
    """Look up columns of join keys and request fields given together, as people and files give them."""
    return _answered(lookup, arrow_columns(columns, "column"), max_age)


def answer_texts(lookup: OnlineLookup, rows: Sequence[Mapping[str, str]], max_age: timedelta | None) -> OnlineResponse:
    """The same for rows of text, `carrier=AA,origin=JFK` each."""
    return _answered(lookup, text_columns(rows, _types(lookup), "column"), max_age)


def answer_file(lookup: OnlineLookup, path: Path, max_age: timedelta | None) -> OnlineResponse:
    """The same for the columns of a Parquet, CSV or Arrow file."""
    table = read_table(path, _types(lookup))
    return answer(lookup, {name: table.column(name) for name in table.column_names}, max_age)


def _types(lookup: OnlineLookup) -> dict[str, DType]:
    """What the columns of a request hold, keys and request fields together."""
    return {**lookup.plan.join_keys, **{name: field.dtype for name, field in lookup.plan.request_fields.items()}}


def _answered(lookup: OnlineLookup, columns: Mapping[str, pa.Array], max_age: timedelta | None) -> OnlineResponse:
    request = {name: column for name, column in columns.items() if name in lookup.plan.request_fields}
    keys = {name: column for name, column in columns.items() if name not in request}
    return lookup.lookup(keys, request, max_age)
