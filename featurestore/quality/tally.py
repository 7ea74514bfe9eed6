"""Counts, over streamed history rows, of how many rows break each rule of a view; a few of them as examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.compiler.names import EVENT
from featurestore.feature_view import FeatureView
from featurestore.quality.forms import Expected, column_rules

#: Rows shown of those that break a rule: the first that were met.
EXAMPLES_MAX = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What breaks a rule: the join keys and event time of a row, and the values that show it."""

    key: dict[str, Any]
    event_timestamp: Any
    values: dict[str, Any]

    def __str__(self) -> str:
        place = ", ".join(f"{name}={value}" for name, value in {**self.key, EVENT: self.event_timestamp}.items())
        return f"{', '.join(f'{name}={value}' for name, value in self.values.items())} (at {place})"


@dataclass(kw_only=True, slots=True)
class Tally:
    """What was counted for one rule; `nulls` are null values of its column, which keep every rule but not_null."""

    expected: Expected
    rows: int = 0
    nulls: int = 0
    breaches: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, rows: pa.RecordBatch, broken: NDArray[np.bool_], keys: tuple[str, ...]) -> None:
        """Count a batch of history rows, of which those marked in `broken` break the rule."""
        count = int(np.count_nonzero(broken))
        self.rows += rows.num_rows
        self.nulls += rows.column(self.expected.column).null_count if len(self.expected.shows) == 1 else 0
        self.breaches += count
        if missing := min(count, EXAMPLES_MAX - len(self.examples)):
            chosen = rows.select(list(dict.fromkeys((*keys, EVENT, *self.expected.shows))))
            shown = chosen.take(pa.array(np.flatnonzero(broken)[:missing]))
            self.examples += [
                Example(
                    key={name: row[name] for name in keys},
                    event_timestamp=row[EVENT],
                    values={name: row[name] for name in self.expected.shows},
                )
                for row in shown.to_pylist()
            ]


def tally(view: FeatureView, batches: Iterable[pa.RecordBatch]) -> list[Tally]:
    """Each rule of the view's rows, counted over all batches."""
    of_columns = [(Tally(expected=expected), rule) for expected, rule in column_rules(view)]
    keys = tuple(view.join_keys)
    for batch in batches:
        for one, rule in of_columns:
            one.add(batch, rule.breaches(batch.column(one.expected.column)), keys)
    return [one for one, _ in of_columns]
