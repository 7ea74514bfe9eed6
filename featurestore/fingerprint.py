"""The two fingerprints of a definition.

*Definition*: everything that is written down; two definitions with the same one are the same.
*Signature* of a service: what a model or client binds to. Its ordered columns with view@version, field, output name,
dtype, fill and ttl, its request fields, and the cast rule of the matrix. The output name is part of it, since clients
bind columns by name; so are the allowed values of strings, since they decide the ordinals in the matrix. Owners,
descriptions, tags, bounds, freshness and policies are not: changing them keeps the signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from featurestore.clock import timedelta_us
from featurestore.dtypes import String
from featurestore.entity import Entity
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.registry.document import (
    canonical_json,
    encode_fill,
    entity_document,
    service_document,
    view_document,
)

CAST_RULE = "float32-nearest-even/1"


def sha256_of(document: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def definition_fingerprint(definition: Entity | FeatureView | FeatureService) -> str:
    """SHA-256 of everything the definition says. A view counts the names and keys of its entities, not their texts."""
    match definition:
        case Entity():
            return sha256_of(entity_document(definition))
        case FeatureView():
            document = view_document(definition)
            document["entities"] = [
                {key: entity[key] for key in ("name", "join_keys")} for entity in document["entities"]
            ]
            return sha256_of(document)
        case FeatureService():
            return sha256_of(service_document(definition))


def service_signature(service: FeatureService, views: Mapping[str, FeatureView]) -> str:
    """SHA-256 of what models and clients bind to; `views` holds, by ref, at least the views the service pins."""
    return sha256_of(signature_document(service, views))


def signature_document(service: FeatureService, views: Mapping[str, FeatureView]) -> dict[str, Any]:
    """The signature in words: the document that `service_signature` hashes."""
    columns = []
    for selection in service.selections:
        view = views[f"{selection.view}@{selection.version}"]
        for selected in selection.fields:
            column = _column(view.fields[selected.field]) | {"name": selected.output, "view": view.ref}
            column["field"] = selected.field
            if selected.fill is not None:
                column["fill"] = encode_fill(selected.fill)
            if view.ttl is not None:
                column["ttl_us"] = timedelta_us(view.ttl)
            columns.append(column)
    return {"columns": columns, "request": [_column(field) for field in service.request_fields], "cast": CAST_RULE}


def _column(field: Field) -> dict[str, Any]:
    column: dict[str, Any] = {"name": field.name, "dtype": str(field.dtype)}
    if field.dtype == String and field.allowed_values is not None:
        column["allowed_values"] = list(field.allowed_values)
    return column
