"""Rules that a feature view declares as a whole: conditions across fields, references, expected volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from featurestore.location import Location, definition_site

ON_VIOLATION = ("reject", "quarantine", "warn")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A SQL boolean over the fields, join keys, event_timestamp and created_timestamp of one row.

    `sql` is of the listed subset (docs/contracts.md). A row for which it is null keeps it, and so does one for which
    it cannot be computed (a division by zero, a number out of range). `on_violation` overrides the view's.
    """

    name: str
    sql: str
    on_violation: str | None = None
    description: str = ""
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Values that name an entity of another view: it must stand in that view's history when a row arrives.

    `columns` maps each join key of the other view to a field or join key of this one. `view` is the other view (then
    columns of the same names need no mapping) or its `name@version`. A row with a null among them keeps the rule.
    """

    view: Any
    columns: Mapping[str, str] = field(default_factory=dict)
    on_violation: str | None = None
    description: str = ""
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", {name: name for name in getattr(self.view, "join_keys", ())})
        object.__setattr__(self, "view", getattr(self.view, "ref", self.view))


@dataclass(frozen=True, kw_only=True)
class Volume:
    """How many rows of history are expected in each window of length `per`, by event time, counted from 1970.

    Judged over history (`validate`), not at the gate: the first and the last window, which may be cut short, can
    only be too full.
    """

    per: timedelta
    at_least: int | None = None
    at_most: int | None = None
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)
