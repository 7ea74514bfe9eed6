"""Logical types as messages and back, and columns by them; the layout of a column is the client's `arrow_columns`."""

from __future__ import annotations

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
    dtype_fault,
)
from featurestore.errors import InputError
from featurestore_client import arrow_columns
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb

_SCALARS: dict[pb.TypeKind, DType] = {
    pb.TYPE_KIND_BOOL: Bool,
    pb.TYPE_KIND_INT32: Int32,
    pb.TYPE_KIND_INT64: Int64,
    pb.TYPE_KIND_FLOAT32: Float32,
    pb.TYPE_KIND_FLOAT64: Float64,
    pb.TYPE_KIND_STRING: String,
    pb.TYPE_KIND_BYTES: Bytes,
    pb.TYPE_KIND_TIMESTAMP: Timestamp,
    pb.TYPE_KIND_DATE: Date,
}
_KINDS = {dtype: kind for kind, dtype in _SCALARS.items()}


# ---------------------------------------------------------------- types


def encode_type(dtype: DType) -> pb.DataType:
    """A logical type as a message."""
    match dtype:
        case Decimal(precision, scale):
            return pb.DataType(kind=pb.TYPE_KIND_DECIMAL, precision=precision, scale=scale)
        case List(element):
            return pb.DataType(kind=pb.TYPE_KIND_LIST, element=encode_type(element))
        case Vector(element, length):
            return pb.DataType(kind=pb.TYPE_KIND_VECTOR, element=encode_type(element), length=length)
        case _:
            return pb.DataType(kind=_KINDS[dtype])


def decode_type(message: pb.DataType, what: str) -> DType:
    """The logical type a message means; InputError naming `what` when it means none."""
    dtype = _type_of(message, what)
    if fault := dtype_fault(dtype):
        raise InputError(f"{what}: {fault}; correct the column's type")
    return dtype


def _type_of(message: pb.DataType, what: str) -> DType:
    match message.kind:
        case pb.TYPE_KIND_DECIMAL:
            return Decimal(message.precision, message.scale)
        case pb.TYPE_KIND_LIST:
            return List(_element(message, what))
        case pb.TYPE_KIND_VECTOR:
            return Vector(_element(message, what), message.length)
    if message.kind not in _SCALARS:
        raise InputError(f"{what} has no type, or one this server does not know; set the column's type")
    return _SCALARS[message.kind]


def _element(message: pb.DataType, what: str) -> DType:
    if message.element.kind in (pb.TYPE_KIND_LIST, pb.TYPE_KIND_VECTOR):
        raise InputError(f"{what} nests lists or vectors; their elements are scalars")
    return _type_of(message.element, what)


# ---------------------------------------------------------------- columns


def column_writer(dtype: DType) -> arrow_columns.Writer:
    """What writes arrays of `dtype` into a column whose name and type are set; chosen once for each column."""
    return arrow_columns.column_writer(encode_type(dtype))


def decode_column(column: pb.Column, what: str) -> pa.Array:
    """The column as an array over the message's bytes; InputError when they do not fit together.

    `what` the column is: "join key", say; its name is the message's.
    """
    try:
        if column.type.kind not in _SCALARS:
            decode_type(column.type, f"{what} {column.name!r}")
        return arrow_columns.read_column(column)
    except arrow_columns.MalformedColumn as error:
        raise InputError(f"{what} {column.name!r}: {error}") from error
