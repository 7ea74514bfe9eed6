"""What `verify` finds: per view how many entities are equal, how many differ, in which way and for which cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EXAMPLES_MAX = 5

#: The ways in which an entity can differ, each with what it says.
MISSING, EXTRA, STALE, DIFFERENT, EVICTED = "missing", "extra", "stale", "different", "evicted early"
KINDS = {
    MISSING: "history has a row for this entity, the online store has none",
    EXTRA: "the online store has a row for this entity, history has none that is visible",
    STALE: "the online row is older than the projection",
    DIFFERENT: "the online row is not the projection's, though not older",
    EVICTED: "the online store let the row go before it had expired",
}

#: Why an entity differs, each with the way out.
LOST, EVICTION, DEFINITION, FOREIGN, CODEC = (
    "lost by the store",
    "evicted by the store",
    "other definition",
    "foreign write",
    "codec",
)
CAUSES = {
    LOST: "a write that was acknowledged is gone: a flush, a restart without persistence, an old backup",
    EVICTION: "the store gives up rows when memory is short: give it more, or a policy that evicts nothing",
    DEFINITION: "the row carries a schema that this registry does not know: two registries write one project",
    FOREIGN: "history never held this row: something else writes to the store",
    CODEC: "the bytes are no row of this codec: damaged, or written by another release",
}
HEAL = "materialize-incremental --publish-only --repair rewrites what differs"

#: Why rows are pending, which is no fault by itself.
LATE, DUE = "late arrival not yet published", "due since the last publish"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One entity that differs. `expected` and `online` tell the two rows' order keys, None where there is no row."""

    kind: str
    cause: str
    key: Mapping[str, object]
    expected: Mapping[str, object] | None = None
    online: Mapping[str, object] | None = None

    @property
    def says(self) -> str:
        """The difference in words."""
        return f"{KINDS[self.kind]} ({self.cause})"


@dataclass(kw_only=True)
class ViewParity:
    """The comparison of one view at (position, horizon_us) of its last publish; both None when never published."""

    view: str
    position: int | None = None
    horizon_us: int | None = None
    #: How many entities the projection has, and how many of them were compared (fewer in a sample).
    entities: int = 0
    compared: int = 0
    equal: int = 0
    #: Of the equal ones, entities whose expired row the store has let go.
    expired: int = 0
    #: History rows not published yet, by why; and how long the oldest of them has waited, at most.
    pending: Counter[str] = field(default_factory=Counter)
    pending_us: int = 0
    #: (kind, cause) of each entity that differs.
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)

    def add(self, kind: str, cause: str, count: int, examples: Sequence[Difference]) -> None:
        """Count entities that differ in one way, and keep a few as examples."""
        if count:
            self.faults[kind, cause] += count
            room = max(0, EXAMPLES_MAX - sum((e.kind, e.cause) == (kind, cause) for e in self.examples))
            self.examples += examples[:room]

    @property
    def counts(self) -> dict[str, int]:
        """How many entities differ, by kind."""
        return {kind: sum(count for (of, _), count in self.faults.items() if of == kind) for kind in KINDS}

    @property
    def causes(self) -> dict[str, dict[str, int]]:
        """How many entities differ, by kind and cause; only what was found."""
        found: dict[str, dict[str, int]] = {}
        for (kind, cause), count in sorted(self.faults.items()):
            found.setdefault(kind, {})[cause] = count
        return found
