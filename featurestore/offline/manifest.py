"""The manifest of a training set: everything needed to build it again, and to tell whether it came out the same.

The definitions are recorded whole, so that a rebuild does not depend on today's; the positions pin history, which is
append-only, so that the same rows come out for ever.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import featurestore
from featurestore.digest import VERSION as DIGEST_VERSION
from featurestore.digest import content_digest, type_text
from featurestore.errors import InputError
from featurestore.feature_view import FeatureView
from featurestore.fingerprint import definition_fingerprint, service_signature
from featurestore.offline.served import PublishLog
from featurestore.offline.spine import Spine
from featurestore.offline.training_set import TrainingSetQuery
from featurestore.outputs import Output, pinned_views
from featurestore.registry.document import service_document, service_from, view_document, view_from

FORMAT = "featurestore-manifest/1"
#: What a rebuild reads.
PARTS = (
    "project",
    "made_at",
    "service",
    "views",
    "knowledge",
    "full_feature_names",
    "with_status",
    "spine",
    "columns",
    "rows",
    "digest",
    "file",
)


def make_manifest(
    query: TrainingSetQuery,
    spine: Spine,
    table: pa.Table,
    outputs: tuple[Output, ...],
    engine: str,
    *,
    made_at: str,
    as_of: str | None,
) -> dict[str, Any]:
    """The manifest of a table that was just built."""
    views = pinned_views(query.service, query.views)
    return {
        "format": FORMAT,
        "project": query.project,
        "made_at": made_at,
        "service": {
            "name": query.service.name,
            "definition": definition_fingerprint(query.service),
            "signature": service_signature(query.service, query.views),
            "document": service_document(query.service),
        },
        "views": {ref: _view(view, query.positions[ref]) for ref, view in views.items()},
        "knowledge": query.knowledge,
        "publishes": {ref: log.document() for ref, log in query.publishes.items()},
        "full_feature_names": query.full_feature_names,
        "with_status": query.with_status,
        "spine": {
            "path": spine.path,
            "as_of": as_of,
            "as_of_column": spine.as_of_column,
            "rows": spine.rows,
            "columns": spine.table.column_names,
            "digest": content_digest(spine.table),
        },
        "features": [{"name": output.name, "view": output.view, "field": output.field.name} for output in outputs],
        "columns": [{"name": field.name, "type": type_text(field.name, field.type)} for field in table.schema],
        "rows": table.num_rows,
        "digest": {"version": DIGEST_VERSION, "sha256": content_digest(table)},
        "engines": {
            "featurestore": featurestore.__version__,
            "offline": engine,
            "pyarrow": pa.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest from its file; InputError when it is none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"there is no manifest {path}; it lies beside its training set as NAME.manifest.json"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a manifest: {error}; name the NAME.manifest.json of a training set") from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; name the NAME.manifest.json of a training set"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a manifest of the form {FORMAT}; name the NAME.manifest.json of a training set"
        )
    needed = (*PARTS, "publishes") if manifest.get("knowledge") == "as_served" else PARTS
    missing = [part for part in needed if part not in manifest]
    if missing:
        raise InputError(f"the manifest {path} lacks {', '.join(missing)}; take the one that was written")
    return manifest


def recorded_query(manifest: Mapping[str, Any]) -> TrainingSetQuery:
    """The query a manifest records, from its own definitions and positions."""
    return TrainingSetQuery(
        project=manifest["project"],
        service=service_from(manifest["service"]["document"]),
        views={ref: view_from(view["document"]) for ref, view in manifest["views"].items()},
        positions={ref: view["position"] for ref, view in manifest["views"].items()},
        knowledge=manifest["knowledge"],
        full_feature_names=manifest["full_feature_names"],
        with_status=manifest["with_status"],
        publishes={ref: PublishLog.of(log) for ref, log in manifest.get("publishes", {}).items()},
    )


def differences(manifest: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[str]:
    """What a rebuilt training set has otherwise than recorded, in words; empty when it came out the same."""
    found = []
    if manifest["spine"]["digest"] != rebuilt["spine"]["digest"]:
        found.append("the spine holds other rows than when the training set was made")
    if manifest["rows"] != rebuilt["rows"]:
        found.append(f"{manifest['rows']} rows were recorded, {rebuilt['rows']} came out")
    if manifest["columns"] != rebuilt["columns"]:
        found.append("the columns or their types differ")
    if manifest["digest"]["version"] != rebuilt["digest"]["version"]:
        found.append(f"the digest was made as {manifest['digest']['version']}, this version makes {DIGEST_VERSION}")
    elif manifest["digest"]["sha256"] != rebuilt["digest"]["sha256"]:
        found.append("the content differs")
    return found


def _view(view: FeatureView, position: int) -> dict[str, Any]:
    return {"definition": definition_fingerprint(view), "position": position, "document": view_document(view)}
