"""Counts, over streamed history rows, of how many rows break each rule of a view; a few of them as examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.compiler.names import CREATED, EVENT
from featurestore.feature_view import FeatureView
from featurestore.ingest.breach import Breach, Mask
from featurestore.ingest.row_rules import KnownEntities, RowRules
from featurestore.offline.base import history_schema
from featurestore.quality.forms import Expected, column_rules, row_form

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

    def add(self, rows: pa.Table, broken: Mask, keys: tuple[str, ...], nulls: int = 0) -> None:
        """Count a batch of history rows, of which those marked in `broken` break the rule."""
        count = int(np.count_nonzero(broken))
        self.rows += rows.num_rows
        self.nulls += nulls
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


def tally(view: FeatureView, batches: Iterable[pa.RecordBatch], at_us: int, known: KnownEntities) -> list[Tally]:
    """Each rule of the view's rows, counted over all batches; `at_us` is now, `known` knows the entities of views."""
    of_columns = [(Tally(expected=expected), rule) for expected, rule in column_rules(view)]
    row_rules = RowRules(_as_source(view), at_us, known)
    of_rows = [_row_tally(breach) for breach in _breaches(row_rules, history_schema(view).empty_table())]
    keys = tuple(view.join_keys)
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        for one, rule in of_columns:
            column = batch.column(one.expected.column)
            one.add(rows, rule.breaches(column), keys, column.null_count)
        if of_rows:
            for one, breach in zip(of_rows, _breaches(row_rules, rows), strict=True):
                one.add(rows, breach.rows, keys)
    return [*(one for one, _ in of_columns), *of_rows]


def _as_source(view: FeatureView) -> FeatureView:
    """The view as if history were its source: its columns have the names of history.

    Places of their own are asked of a batch of a source; history holds corrections beside what they correct.
    """
    created = CREATED if view.has_created else None
    source = replace(view.source, timestamp_field=EVENT, created_timestamp_column=created)
    return replace(view, source=source, unique=False)


def _breaches(row_rules: RowRules, rows: pa.Table) -> Iterator[Breach]:
    return row_rules.breaches(rows, np.zeros(rows.num_rows, dtype=bool))


def _row_tally(breach: Breach) -> Tally:
    return Tally(
        expected=Expected(
            column=breach.column,
            rule=breach.rule,
            says=breach.says,
            form=row_form(breach.rule),
            on_violation=breach.on_violation,
            shows=breach.shows,
        )
    )
