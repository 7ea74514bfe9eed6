"""The registry as one JSON text, to be committed: `plan --check --against FILE` compares with it, without any access.

Canonical and fit for diffs: sorted, one value a line, nothing in it depends on when or where it was written. Each
definition stands beside its fingerprint, so that a text damaged by hand or by a merge is found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.entity import Entity
from featurestore.errors import InputError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.fingerprint import definition_fingerprint, sha256_of
from featurestore.registry.definitions import Definitions
from featurestore.registry.document import (
    Document,
    entity_document,
    entity_from,
    field_document,
    field_from,
    service_document,
    service_from,
    view_document,
    view_from,
)
from featurestore.registry.registry import Snapshot

FORMAT = "featurestore-registry/1"
KINDS = ("entities", "feature_views", "feature_services")
_AGAIN = "write it again with `featurestore registry export`"


def snapshot_text(snapshot: Snapshot, project: str) -> str:
    """All that is applied, as text that ends with a newline."""
    document = {"format": FORMAT, "project": project, **_objects(snapshot)}
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _objects(snapshot: Snapshot) -> dict[str, dict[str, Document]]:
    definitions = snapshot.definitions
    return {
        "entities": {name: _entry(entity, entity_document(entity)) for name, entity in definitions.entities.items()},
        "feature_views": {
            ref: _entry(view, view_document(view)) | _row_schemas(snapshot.row_schemas[ref])
            for ref, view in definitions.views.items()
        },
        "feature_services": {
            name: _entry(service, service_document(service)) | {"signature": snapshot.signatures[name]}
            for name, service in definitions.services.items()
        },
    }


def _entry(definition: Entity | FeatureView | FeatureService, document: Document) -> Document:
    return {"definition": definition_fingerprint(definition), "document": document}


def _row_schemas(schemas: Mapping[int, Sequence[Field]]) -> Document:
    documents = {str(schema_id): [field_document(field) for field in fields] for schema_id, fields in schemas.items()}
    return {"row_schemas": documents, "rows": sha256_of(documents)}


def read_snapshot(path: Path, project: str) -> Snapshot:
    """The snapshot in a file; InputError when it is damaged, of another project, or of a format not known here."""
    document = _read(path)
    found = document.get("format")
    if found != FORMAT:
        raise InputError(
            f"{path} is a snapshot of format {found!r}, this release reads {FORMAT!r}; {_AGAIN} of this release"
            if isinstance(found, str) and found.startswith("featurestore-registry/")
            else f"{path} is no snapshot of a registry; {_AGAIN}"
        )
    if document.get("project") != project:
        raise InputError(
            f"{path} is a snapshot of project {document.get('project')!r}, this is {project!r}; name the right file"
        )
    try:
        snapshot = _snapshot(document)
        faults = _faults(document, snapshot)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} holds something that this release cannot read ({type(error).__name__}: {error}); it is damaged, "
            f"or a newer featurestore wrote it: {_AGAIN}, or upgrade"
        ) from error
    if faults:
        raise InputError(f"{path} is damaged: {', '.join(faults)} is not as it was exported; {_AGAIN}")
    return snapshot


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unrepeated)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); write it with `featurestore registry export --out {path}`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, it is not JSON ({error}); {_AGAIN}") from error
    return document if isinstance(document, dict) else {}


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a name that stands there twice, as a merge that keeps both sides leaves it."""
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return document


def _snapshot(document: Mapping[str, Any]) -> Snapshot:
    entities, views, services = (document[kind] for kind in KINDS)
    definitions = Definitions(
        entities={name: entity_from(entry["document"]) for name, entry in entities.items()},
        views={ref: view_from(entry["document"]) for ref, entry in views.items()},
        services={name: service_from(entry["document"]) for name, entry in services.items()},
    )
    schemas = {ref: entry["row_schemas"].items() for ref, entry in views.items()}
    return Snapshot(
        revision=0,
        definitions=definitions,
        row_schemas={
            ref: {int(number): tuple(field_from(field) for field in fields) for number, fields in listed}
            for ref, listed in schemas.items()
        },
        signatures={name: str(entry["signature"]) for name, entry in services.items()},
    )


def _faults(document: Mapping[str, Any], snapshot: Snapshot) -> list[str]:
    """The objects that would be written otherwise than they stand there, stand under another name, or lack a view."""
    definitions = snapshot.definitions
    names = {
        "entities": {name: entity.name for name, entity in definitions.entities.items()},
        "feature_views": {ref: view.ref for ref, view in definitions.views.items()},
        "feature_services": {name: service.name for name, service in definitions.services.items()},
    }
    faults = [
        f"{kind}: {name}"
        for kind, objects in _objects(snapshot).items()
        for name, entry in objects.items()
        if names[kind][name] != name or document[kind][name] != entry
    ]
    pinned = {f"{chosen.view}@{chosen.version}" for one in definitions.services.values() for chosen in one.selections}
    return faults + [f"feature_views: {ref} (missing)" for ref in sorted(pinned - set(definitions.views))]
