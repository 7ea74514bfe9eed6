"""pandas and polars at the edge: the only module that knows them, imported when a caller uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


def is_frame(value: object) -> bool:
    """Whether `value` is a pandas or polars data frame, told without importing either."""
    package = type(value).__module__.partition(".")[0]
    return package in ("pandas", "polars") and hasattr(value, "columns")


def frame_to_table(frame: Any) -> pa.Table:
    """A data frame as an Arrow table; the index of a pandas frame is dropped."""
    if type(frame).__module__.startswith("polars"):
        return frame.to_arrow()
    table: pa.Table = pa.Table.from_pandas(frame, preserve_index=False)
    return table.replace_schema_metadata(None)


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A pandas frame that keeps integers with nulls exact (nullable Arrow-backed columns)."""
    import pandas as pd

    return table.to_pandas(types_mapper=pd.ArrowDtype)


def to_polars(table: pa.Table) -> pl.DataFrame:
    """A polars frame."""
    import polars as pl

    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
