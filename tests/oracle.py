"""The rules of time (docs/semantics.md) as an obviously right double loop over Python rows. Times are microseconds.

Nothing here is fast or shared with the product: tests compare every engine, plan and store with these few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Keys = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of history. `created` repeats `event` where the source has none; `value` stands for all its fields."""

    keys: Keys
    event: int
    created: int
    value: Any
    sequence: int = 0
    position: int = 0


def order(row: Row) -> tuple[int, int, int]:
    """Rule 1: what orders the rows of one entity; the greater wins."""
    return (row.event, row.created, row.sequence)


def visible_from(row: Row, knowledge: str) -> int:
    """Rule 3: the instant from which the row may answer."""
    return row.event if knowledge == "event" else max(row.event, row.created)


def answer(rows: Iterable[Row], keys: Keys, as_of: int, *, position: int, knowledge: str = "created") -> Row | None:
    """Rules 2-4: the greatest visible row of the entity among those committed up to `position`, whole."""
    best = None
    for row in rows:
        if row.keys != keys or None in keys or row.position > position or visible_from(row, knowledge) > as_of:
            continue
        if best is None or order(row) > order(best):
            best = row
    return best


def status(row: Row | None, as_of: int, ttl: int | None, is_null: Callable[[Any], bool]) -> str:
    """Rules 5 and 8: the first status that holds."""
    if row is None:
        return "NOT_FOUND"
    if ttl is not None and as_of - row.event > ttl:
        return "EXPIRED"
    return "NULL" if is_null(row.value) else "PRESENT"


def projection(rows: Sequence[Row], position: int, horizon: int) -> dict[Keys, Row]:
    """Rule 7: what the online store holds at (P, T)."""
    found = {keys: answer(rows, keys, horizon, position=position) for keys in {row.keys for row in rows}}
    return {keys: row for keys, row in found.items() if row is not None}


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What became of one batch."""

    added: int = 0
    corrections: int = 0
    duplicates: int = 0
    ambiguous: int = 0


def arrive(
    history: Sequence[Row], batch: Sequence[Row], sequence: int, bits: Callable[[Any], bytes]
) -> tuple[list[Row], Arrived]:
    """Rule 6: (history after the batch, what was counted); the batch's sequences start at `sequence`.

    `bits` gives the canonical bytes of a value: they order the rows of a batch and tell equal values.
    """
    after, counts = list(history), Arrived()
    in_order = sorted(batch, key=lambda row: (row.keys, row.event, row.created, bits(row.value)))
    for place, row in enumerate(in_order):
        known = {bits(old.value) for old in history if _same_place(old, row)}
        twins = {bits(new.value) for new in in_order[:place] if _same_place(new, row)}
        added = bits(row.value) not in known | twins
        counts = Arrived(
            added=counts.added + added,
            corrections=counts.corrections + (added and bool(known)),
            duplicates=counts.duplicates + (not added),
            ambiguous=counts.ambiguous + (bool(twins) and bits(row.value) not in twins),
        )
        if added:
            after.append(replace(row, sequence=sequence + place, position=len(after) + 1))
    return after, counts


def _same_place(one: Row, other: Row) -> bool:
    return (one.keys, one.event, one.created) == (other.keys, other.event, other.created)


@dataclass(frozen=True, kw_only=True)
class Publish:
    """One publish of a view: the projection at (position, horizon) came online between two instants."""

    position: int
    horizon: int
    started: int
    acknowledged: int


def served(rows: Iterable[Row], keys: Keys, as_of: int, publishes: Sequence[Publish]) -> Row | None:
    """As served: the greatest row of the entity that a publish acknowledged by `as_of` had brought online."""
    best = None
    for row in rows:
        for publish in publishes:
            online = row.position <= publish.position and visible_from(row, "created") <= publish.horizon
            if row.keys != keys or None in keys or not online or publish.acknowledged > as_of:
                continue
            if best is None or order(row) > order(best):
                best = row
    return best


def uncertain(as_of: int, publishes: Iterable[Publish]) -> bool:
    """As served: whether a publish was on its way, so that either side of it may have answered."""
    return any(publish.started <= as_of <= publish.acknowledged for publish in publishes)
