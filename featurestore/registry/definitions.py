"""A set of definitions that belong together: what a repository declares, or what the registry has applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featurestore.entity import Entity
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.fingerprint import sha256_of
from featurestore.registry.document import (
    Document,
    entity_document,
    entity_from,
    service_document,
    service_from,
    view_document,
    view_from,
)


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Entities and services by name, feature views by ref (`name@version`)."""

    entities: Mapping[str, Entity] = field(default_factory=dict)
    views: Mapping[str, FeatureView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)

    def documents(self) -> dict[str, dict[str, Document]]:
        """Kind -> name -> document."""
        return {
            "entity": {name: entity_document(entity) for name, entity in sorted(self.entities.items())},
            "view": {ref: view_document(view) for ref, view in sorted(self.views.items())},
            "service": {name: service_document(service) for name, service in sorted(self.services.items())},
        }

    @staticmethod
    def from_documents(documents: Mapping[str, Mapping[str, Any]]) -> Definitions:
        """The definitions of `documents()`."""
        return Definitions(
            entities={name: entity_from(document) for name, document in documents.get("entity", {}).items()},
            views={ref: view_from(document) for ref, document in documents.get("view", {}).items()},
            services={name: service_from(document) for name, document in documents.get("service", {}).items()},
        )

    def fingerprint(self) -> str:
        """SHA-256 of all documents."""
        return sha256_of(self.documents())
