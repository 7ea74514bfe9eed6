"""A feature service: what one model or client reads, from pinned view versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurestore.feature_view import FeatureView, ViewSelection
from featurestore.field import Field
from featurestore.location import Location, definition_site

ON_STALE = ("serve", "null", "fail")


@dataclass(frozen=True, kw_only=True)
class FeatureService:
    """An ordered choice of features, and of values that come with the request.

    `features` holds views (all their fields) and selections (`view[["a", "b"]].alias(a="x").fill(b=0.0)`).
    `request_fields` are taken from equally named spine columns in training and from the request in serving,
    through the same gate and cast. `on_stale`: what serving does with a STALE row. `tier` is one of
    `labels.TIERS`; `links` maps names to http(s) addresses.
    """

    name: str
    features: Sequence[FeatureView | ViewSelection]
    request_fields: Sequence[Field] = ()
    on_stale: str = "serve"
    owner: str = ""
    tier: str = ""
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(_selection(feature) for feature in self.features))
        object.__setattr__(self, "request_fields", tuple(self.request_fields))

    @property
    def selections(self) -> tuple[ViewSelection, ...]:
        """The chosen fields, one entry a view, in order."""
        return self.features  # type: ignore[return-value]  # __post_init__ made them so


def _selection(feature: FeatureView | ViewSelection) -> ViewSelection:
    return feature.select_all() if isinstance(feature, FeatureView) else feature
