"""THE place for Hypothesis strategies of types, values and columns: whatever the gate may let through, no more.

Values are canonical (design §4a): one NaN, timestamps in years 1-9999, strings without U+0000, decimals that fit.
`columns` builds Arrow arrays as engines do: sliced, with anything under the nulls. `bits` compares them exactly.
"""

from __future__ import annotations

import datetime
import decimal
import math
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from featurestore.arrow_types import arrow_type
from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, from_us
from featurestore.dtypes import (
    JOIN_KEY_TYPES,
    SCALARS,
    VECTOR_ELEMENTS,
    Bool,
    Bytes,
    Date,
    Decimal,
    DType,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.field import Field

#: Texts that break codes which glue values together or quote them badly.
AWKWARD_TEXTS = (
    "",
    " ",
    "|",
    ",",
    ":",
    "a|b",
    "a:b",
    "\x1f",
    "\t",
    "'",
    '"',
    "\\",
    "%",
    "{0}",
    "NULL",
    "nan",
    "1",
    "é",
    "e\u0301",
    "🦀",
)
_SHORT = {"max_size": 6}


def scalar_dtypes() -> st.SearchStrategy[DType]:
    """Any type without parameters, and decimals of any precision and scale."""
    decimals = st.integers(1, 38).flatmap(lambda p: st.integers(0, p).map(lambda s: Decimal(p, s)))
    return st.one_of(st.sampled_from(list(SCALARS.values())), decimals)


def dtypes() -> st.SearchStrategy[DType]:
    """Any type a field may have; vectors are short."""
    vectors = st.builds(Vector, st.sampled_from(VECTOR_ELEMENTS), st.integers(1, 3))
    return st.one_of(scalar_dtypes(), scalar_dtypes().map(List), vectors)


def join_key_dtypes() -> st.SearchStrategy[DType]:
    """Any type a join key may have."""
    return st.sampled_from(JOIN_KEY_TYPES)


def schemas(min_size: int = 1, max_size: int = 6) -> st.SearchStrategy[list[Field]]:
    """The fields `f0`, `f1`, ... of a view, of any types."""
    types = st.lists(dtypes(), min_size=min_size, max_size=max_size)
    return types.map(lambda chosen: [Field(name=f"f{index}", dtype=dtype) for index, dtype in enumerate(chosen)])


def texts() -> st.SearchStrategy[str]:
    """Valid UTF-8 without U+0000: short, awkward, sometimes longer than a machine word."""
    characters = st.characters(codec="utf-8", exclude_characters="\0")
    return st.one_of(st.sampled_from(AWKWARD_TEXTS), st.text(characters, **_SHORT), st.text("ab", max_size=40))


def integers(bits: int) -> st.SearchStrategy[int]:
    """Signed integers of a width, often at its ends or where float32 and float64 stop being exact."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    edges = {low, high, 0, -1, *(sign * (1 << p) + d for p in (24, 53) for d in (-1, 0, 1) for sign in (-1, 1))}
    return st.one_of(st.sampled_from(sorted(e for e in edges if low <= e <= high)), st.integers(low, high))


def floats(width: Literal[32, 64]) -> st.SearchStrategy[float]:
    """Floats of a width with both zeros, infinities and the one NaN."""
    drawn = st.floats(width=width)
    return st.one_of(st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]), drawn.map(_one_nan))


def values(dtype: DType) -> st.SearchStrategy[Any]:
    """Canonical Python values of a type, never null."""
    match dtype:
        case Decimal(precision, scale):
            digits = st.integers(-(10**precision) + 1, 10**precision - 1)
            return digits.map(lambda number: _decimal(number, scale))
        case List(element):
            return st.lists(values(element), max_size=4)
        case Vector(element, length):
            return st.lists(values(element), min_size=length, max_size=length)
        case _:
            return _SCALAR_VALUES[dtype]


@st.composite
def columns(draw: st.DrawFn, dtype: DType, size: int, *, nulls: bool = True) -> pa.Array:
    """A column of `size` values in canonical Arrow type, perhaps a slice, perhaps with values under its nulls."""
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    total = before + size + after
    column = pa.array(draw(st.lists(values(dtype), min_size=total, max_size=total)), arrow_type(dtype))
    if nulls and draw(st.booleans()):
        column = hide(column, draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    return column.slice(before, size)


@st.composite
def column_sets(draw: st.DrawFn, fields: Sequence[Field], max_rows: int = 9) -> list[pa.Array]:
    """One column a field, all of one length, sometimes empty."""
    size = draw(st.integers(0, max_rows))
    return [draw(columns(field.dtype, size)) for field in fields]


def hide(column: pa.Array, nulls: Sequence[bool]) -> pa.Array:
    """The column with nulls where asked and its values still lying under them; the column starts at offset 0."""
    assert column.offset == 0
    validity = pa.py_buffer(np.packbits(~np.array(nulls, dtype=np.bool_), bitorder="little"))
    own = column.type.num_buffers
    children = [column.values] if pa.types.is_nested(column.type) else None
    return pa.Array.from_buffers(column.type, len(column), [validity, *column.buffers()[1:own]], children=children)


def bits(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values for exact comparison: NaN equals NaN, -0.0 differs from 0.0, a null is None."""
    return [_value_bits(value) for value in column.to_pylist()]


def _value_bits(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, list):
        return [_value_bits(element) for element in value]
    return value


def _one_nan(value: float) -> float:
    return math.nan if math.isnan(value) else value


def _decimal(number: int, scale: int) -> decimal.Decimal:
    return decimal.Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale))


_SCALAR_VALUES: dict[DType, st.SearchStrategy[Any]] = {
    Bool: st.booleans(),
    Int32: integers(32),
    Int64: integers(64),
    Float32: floats(32),
    Float64: floats(64),
    String: texts(),
    Bytes: st.one_of(st.sampled_from([b"", b"\0", b"\0\0", b"\xff"]), st.binary(max_size=20)),
    Timestamp: st.one_of(
        st.sampled_from([TIMESTAMP_MIN_US, TIMESTAMP_MAX_US, 0, -1]), st.integers(TIMESTAMP_MIN_US, TIMESTAMP_MAX_US)
    ).map(from_us),
    Date: st.dates(datetime.date.min, datetime.date.max),
}
