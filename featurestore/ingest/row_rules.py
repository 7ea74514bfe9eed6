"""The rules of whole rows: event times not ahead of the clock, places of their own, references, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import MICROSECOND, duration_text
from featurestore.compiler.names import CREATED, EVENT
from featurestore.errors import DefinitionError, Problem
from featurestore.feature_view import FeatureView
from featurestore.ingest.breach import Breach, Mask
from featurestore.ingest.sequence import differing_twins

#: Which rows of join keys (never null) are entities of the view `name@version`.
KnownEntities = Callable[[str, pa.Table], Mask]


class RowRules:
    """What a view demands of whole rows, judged over canonical rows; costs nothing where it demands nothing."""

    def __init__(self, view: FeatureView, at_us: int, known: KnownEntities | None) -> None:
        """`at_us` is the clock's time; `known` is needed by views with references."""
        self._view, self._known = view, known
        self._limit_us = None if view.future_tolerance is None else at_us + view.future_tolerance // MICROSECOND
        times = view.source.timestamp_field, view.source.created_timestamp_column or view.source.timestamp_field
        self._shown = {EVENT: times[0], CREATED: times[1]}
        self._conditions = None
        if view.conditions:
            # An engine and a parser of SQL are loaded for views that need them.
            from featurestore.offline.conditions import Conditions

            with _applied(view):
                self._conditions = Conditions(view)

    def breaches(self, rows: pa.Table, unsound: Mask) -> Iterator[Breach]:
        """The breaches of canonical rows; rows marked `unsound`, whose values are not all there, are left out."""
        if self._limit_us is not None:
            yield self._ahead(rows, self._limit_us, unsound)
        if self._view.unique:
            yield self._twins(rows, unsound)
        yield from self._references(rows, unsound)
        if self._conditions is not None:
            with _applied(self._view):
                judged = self._conditions.broken(rows)
            for rule, broken in zip(self._view.conditions, judged, strict=True):
                yield Breach(
                    column=rule.name,
                    rule="condition",
                    says=f"{rule.name} does not hold: {rule.sql}",
                    rows=broken & ~unsound,
                    on_violation=rule.on_violation or self._view.on_violation,
                    shows=tuple(self._shown.get(name, name) for name in self._conditions.columns[rule.name]),
                )

    def _ahead(self, rows: pa.Table, limit_us: int, unsound: Mask) -> Breach:
        column, tolerance = self._shown[EVENT], self._view.future_tolerance
        ahead = pc.greater(rows.column(EVENT).combine_chunks().cast(pa.int64()), limit_us).fill_null(False)
        by = f"more than {duration_text(tolerance)} " if tolerance else ""
        return Breach(
            column=column,
            rule="future",
            says=f"{column} lies {by}ahead of the clock",
            rows=ahead.to_numpy(zero_copy_only=False) & ~unsound,
            on_violation=self._view.on_violation,
            shows=(column,),
        )

    def _twins(self, rows: pa.Table, unsound: Mask) -> Breach:
        keys = tuple(self._view.join_keys)
        broken = np.zeros(rows.num_rows, dtype=bool)
        broken[~unsound] = differing_twins(self._view, rows.filter(pa.array(~unsound)) if unsound.any() else rows)
        return Breach(
            column=", ".join(keys),
            rule="unique",
            says="another row of the batch has the same join keys and times, and other values",
            rows=broken,
            on_violation=self._view.on_violation,
            shows=(*keys, *dict.fromkeys(self._shown.values())),
        )

    def _references(self, rows: pa.Table, unsound: Mask) -> Iterator[Breach]:
        for rule in self._view.references:
            assert self._known is not None, "a view with references is checked with what is known of others"
            columns = list(rule.columns.values())
            asked = ~unsound
            for column in columns:
                asked = asked & rows.column(column).is_valid().to_numpy()
            broken = np.zeros(rows.num_rows, dtype=bool)
            if asked.any():
                keys = rows.select(columns).rename_columns(list(rule.columns)).filter(pa.array(asked))
                broken[asked] = ~self._known(rule.view, keys)
            yield Breach(
                column=", ".join(columns),
                rule="reference",
                says=f"{', '.join(columns)} is no entity of {rule.view}",
                rows=broken,
                on_violation=rule.on_violation or self._view.on_violation,
                shows=tuple(columns),
            )


@contextmanager
def _applied(view: FeatureView) -> Iterator[None]:
    """A condition that an earlier release took and this one refuses, as an error of the applied definition."""
    from featurestore.compiler.condition import ConditionFault

    try:
        yield
    except ConditionFault as fault:
        way_out = f"{fault.way_out}: correct it in the definitions, and run `featurestore apply`"
        raise DefinitionError([Problem(what=f"feature view {view.ref!r}: {fault.what}", way_out=way_out)]) from fault
