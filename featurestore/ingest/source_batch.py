"""Rows as a source gave them, with where each came from, so that a refused row can be found again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


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
        (value,) = _readable(self.column(name).slice(place, 1))
        return json.dumps(value, allow_nan=False)

    def values_text(self, names: Sequence[str], place: int) -> str:
        """Values of one row as JSON text: one as it is, several as an object."""
        if len(names) == 1:
            return self.value_text(names[0], place)
        return "{" + ", ".join(f"{json.dumps(name)}: {self.value_text(name, place)}" for name in names) + "}"

    def raw_json(self, places: NDArray[np.int64]) -> pa.Array:
        """The named rows as JSON texts that keep every value readable: bytes as hex, NaN and infinities as text."""
        names = self.rows.column_names
        columns = [_readable(column.take(pa.array(places)).combine_chunks()) for column in self.rows.columns]
        rows = (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
        return pa.array([json.dumps(row, allow_nan=False) for row in rows], pa.string())


def _readable(column: pa.Array) -> list[Any]:
    """Values as JSON knows them, those too that Python's own types cannot hold."""
    kind = _readable_type(column.type, text=_is_valid(column))
    return [_json_value(value) for value in column.cast(kind).to_pylist()]


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _readable_type(kind: pa.DataType, *, text: bool) -> pa.DataType:
    """The type in which every value can become a Python value: times as text, broken strings as bytes."""
    types = pa.types
    if types.is_dictionary(kind):
        return _readable_type(kind.value_type, text=text)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string() if text else pa.large_binary()
    if types.is_temporal(kind):
        return pa.string() if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind) else pa.int64()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.large_list(_readable_type(kind.value_type, text=text))
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _readable_type(f.type, text=text)) for f in kind])
    return kind


def _json_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else repr(value)
        case bytes():
            return value.hex()
        case dict():
            return {str(name): _json_value(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_json_value(inner) for inner in value]
        case _:
            return str(value)
