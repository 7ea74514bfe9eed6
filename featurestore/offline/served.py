"""As-served knowledge: what the online store held at an instant, derived from the log of publishes.

After publish k the online store holds the projection at (position k, horizon k), so a row is served from the first
publish that covers both its position and its visibility. The number of that publish takes the place of `visible_from`,
and the number of the last publish acknowledged by `as_of` the place of `as_of`; the rules of time stay as they are.

A push brings rows online ahead of the publish that will cover them: those of its block of sequences that were visible
when it began. They are served from the push, or from the first publish that covers them, whichever is earlier.

Positions and horizons only grow, except where a repair set the horizon back. Such a repair begins a new stretch of the
log, in which it counts as the first publish of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP
from featurestore.compiler.names import FIRST, HORIZON, LAST, PUBLISH, UP_TO

if TYPE_CHECKING:
    from featurestore.registry.state import PublishRecord

Ints = NDArray[np.int64]
_PUBLISH_COLUMNS, _PUSH_COLUMNS = 4, 6


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Publishes `first` to `last` of a log, over which the projection only grew, as tables that SQL can join.

    `positions` and `horizons` have the columns `_up_to` (distinct) and `_publish`: the first publish that reaches so
    far, in positions and in horizons (timestamps). `pushes` has `_first`, `_last` (sequences), `_horizon` (timestamp)
    and `_publish`, no two of them overlapping.
    """

    first: int
    last: int
    positions: pa.Table
    horizons: pa.Table
    pushes: pa.Table


@dataclass(frozen=True, slots=True, eq=False)
class PublishLog:
    """The publishes and pushes of one view, in the order they were acknowledged; times in microseconds.

    A push has a `first_sequences` above 0, and no position; its horizon says what was visible to it.
    """

    positions: Ints
    horizons_us: Ints
    started_us: Ints
    acknowledged_us: Ints
    first_sequences: Ints
    last_sequences: Ints

    @classmethod
    def of(cls, publishes: Sequence[Sequence[int]]) -> PublishLog:
        """From (position, horizon, started, acknowledged) each; a push adds its first and its last sequence."""
        full = [(*publish, 0, 0) if len(publish) == _PUBLISH_COLUMNS else publish for publish in publishes]
        columns = np.array(full, dtype=np.int64).reshape(-1, _PUSH_COLUMNS).T
        return cls(*(np.ascontiguousarray(column) for column in columns))

    @classmethod
    def of_records(cls, records: Iterable[PublishRecord]) -> PublishLog:
        """From what the state store has logged."""
        return cls.of(
            [
                (
                    record.position_to,
                    record.horizon_to_us,
                    record.started_at_us,
                    record.acknowledged_at_us,
                    record.sequence_from or 0,
                    record.sequence_to or 0,
                )
                for record in records
            ]
        )

    def document(self) -> list[list[int]]:
        """What `of` takes, as JSON."""
        rows: list[list[int]] = np.stack(
            [
                self.positions,
                self.horizons_us,
                self.started_us,
                self.acknowledged_us,
                self.first_sequences,
                self.last_sequences,
            ],
            axis=1,
        ).tolist()
        return [row if row[_PUBLISH_COLUMNS] else row[:_PUBLISH_COLUMNS] for row in rows]

    def last_by(self, as_of_us: Ints) -> Ints:
        """The number of the last publish acknowledged by each instant; -1 before the first."""
        if len(self.acknowledged_us) == 0:
            return np.full(len(as_of_us), -1, dtype=np.int64)
        # A clock that was set back makes times fall; the last publish by then is what counts.
        settled = np.minimum.accumulate(self.acknowledged_us[::-1])[::-1]
        return np.searchsorted(settled, as_of_us, side="right").astype(np.int64) - 1

    def uncertain(self, as_of_us: Ints) -> NDArray[np.bool_]:
        """Whether a publish was under way, ends included: some of its rows were online, and nobody knows which."""
        begun = np.searchsorted(np.sort(self.started_us), as_of_us, side="right")
        done = np.searchsorted(np.sort(self.acknowledged_us), as_of_us, side="left")
        under_way: NDArray[np.bool_] = begun > done
        return under_way

    def stretches(self) -> Iterator[Stretch]:
        """The log, cut before each publish whose horizon or position fell."""
        pushed = self.first_sequences > 0
        publishes = np.flatnonzero(~pushed)
        fell = (np.diff(self.horizons_us[publishes]) < 0) | (np.diff(self.positions[publishes]) < 0)
        bounds = [0, *publishes[1:][fell].tolist(), len(self.positions)]
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            if end > first:
                inside = np.arange(first, end)
                covering = inside[~pushed[first:end]]
                yield Stretch(
                    first=first,
                    last=end - 1,
                    positions=_firsts(self.positions, covering, pa.int64()),
                    horizons=_firsts(self.horizons_us, covering, TIMESTAMP),
                    pushes=self._pushes(inside[pushed[first:end]]),
                )

    def _pushes(self, numbers: Ints) -> pa.Table:
        brought = numbers[self.last_sequences[numbers] >= self.first_sequences[numbers]]
        return pa.table(
            {
                FIRST: self.first_sequences[brought],
                LAST: self.last_sequences[brought],
                HORIZON: pa.array(self.horizons_us[brought]).cast(TIMESTAMP),
                PUBLISH: brought.astype(np.int64),
            }
        )


def _firsts(reached: Ints, numbers: Ints, kind: pa.DataType) -> pa.Table:
    """Each distinct value of a growing column, with the number of the first publish that has it."""
    values, places = np.unique(reached[numbers], return_index=True)
    return pa.table({UP_TO: pa.array(values).cast(kind), PUBLISH: numbers[places].astype(np.int64)})
