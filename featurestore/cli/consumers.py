"""Who would notice if an object went, for `describe`: applied services, and readers that were seen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from featurestore.cli.output import instant
from featurestore.cli.repository import Repository
from featurestore.feature_service import FeatureService
from featurestore.registry.readers import Reader, list_readers

Row = dict[str, Any]


def consumers_of_views(repository: Repository, refs: Collection[str]) -> list[Row]:
    """Everybody who reads one of these views: applied services, views that refer to it, readers, the latest first."""
    services = [
        service
        for service in repository.registry.services().values()
        if any(f"{chosen.view}@{chosen.version}" in refs for chosen in service.selections)
    ]
    referring = [
        {"kind": "reference of view", "name": ref, "owner": view.owner or None, "tier": view.tier or None}
        for ref, view in repository.registry.views().items()
        if any(rule.view in refs for rule in view.references)
    ]
    seen = [reader for reader in _seen(repository) if not set(reader.views).isdisjoint(refs)]
    return [*_services(services, seen), *referring, *_readers(services, seen)]


def consumers_of_service(repository: Repository, name: str) -> list[Row]:
    """Everybody who was seen reading by this service."""
    return _readers([], [seen for seen in _seen(repository) if seen.service == name])


def _seen(repository: Repository) -> list[Reader]:
    return list_readers(repository.state)


def _services(services: list[FeatureService], seen: list[Reader]) -> list[Row]:
    """Applied services, and when each was last served."""
    served = {reader.name: reader.seen_at_us for reader in seen if reader.kind == "service"}
    return [
        {
            "kind": "feature service",
            "name": service.name,
            "owner": service.owner or None,
            "tier": service.tier or None,
            "seen_at": _second(served.get(service.name)),
        }
        for service in services
    ]


def _readers(services: list[FeatureService], seen: list[Reader]) -> list[Row]:
    """Readers that are not told as one of the services."""
    told = {service.name for service in services}
    return [
        {
            "kind": _KINDS.get(reader.kind, reader.kind),
            "name": reader.name,
            "service": reader.service or None,
            "signature": reader.signature or None,
            "path": reader.path or None,
            "digest": reader.digest or None,
            "seen_at": _second(reader.seen_at_us),
        }
        for reader in seen
        if reader.kind != "service" or reader.name not in told
    ]


def _second(us: int | None) -> str | None:
    return instant(None if us is None else us - us % 1_000_000)


_KINDS = {"service": "serving", "features": "requests for features"}
