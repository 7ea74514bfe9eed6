"""What the registry says, as lookup plans: one snapshot of one revision, so that nobody serves half an apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurestore.errors import NotFoundError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.outputs import pinned_views, service_of
from featurestore.registry.registry import Snapshot
from serving.plan import ServicePlan, compile_plan


class RegistryReader(Protocol):
    """The part of the registry that is read here."""

    def revision(self) -> int:
        """Grows with every apply."""
        ...

    def snapshot(self) -> Snapshot:
        """All that is applied, of one revision."""
        ...


@dataclass(frozen=True)
class Catalog:
    """Plans over one snapshot of the registry."""

    snapshot: Snapshot

    @property
    def revision(self) -> int:
        """The revision it was read at."""
        return self.snapshot.revision

    @property
    def views(self) -> Mapping[str, FeatureView]:
        """Every view by name@version."""
        return self.snapshot.definitions.views

    @property
    def services(self) -> Mapping[str, FeatureService]:
        """Every service by name."""
        return self.snapshot.definitions.services

    @property
    def served_views(self) -> Mapping[str, FeatureView]:
        """The views that some service reads, by name@version."""
        pinned = (pinned_views(service, self.views) for service in self.services.values())
        return {ref: view for views in pinned for ref, view in views.items()}

    def plan(self, service: str, *, full_feature_names: bool = False) -> ServicePlan:
        """Compile the plan of a service; NotFoundError lists the services there are."""
        if service not in self.services:
            raise NotFoundError("feature service", service, self.services)
        return self._compiled(self.services[service], full_feature_names)

    def plan_of(self, features: Sequence[str], *, full_feature_names: bool = False) -> ServicePlan:
        """Compile the plan of features named one by one, as `view:field` or `view@version:field`."""
        return self._compiled(service_of(features, self.views), full_feature_names)

    def _compiled(self, service: FeatureService, full_feature_names: bool) -> ServicePlan:
        return compile_plan(service, self.views, self.snapshot.row_schemas, full_feature_names=full_feature_names)
