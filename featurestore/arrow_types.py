"""Logical types as Arrow types: the form in which columns travel between all parts."""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from featurestore.dtypes import (
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

TIMESTAMP = pa.timestamp("us", tz="UTC")

_SCALARS: dict[DType, pa.DataType] = {
    Bool: pa.bool_(),
    Int32: pa.int32(),
    Int64: pa.int64(),
    Float32: pa.float32(),
    Float64: pa.float64(),
    String: pa.string(),
    Bytes: pa.binary(),
    Timestamp: TIMESTAMP,
    Date: pa.date32(),
}


@cache
def arrow_type(dtype: DType) -> pa.DataType:
    """The canonical Arrow type of a logical type."""
    match dtype:
        case Decimal(precision, scale):
            return pa.decimal128(precision, scale)
        case List(element):
            return pa.list_(arrow_type(element))
        case Vector(element, length):
            return pa.list_(arrow_type(element), length)
        case _:
            return _SCALARS[dtype]


def arrow_field(field: Field) -> pa.Field:
    """A field as an Arrow field; nullability is left to the gate, which explains what it refuses."""
    return pa.field(field.name, arrow_type(field.dtype))
