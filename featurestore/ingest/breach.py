"""A breach: the rows of a batch that break one rule, and what the contract wants done about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Breach:
    """Rows that break one rule; `structural` rows cannot be stored whatever the view says."""

    #: The field, key or time, the condition's name, or the columns that are judged together.
    column: str
    rule: str
    says: str
    rows: Mask
    on_violation: str
    structural: bool = False
    #: The source columns whose values show the breach.
    shows: tuple[str, ...]

    @property
    def refuses(self) -> bool:
        """Whether its rows are not kept."""
        return self.structural or self.on_violation != "warn"


def count_by_rule(breaches: Sequence[Breach]) -> dict[str, int]:
    """ "column:rule" -> rows that break it, or one of several of that name, as references of one column are."""
    broken: dict[str, Mask] = {}
    for breach in breaches:
        name = f"{breach.column}:{breach.rule}"
        broken[name] = broken[name] | breach.rows if name in broken else breach.rows
    return {name: int(np.count_nonzero(rows)) for name, rows in broken.items()}


def first_breaches(breaches: Sequence[Breach], count: int) -> tuple[Mask, NDArray[np.int64]]:
    """(rows with a breach, index of the first breach of each)."""
    first = np.full(count, -1, dtype=np.int64)
    for index, breach in enumerate(breaches):
        first[(first < 0) & breach.rows] = index
    return first >= 0, first
