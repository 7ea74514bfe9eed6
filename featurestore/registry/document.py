"""Definitions as plain JSON documents and back, lossless: the form in which registry and manifests keep them.

What equals its default is left out, so that a later release may add an attribute without changing one document or
fingerprint; for that reason the default of an attribute never changes. Order that means something (join keys,
fields) is a list. Values are written by the dtype of their field, see `encode_value`.
"""

from __future__ import annotations

import base64
import decimal
import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from featurestore.clock import MICROSECOND
from featurestore.dtypes import (
    FLOATS,
    Bytes,
    Date,
    Decimal,
    DType,
    List,
    Timestamp,
    Vector,
    parse_dtype,
)
from featurestore.entity import Entity
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView, SelectedField, ViewSelection
from featurestore.field import Field
from featurestore.labels import LABELS
from featurestore.registry.rules_document import rules_document, rules_from
from featurestore.source import FileSource, Source, SqlSource

Document = dict[str, Any]

#: Wide enough for every decimal of 38 digits at every scale.
_EXACT = decimal.Context(prec=100, traps=[decimal.InvalidOperation, decimal.Inexact])
_BOUNDS = ("ge", "gt", "le", "lt")


def canonical_json(document: Any) -> bytes:
    """The one text of a document: sorted keys, no spaces, ASCII; equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


# ------------------------------------------------------------------ values


def encode_value(value: Any, dtype: DType) -> Any:
    """A valid value of `dtype` as JSON: floats as numbers (inf and NaN as text), decimals at their scale and times
    as text, bytes in base64, lists and vectors as lists.
    """
    match dtype:
        case List(element) | Vector(element):
            return [encode_value(item, element) for item in value]
        case Decimal(scale=scale):
            return str(decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-scale), context=_EXACT))
    if dtype in FLOATS:
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if dtype == Timestamp:
        return value.astimezone(UTC).isoformat()
    if dtype == Date:
        return value.isoformat()
    if dtype == Bytes:
        return base64.b64encode(value).decode("ascii")
    return value


def decode_value(encoded: Any, dtype: DType) -> Any:
    """The value that `encode_value` wrote."""
    match dtype:
        case List(element) | Vector(element):
            return tuple(decode_value(item, element) for item in encoded)
        case Decimal():
            return decimal.Decimal(encoded)
    if dtype in FLOATS:
        return float(encoded)
    if dtype == Timestamp:
        return datetime.fromisoformat(encoded)
    if dtype == Date:
        return date.fromisoformat(encoded)
    if dtype == Bytes:
        return base64.b64decode(encoded)
    return encoded


# ------------------------------------------------------------------ entities and fields


def entity_document(entity: Entity) -> Document:
    """An entity as a document."""
    return {"name": entity.name, "join_keys": _types(entity.join_keys)} | _labels(entity)


def entity_from(document: Document) -> Entity:
    """The entity of a document."""
    keys = {key["name"]: parse_dtype(key["dtype"]) for key in document["join_keys"]}
    return Entity(**{**document, "join_keys": keys})


def field_document(field: Field) -> Document:
    """A field with its contract as a document."""
    dtype = field.dtype
    document: Document = {"name": field.name, "dtype": str(dtype)}
    for name in (*_BOUNDS, "default"):
        if (value := getattr(field, name)) is not None:
            document[name] = encode_value(value, dtype)
    if field.allowed_values is not None:
        document["allowed_values"] = [encode_value(value, dtype) for value in field.allowed_values]
    plain = {name: getattr(field, name) for name in ("pattern", "min_length", "max_length", "on_violation")}
    document |= {name: value for name, value in plain.items() if value is not None}
    if not field.nullable:
        document["nullable"] = False
    if field.allow_nan:
        document["allow_nan"] = True
    return document | _labels(field)


def field_from(document: Document) -> Field:
    """The field of a document."""
    dtype = parse_dtype(document["dtype"])
    arguments: Document = {**document, "dtype": dtype}
    for name in (*_BOUNDS, "default"):
        if name in document:
            arguments[name] = decode_value(document[name], dtype)
    if "allowed_values" in document:
        arguments["allowed_values"] = tuple(decode_value(value, dtype) for value in document["allowed_values"])
    return Field(**arguments)


# ------------------------------------------------------------------ sources, views, services


def source_document(source: Source) -> Document:
    """A source as a document."""
    document: Document
    if isinstance(source, FileSource):
        document = {"kind": "file", "path": source.path}
    else:
        document = {"kind": "sql", "query": source.query, "inputs": dict(source.inputs)}
        if source.threads != 1:
            document["threads"] = source.threads
        if source.overlap != timedelta(days=1):
            document["overlap_us"] = source.overlap // MICROSECOND
        if source.lookback is not None:
            document["lookback_us"] = source.lookback // MICROSECOND
    document["timestamp_field"] = source.timestamp_field
    optional = {name: getattr(source, name) for name in ("created_timestamp_column", "timezone", "ambiguous")}
    document |= {name: value for name, value in optional.items() if value is not None}
    return document | _labels(source)


def source_from(document: Document) -> Source:
    """The source of a document."""
    arguments = _with_durations(document, "overlap", "lookback")
    kinds: dict[str, type[FileSource] | type[SqlSource]] = {"file": FileSource, "sql": SqlSource}
    return kinds[arguments.pop("kind")](**arguments)


def view_document(view: FeatureView) -> Document:
    """A feature view as a document that stands alone: its entities are inside."""
    document: Document = {
        "name": view.name,
        "version": view.version,
        "entities": [entity_document(entity) for entity in view.entities],
        "schema": [field_document(field) for field in view.schema],
        "source": source_document(view.source),
    }
    if view.ttl is not None:
        document["ttl_us"] = view.ttl // MICROSECOND
    if view.freshness is not None:
        document["freshness_us"] = view.freshness // MICROSECOND
    if view.on_violation != "reject":
        document["on_violation"] = view.on_violation
    return document | rules_document(view) | _labels(view)


def view_from(document: Document) -> FeatureView:
    """The feature view of a document."""
    arguments = _with_durations(rules_from(document), "ttl", "freshness")
    arguments["entities"] = [entity_from(entity) for entity in document["entities"]]
    arguments["schema"] = [field_from(field) for field in document["schema"]]
    arguments["source"] = source_from(document["source"])
    return FeatureView(**arguments)


def service_document(service: FeatureService) -> Document:
    """A feature service as a document; the views it pins are named, not inside."""
    document: Document = {"name": service.name, "features": [_selection(chosen) for chosen in service.selections]}
    if service.request_fields:
        document["request_fields"] = [field_document(field) for field in service.request_fields]
    if service.on_stale != "serve":
        document["on_stale"] = service.on_stale
    return document | _labels(service)


def service_from(document: Document) -> FeatureService:
    """The feature service of a document."""
    arguments: Document = {**document, "features": [_selection_from(chosen) for chosen in document["features"]]}
    arguments["request_fields"] = [field_from(field) for field in document.get("request_fields", ())]
    return FeatureService(**arguments)


def _selection(selection: ViewSelection) -> Document:
    fields = []
    for selected in selection.fields:
        entry: Document = {"field": selected.field}
        if selected.alias is not None:
            entry["alias"] = selected.alias
        if selected.fill is not None:
            entry["fill"] = encode_fill(selected.fill)
        fields.append(entry)
    return {"view": selection.view, "version": selection.version, "fields": fields}


def _selection_from(document: Document) -> ViewSelection:
    fields = tuple(
        SelectedField(
            field=entry["field"],
            alias=entry.get("alias"),
            fill=float(entry["fill"]) if "fill" in entry else None,
        )
        for entry in document["fields"]
    )
    return ViewSelection(view=document["view"], version=document["version"], fields=fields)


def encode_fill(fill: float) -> float | str:
    """A fill as JSON: a number, or text for inf and NaN."""
    return fill if math.isfinite(fill) else str(fill)


def _labels(definition: Entity | Field | FeatureView | FeatureService | Source) -> Document:
    labels = {name: getattr(definition, name, "") for name in LABELS}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in labels.items() if value}


def _types(keys: Mapping[str, DType]) -> list[Document]:
    return [{"name": name, "dtype": str(dtype)} for name, dtype in keys.items()]


def _with_durations(document: Document, *names: str) -> Document:
    arguments = dict(document)
    for name in names:
        if f"{name}_us" in arguments:
            arguments[name] = timedelta(microseconds=arguments.pop(f"{name}_us"))
    return arguments
