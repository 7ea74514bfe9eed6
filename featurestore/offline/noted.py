"""Notes a written training set among the readers of its views, so that nobody removes them unaware."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import StoreError
from featurestore.registry.readers import record_reader
from featurestore.registry.state import StateStore

log = logging.getLogger(__name__)


def note_training_set(state: StateStore, path: Path, manifest: Mapping[str, Any]) -> None:
    """Note it by its content digest. The file is complete by now: a registry that is away costs a warning."""
    service, digest = manifest["service"], manifest["digest"]["sha256"]
    try:
        record_reader(
            state,
            "training set",
            digest,
            list(manifest["views"]),
            service=service["name"],
            signature=service["signature"],
            path=str(path.absolute()),
            digest=digest,
        )
    except StoreError as error:
        log.warning("training set %s is written, and not noted as a reader of its views: %s", path, error)
