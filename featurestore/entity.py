"""The thing features describe, named by one or several typed join keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurestore.dtypes import DType
from featurestore.location import Location, definition_site


@dataclass(frozen=True, kw_only=True)
class Entity:
    """Something features are about: `Entity(name="route", join_keys={"origin": String, "dest": String})`.

    The order of `join_keys` is part of the identity of a row; it never changes once applied. `tier` is one of
    `labels.TIERS`; `links` maps names to http(s) addresses.
    """

    name: str
    join_keys: Mapping[str, DType]
    description: str = ""
    owner: str = ""
    tier: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)
