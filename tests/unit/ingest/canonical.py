"""Columns and what they must become, for the tests of canonical values."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.arrow_types import arrow_type
from featurestore.clock import to_us
from featurestore.dtypes import DType
from featurestore.ingest.canonical import Reading, convert

FAULT = object()
"""Stands in an expectation for a value that has no exact canonical form."""
NEW_YORK = "America/New_York"
NAN, INF = math.nan, math.inf
#: Of a source that has nothing but text.
TEXT = Reading(text=True)


def assert_becomes(column: pa.Array, dtype: DType, expected: Sequence[Any], reading: Reading | None = None) -> None:
    """Every value of the column is what is expected, bit for bit; FAULT where it has no exact form."""
    converted = convert(column, "x", dtype, reading or Reading())
    converted.values.validate(full=True)
    assert converted.values.type == arrow_type(dtype)
    assert converted.fault_mask.tolist() == [value is FAULT for value in expected]
    assert bits(converted.values) == [bits_of(None if value is FAULT else value) for value in expected]
    if converted.faults is None:
        assert not any(value is FAULT for value in expected)


def bits(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64()).to_pylist()
    return [bits_of(value) for value in column.to_pylist()]


def bits_of(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, list):
        return [bits_of(element) for element in value]
    return value


def us(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return to_us(datetime(year, month, day, hour, minute, second, tzinfo=UTC))


def raw_strings(*values: bytes, kind: pa.DataType | None = None) -> pa.Array:
    """A string array over any bytes, as a careless writer leaves it."""
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])])
    kind = kind or pa.string()
    width = np.int64 if kind == pa.large_string() else np.int32
    buffers = [None, pa.py_buffer(offsets.astype(width)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)
