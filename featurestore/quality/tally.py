"""Counts, over streamed history rows, of how many rows break each rule of a view; a few of them as examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.compiler.names import EVENT
from featurestore.feature_view import FeatureView
from featurestore.quality.forms import Expected, expected_of

#: Rows shown of those that break a rule: the first that were met.
EXAMPLES_MAX = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A row that breaks a rule: its join keys and event time, and the value of the rule's column."""

    key: dict[str, Any]
    event_timestamp: Any
    value: Any

    def __str__(self) -> str:
        key = ", ".join(f"{name}={value}" for name, value in self.key.items())
        return f"{self.value} ({key}, {EVENT}={self.event_timestamp})"


@dataclass(kw_only=True, slots=True)
class Tally:
    """What was counted for one rule; `nulls` are null values of its column, which keep every rule but not_null."""

    expected: Expected
    rows: int = 0
    nulls: int = 0
    breaches: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch, keys: tuple[str, ...]) -> None:
        """Count a batch of history rows."""
        column = batch.column(self.expected.column)
        broken = self.expected.rule.breaches(column)
        count = int(np.count_nonzero(broken))
        self.rows += batch.num_rows
        self.nulls += column.null_count
        self.breaches += count
        missing = EXAMPLES_MAX - len(self.examples)
        if count and missing:
            places = pa.array(np.flatnonzero(broken)[:missing])
            values = column.take(places).to_pylist()
            rows = batch.select([*keys, EVENT]).take(places).to_pylist()
            self.examples += [
                Example(event_timestamp=row.pop(EVENT), key=row, value=value)
                for row, value in zip(rows, values, strict=True)
            ]


def tally(view: FeatureView, batches: Iterable[pa.RecordBatch]) -> list[Tally]:
    """Each rule of the view counted over all batches."""
    tallies = [Tally(expected=expected) for expected in expected_of(view)]
    keys = tuple(view.join_keys)
    for batch in batches:
        for one in tallies:
            one.add(batch, keys)
    return tallies
