"""A feature view: features of an entity over time, from one source, under one contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from featurestore.dtypes import DType
from featurestore.entity import Entity
from featurestore.field import Field
from featurestore.location import Location, definition_site
from featurestore.source import Source
from featurestore.view_rules import Condition, Reference, Volume


@dataclass(frozen=True, kw_only=True)
class SelectedField:
    """A field a service asks for, the name it gets there, and what stands in the matrix for a missing value."""

    field: str
    alias: str | None = None
    fill: float | None = None

    @property
    def output(self) -> str:
        """The column's name in training sets and replies."""
        return self.alias or self.field


@dataclass(frozen=True, kw_only=True)
class ViewSelection:
    """Chosen fields of one pinned view version, in order."""

    view: str
    version: int
    fields: tuple[SelectedField, ...]
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)

    def alias(self, **names: str) -> ViewSelection:
        """Rename fields in the service: `view[["delay"]].alias(delay="prev_delay")`."""
        return self._changed({name: {"alias": alias} for name, alias in names.items()})

    def fill(self, **fills: float) -> ViewSelection:
        """Put a number in the matrix where the value is null, not found or expired (NaN otherwise)."""
        return self._changed({name: {"fill": float(value)} for name, value in fills.items()})

    def _changed(self, changes: Mapping[str, Mapping[str, object]]) -> ViewSelection:
        known = {selected.field for selected in self.fields}
        for name in changes:
            if name not in known:
                raise ValueError(f"{self.view} selects no field {name!r}; selected: {', '.join(sorted(known))}")
        fields = tuple(replace(selected, **changes.get(selected.field, {})) for selected in self.fields)  # type: ignore[arg-type]
        return replace(self, fields=fields)


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """Features of the entities in `entities`, read from `source`; each (name, version) has a history of its own.

    `ttl`: a value older than this is EXPIRED; None never expires. `freshness`: how far the newest published
    event may lag behind the clock before rows are STALE; None promises nothing. `on_violation`: what happens
    to rows that break the contract: "reject" the batch, "quarantine" the rows, or "warn" and keep them.
    `tier` is one of `labels.TIERS`; `links` maps names to http(s) addresses.

    Rules of whole rows: `conditions`; `references` to entities of other views; `unique`: no two rows of a batch share
    join keys and times but differ in values; `future_tolerance`: how far an event time may lie ahead of the clock.
    Expectations of the history as a whole, which `validate` judges: `volume`, and `largest_gap` between an event time
    and the next one of the view. `max_breach_share`: a run in which a greater share of rows breaks the contract stops
    before anything is published.
    """

    name: str
    entities: Sequence[Entity]
    schema: Sequence[Field]
    source: Source
    ttl: timedelta | None = None
    freshness: timedelta | None = None
    owner: str = ""
    tier: str = ""
    version: int = 1
    on_violation: str = "reject"
    conditions: Sequence[Condition] = ()
    references: Sequence[Reference] = ()
    unique: bool = False
    future_tolerance: timedelta | None = None
    volume: Volume | None = None
    largest_gap: timedelta | None = None
    max_breach_share: float | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entities", tuple(self.entities))
        object.__setattr__(self, "schema", tuple(self.schema))
        object.__setattr__(self, "conditions", tuple(self.conditions))
        object.__setattr__(self, "references", tuple(self.references))

    @property
    def ref(self) -> str:
        """`name@version`, the identity of its history."""
        return f"{self.name}@{self.version}"

    @property
    def join_keys(self) -> dict[str, DType]:
        """Name -> type of the join keys of all entities, in declared order."""
        return {name: dtype for entity in self.entities for name, dtype in entity.join_keys.items()}

    @property
    def fields(self) -> dict[str, Field]:
        """The fields by name, in declared order."""
        return {declared.name: declared for declared in self.schema}

    @property
    def has_created(self) -> bool:
        """Whether the source says when a row became known."""
        return self.source.created_timestamp_column is not None

    def __getitem__(self, names: str | Sequence[str]) -> ViewSelection:
        """Choose fields for a service: `view[["temp", "wind"]]`."""
        chosen = (names,) if isinstance(names, str) else tuple(names)
        return ViewSelection(
            view=self.name, version=self.version, fields=tuple(SelectedField(field=name) for name in chosen)
        )

    def select_all(self) -> ViewSelection:
        """Every field, as declared now."""
        return self[[declared.name for declared in self.schema]]
