"""Rows as a source gave them, with where each came from, so that a refused row can be found again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.ingest.raw_rows import json_values


@dataclass(frozen=True, kw_only=True, slots=True)
class RowWindow:
    """Which source rows a load is about; times are microseconds since the epoch, None leaves a side open.

    Event times in [start_us, end_us), and of these the rows that became known after `created_after_us` or whose event
    time an earlier load did not reach (`unread_from_us`).
    """

    start_us: int | None = None
    end_us: int | None = None
    created_after_us: int | None = None
    unread_from_us: int | None = None

    @property
    def unbounded(self) -> bool:
        """Whether every row lies inside."""
        return self == RowWindow()

    def holds(self, events: pa.Array, created: pa.Array | None) -> NDArray[np.bool_]:
        """Which rows lie inside; one without its times does, since only the gate may refuse it."""
        inside = np.ones(len(events), dtype=bool)
        if self.start_us is not None:
            inside &= _at_least(events, self.start_us)
        if self.end_us is not None:
            inside &= ~_at_least(events, self.end_us) | _missing(events)
        if self.created_after_us is not None and created is not None:
            recent = _at_least(created, self.created_after_us + 1)
            if self.unread_from_us is not None:
                recent |= _at_least(events, self.unread_from_us)
            inside &= recent
        return inside


def _at_least(times: pa.Array, bound_us: int) -> NDArray[np.bool_]:
    """Times from `bound_us` on, and missing ones."""
    return pc.greater_equal(times.cast(pa.int64()), bound_us).fill_null(True).to_numpy(zero_copy_only=False)


def _missing(times: pa.Array) -> NDArray[np.bool_]:
    return times.is_null().to_numpy(zero_copy_only=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceBatch:
    """A batch of source rows: `source` says where from, `row_numbers` which rows there (0-based); `text`: from CSV."""

    rows: pa.Table
    source: str
    row_numbers: NDArray[np.int64]
    text: bool = False

    def column(self, name: str) -> pa.Array:
        """A column in one piece."""
        return self.rows.column(name).combine_chunks()

    def filtered(self, keep: NDArray[np.bool_]) -> SourceBatch:
        """The rows marked in `keep`."""
        return replace(self, rows=self.rows.filter(pa.array(keep)), row_numbers=self.row_numbers[keep])

    def value_text(self, name: str, place: int) -> str:
        """One value as JSON text."""
        # Cut out first: a column in one piece is a copy of it.
        (value,) = json_values(self.rows.column(name).slice(place, 1).combine_chunks())
        return json.dumps(value, allow_nan=False)

    def values_text(self, names: Sequence[str], place: int) -> str:
        """Values of one row as JSON text: one as it is, several as an object."""
        if len(names) == 1:
            return self.value_text(names[0], place)
        return "{" + ", ".join(f"{json.dumps(name)}: {self.value_text(name, place)}" for name in names) + "}"
