"""The answer to one lookup: columns in the service's order, and a verdict per view and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP
from featurestore.matrix import to_matrix
from featurestore.online.decoded_columns import DecodedColumns
from featurestore.online.order_keys import OrderKeys
from featurestore.status import Status
from serving.plan import ServicePlan

_STATUS_NAMES = pa.array([status.name for status in Status])


@dataclass(slots=True, kw_only=True, eq=False)
class ViewVerdicts:
    """One status per row for one view; `event_us` is 0 where the row was not found.

    `stored` orders the rows of all requests that were answered together, of which these begin at `first`.
    """

    ref: str
    statuses: NDArray[np.uint8]
    reasons: NDArray[np.uint8]
    event_us: NDArray[np.int64]
    stored: OrderKeys
    first: int = 0

    def part(self, first: int, last: int) -> ViewVerdicts:
        """Those of the rows from `first` on, before `last`."""
        return ViewVerdicts(
            ref=self.ref,
            statuses=self.statuses[first:last],
            reasons=self.reasons[first:last],
            event_us=self.event_us[first:last],
            stored=self.stored,
            first=self.first + first,
        )

    @property
    def order(self) -> OrderKeys:
        """What orders the stored rows; zeros where the row was not found."""
        return self.stored.part(slice(self.first, self.first + len(self.statuses)))

    def status_names(self) -> pa.Array:
        """The statuses as text."""
        return _STATUS_NAMES.take(pa.array(self.statuses))

    def event_timestamps(self) -> pa.Array:
        """When the row of each key was true; null where there is none."""
        absent = self.statuses == Status.NOT_FOUND
        return pa.array(self.event_us, mask=absent).cast(TIMESTAMP)


@dataclass(kw_only=True, eq=False)
class OnlineResponse:
    """What a service answers for some entities, at `served_at_us`.

    `decoded` are the columns of each view of the plan; values of EXPIRED and NOT_FOUND rows are null. `degraded_rows`
    counts the rows that are STALE in at least one view.
    """

    plan: ServicePlan
    keys: Mapping[str, pa.Array]
    request: Mapping[str, pa.Array]
    decoded: Sequence[DecodedColumns]
    views: tuple[ViewVerdicts, ...]
    rows: int
    served_at_us: int
    degraded_rows: int

    @cached_property
    def columns(self) -> tuple[pa.Array, ...]:
        """The columns in the order of `plan.outputs`, in canonical Arrow types."""
        return tuple(self._in_order([decoded.arrays for decoded in self.decoded]))

    def column(self, place: int) -> pa.Array:
        """One of them."""
        found = self.plan.places[place]
        if found is None:
            return self.request[self.plan.outputs[place].name]
        view, position = found
        return self.decoded[view].array(position)

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        return [output.name for output in self.plan.outputs]

    @property
    def statuses(self) -> dict[str, NDArray[np.uint8]]:
        """name@version -> the number of a Status per row."""
        return {view.ref: view.statuses for view in self.views}

    @property
    def event_timestamps(self) -> dict[str, pa.Array]:
        """name@version -> when the row of each key was true; null where there is none."""
        return {view.ref: view.event_timestamps() for view in self.views}

    def to_arrow(self, *, keys: bool = False, statuses: bool = False) -> pa.Table:
        """The columns as a table; on demand after the keys, and followed by `<view>__status` as text."""
        columns = dict(self.keys) if keys else {}
        columns |= zip(self.names, self.columns, strict=True)
        if statuses:
            columns |= {f"{label}__status": view.status_names() for label, view in self._labelled()}
        return pa.table(list(columns.values()), names=list(columns))

    def to_matrix(self) -> NDArray[np.float32]:
        """The columns as one float32 matrix, a row per key, by the rule that training uses."""
        columns = self._in_order([decoded.for_matrix() for decoded in self.decoded])
        return to_matrix(self.plan.matrix, columns)

    def to_dict(self, *, statuses: bool = False, event_timestamps: bool = False) -> dict[str, list[object]]:
        """Name -> Python values, keys first, as Feast gives it; for people and scripts, since it touches each value."""
        columns = dict(self.keys) | dict(zip(self.names, self.columns, strict=True))
        answer = {name: column.to_pylist() for name, column in columns.items()}
        for label, view in self._labelled():
            if statuses:
                answer[f"{label}__status"] = view.status_names().to_pylist()
            if event_timestamps:
                answer[f"{label}__event_timestamp"] = view.event_timestamps().to_pylist()
        return answer

    def _in_order(self, columns: Sequence[Sequence[Any]]) -> list[Any]:
        """The columns of all views, and the request's, in the order of the plan's outputs."""
        return [
            self.request[output.name] if place is None else columns[place[0]][place[1]]
            for output, place in zip(self.plan.outputs, self.plan.places, strict=True)
        ]

    def _labelled(self) -> list[tuple[str, ViewVerdicts]]:
        """A label per view: its name, or name@version where the service reads two versions of it."""
        names = [plan.name for plan in self.plan.views]
        return [
            (plan.name if names.count(plan.name) == 1 else plan.ref, view)
            for plan, view in zip(self.plan.views, self.views, strict=True)
        ]
