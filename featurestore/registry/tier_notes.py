"""What `plan` says of tiers: services that promise more than the views they read."""

from __future__ import annotations

from featurestore.labels import TIERS
from featurestore.registry.definitions import Definitions


def tier_notes(definitions: Definitions) -> tuple[str, ...]:
    """One text for each service with a tier that reads views of a lesser one; what has no tier promises nothing."""
    notes = []
    for name, service in sorted(definitions.services.items()):
        if not service.tier:
            continue
        refs = dict.fromkeys(f"{chosen.view}@{chosen.version}" for chosen in service.selections)
        promised = TIERS.index(service.tier)
        lesser = [
            f"{ref} ({tier})" for ref in refs if (tier := definitions.views[ref].tier) and TIERS.index(tier) > promised
        ]
        if lesser:
            notes.append(
                f"feature service {name} is {service.tier} and reads views that promise less: {', '.join(lesser)}"
            )
    return tuple(notes)
