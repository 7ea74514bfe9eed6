"""The spine: the rows that ask, each with its `as_of`. Read, checked, and never reordered, dropped or multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.clock import to_us
from featurestore.compiler.names import AS_OF, EVENT, ROW
from featurestore.dtypes import DType, Timestamp
from featurestore.errors import InputError, SourceError, suggest
from featurestore.ingest.canonical import Reading, convert
from featurestore.offline.frames import frame_to_table, is_frame
from featurestore.offline.sources import read_table, read_tables

AS_OF_COLUMNS = ("as_of", EVENT)


@dataclass(frozen=True, kw_only=True)
class Spine:
    """Rows that ask. `table` is as the caller gave it; `keys` are its join keys in canonical types."""

    table: pa.Table
    as_of_column: str
    as_of_us: NDArray[np.int64]
    keys: Mapping[str, pa.Array]
    path: str | None = None

    @property
    def rows(self) -> int:
        """How many rows ask."""
        return int(self.table.num_rows)

    def asking(self, join_keys: Mapping[str, DType], as_of: pa.Array | None = None) -> pa.Table:
        """(_row, join keys, _as_of) of the rows whose join keys are all there, in the types of one view.

        `as_of` takes the place of the times; a row where it is null does not ask. A key beyond the view's
        integer type is none of its entities: the row does not ask, and finds nothing.
        """
        columns = {name: _narrowed(self.keys[name], arrow_type(dtype)) for name, dtype in join_keys.items()}
        times = pa.array(self.as_of_us).cast(TIMESTAMP) if as_of is None else as_of
        complete = times.is_valid().to_numpy(zero_copy_only=False).copy()
        for column in columns.values():
            complete &= column.is_valid().to_numpy(zero_copy_only=False)
        asked = pa.table({ROW: np.arange(self.rows), **columns, AS_OF: times})
        return asked if complete.all() else asked.filter(pa.array(complete))


def read_spine(source: object, join_keys: Mapping[str, DType], request: Mapping[str, DType]) -> Spine:
    """A spine from a Parquet, CSV or Arrow file, an Arrow table or reader, a pandas or polars frame.

    InputError when it lacks `as_of` (or event_timestamp) or a join key, when a time is null or has no zone, or when
    a value has no exact form in the declared type.
    """
    table, path = _table(source, {**join_keys, **request, **dict.fromkeys(AS_OF_COLUMNS, Timestamp)})
    repeated = {name for name in table.column_names if table.column_names.count(name) > 1}
    if repeated:
        raise InputError(f"the spine has several columns named {', '.join(sorted(repeated))}; rename all but one")
    as_of_column = next((name for name in AS_OF_COLUMNS if name in table.column_names), None)
    if as_of_column is None:
        raise InputError(
            f"the spine has no column as_of (nor event_timestamp) that says at which time each row asks; it has: "
            f"{', '.join(table.column_names)}"
        )
    missing = [name for name in join_keys if name not in table.column_names]
    if missing:
        raise InputError(
            f"the spine lacks the join key {', '.join(map(repr, missing))}{suggest(missing[0], table.column_names)}"
        )
    return Spine(
        table=table,
        as_of_column=as_of_column,
        as_of_us=_as_of(table, as_of_column),
        keys={name: spine_column(table, name, dtype) for name, dtype in join_keys.items()},
        path=path,
    )


def spine_tables(
    source: object, join_keys: Mapping[str, DType], request: Mapping[str, DType], rows: int
) -> Iterator[pa.Table]:
    """What `read_spine` takes, in tables of `rows` rows; a file is never in memory whole. At least one table."""
    types = {**join_keys, **request, **dict.fromkeys(AS_OF_COLUMNS, Timestamp)}
    if isinstance(source, (str, Path)):
        yield from read_tables(Path(source), types, rows)
        return
    table, _ = _table(source, types)
    for start in range(0, max(table.num_rows, 1), rows):
        yield table.slice(start, rows)


def spine_as_of(keys: pa.Table, as_of_us: int) -> Spine:
    """A spine that asks for each entity of `keys` at one instant."""
    times = pa.array(np.full(keys.num_rows, as_of_us)).cast(TIMESTAMP)
    return Spine(
        table=keys.append_column("as_of", times),
        as_of_column="as_of",
        as_of_us=np.full(keys.num_rows, as_of_us, dtype=np.int64),
        keys={name: keys.column(name).combine_chunks() for name in keys.column_names},
    )


def spine_column(table: pa.Table, name: str, dtype: DType) -> pa.Array:
    """A column of the spine in the canonical type of `dtype`; InputError when a value does not fit it exactly."""
    column = table.column(name).combine_chunks()
    try:
        converted = convert(column, name, dtype, Reading())
    except SourceError as error:
        hint = "; pandas turns integers with nulls into floats, use its Int64" if _is_float(column) else ""
        raise InputError(f"spine {error}{hint}") from error
    if converted.faults is not None:
        row = int(np.argmax(converted.faults))
        raise InputError(f"spine column {name!r}, row {row}: {column[row]} has no exact {dtype} value")
    return converted.values


def _narrowed(keys: pa.Array, kind: pa.DataType) -> pa.Array:
    """Keys in the type of one view, null where that type cannot hold them (several views may share a wider key)."""
    if keys.type == kind:
        return keys
    narrow = keys.cast(kind, safe=False)
    return pc.if_else(pc.equal(narrow.cast(keys.type), keys), narrow, pa.scalar(None, kind))


def _as_of(table: pa.Table, name: str) -> NDArray[np.int64]:
    times = spine_column(table, name, Timestamp)
    if times.null_count:
        row = int(np.argmax(times.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(f"spine column {name!r}, row {row} is null; every row asks at a time, fill or drop it")
    return pc.cast(times, pa.int64()).to_numpy()


def _table(source: object, types: Mapping[str, DType]) -> tuple[pa.Table, str | None]:
    if isinstance(source, (str, Path)):
        return read_table(Path(source), types), str(source)
    if isinstance(source, pa.Table):
        return source, None
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source]), None
    if isinstance(source, pa.RecordBatchReader):
        return source.read_all(), None
    if is_frame(source):
        return frame_to_table(source), None
    raise InputError(
        f"a spine is a path, an Arrow table, a pandas or a polars frame; this is a {type(source).__name__}"
    )


def _is_float(column: pa.Array) -> bool:
    return bool(pa.types.is_floating(column.type))


def instant_us(value: object) -> int:
    """Microseconds of an aware datetime; InputError otherwise."""
    from datetime import datetime

    from featurestore.clock import aware_utc

    if not isinstance(value, datetime):
        raise InputError(f"as_of: {value!r} is not a datetime")
    return to_us(aware_utc(value, "as_of"))
