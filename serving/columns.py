"""Arrow arrays as `Column` messages and back, buffer by buffer.

What arrives is not trusted: sizes are checked before an array is made over the bytes, offsets and UTF-8 after.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import (
    SCALARS,
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
from serving._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.inputs import exact

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
_OFFSET_BYTES = 4
Writer = Callable[[pb.Column, pa.Array], None]
_WITH_OFFSETS = (pa.StringArray, pa.BinaryArray, pa.ListArray)


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


def canonical(values: pa.Array | pa.ChunkedArray, what: str) -> tuple[pa.Array, DType]:
    """Any Arrow column that a logical type can hold without loss, in that type; InputError naming `what` otherwise."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    dtype = _logical_type(array.type)
    if dtype is None:
        raise InputError(f"{what} is {array.type}; cast it to one of {', '.join(SCALARS)}, decimal, list or vector")
    return exact(array, dtype, what), dtype


def _logical_type(kind: pa.DataType) -> DType | None:
    if pt.is_fixed_size_list(kind) or pt.is_list(kind) or pt.is_large_list(kind):
        element = _logical_type(kind.value_type)
        if element is None:
            return None
        return Vector(element, kind.list_size) if pt.is_fixed_size_list(kind) else List(element)
    if pt.is_decimal(kind):
        return Decimal(kind.precision, kind.scale)
    return next((dtype for belongs, dtype in _LOGICAL if belongs(kind)), None)


_LOGICAL: tuple[tuple[Callable[[pa.DataType], bool], DType], ...] = (
    (pt.is_boolean, Bool),
    (pt.is_int32, Int32),
    (pt.is_integer, Int64),
    (pt.is_float32, Float32),
    (pt.is_float64, Float64),
    (pt.is_string, String),
    (pt.is_large_string, String),
    (pt.is_string_view, String),
    (pt.is_binary, Bytes),
    (pt.is_large_binary, Bytes),
    (pt.is_timestamp, Timestamp),
    (pt.is_date, Date),
    (pt.is_null, Int64),
)


# ---------------------------------------------------------------- columns


def column_writer(dtype: DType) -> Writer:
    """What writes rows, validity and values of an array of `dtype` into a column whose name and type are set.

    Chosen once for each column of a reply; the writer itself looks at no type.
    """
    match dtype:
        case Vector(element, length):
            return partial(_write_whole, partial(_write_vector, element, length))
        case List(element):
            return partial(_write_whole, partial(_write_list, element))
        case _ if dtype in (String, Bytes):
            return partial(_write_whole, _write_text)
        case _ if dtype == Bool:
            return partial(_write_whole, _write_bits)
        case _:
            return partial(_write_words, _bytes_of(dtype, 1))


def encode_column(column: pb.Column, array: pa.Array, dtype: DType) -> None:
    """Write one array, where a writer is not worth keeping."""
    column_writer(dtype)(column, array)


def _write_words(width: int, column: pb.Column, array: pa.Array) -> None:
    """Fixed width. The decoder cuts such columns out of one block, so they begin anywhere in their buffers."""
    rows = column.rows = len(array)
    if array.null_count:
        column.validity = _validity(array, rows)
    if rows:
        column.values = array.buffers()[1].slice(array.offset * width, rows * width).to_pybytes()


def _write_whole(
    write: Callable[[pb.Column, list[pa.Buffer | None]], None], column: pb.Column, array: pa.Array
) -> None:
    """Everything else: moved to the start of its buffers first."""
    rows = column.rows = len(array)
    if array.null_count:
        column.validity = _validity(array, rows)
    write(column, _at_its_start(array).buffers())


def _write_bits(column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.values = _cut(buffers[1], _bitmap_bytes(column.rows))


def _write_text(column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.offsets = _cut(buffers[1], (column.rows + 1) * _OFFSET_BYTES)
    column.values = _cut(buffers[2], _last(column.offsets))


def _write_vector(element: DType, length: int, column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.values = _cut(buffers[2], _bytes_of(element, column.rows * length))


def _write_list(element: DType, column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.offsets = _cut(buffers[1], (column.rows + 1) * _OFFSET_BYTES)
    count = _last(column.offsets)
    if element in (String, Bytes):
        column.element_offsets = _cut(buffers[3], (count + 1) * _OFFSET_BYTES)
        column.values = _cut(buffers[4], _last(column.element_offsets))
    else:
        column.values = _cut(buffers[3], _bytes_of(element, count))


def _validity(array: pa.Array, rows: int) -> bytes:
    if array.offset % 8 == 0:
        return array.buffers()[0].slice(array.offset // 8, _bitmap_bytes(rows)).to_pybytes()
    return _cut(array.is_valid().buffers()[1], _bitmap_bytes(rows))


def _at_its_start(array: pa.Array) -> pa.Array:
    """The same values in buffers that begin with the first of them."""
    moved = array.offset or (isinstance(array, (pa.ListArray, pa.FixedSizeListArray)) and array.values.offset)
    if not moved and isinstance(array, _WITH_OFFSETS) and len(array):
        moved = np.frombuffer(array.buffers()[1], "<i4", count=1)[0]
    return pa.concat_arrays([array, array.slice(0, 0)]) if moved else array


def decode_column(column: pb.Column, what: str) -> pa.Array:
    """The column as an array over the message's bytes; InputError naming `what` when they do not fit together."""
    dtype = decode_type(column.type, what)
    rows = column.rows
    validity = _sized(column.validity, _bitmap_bytes(rows), f"{what}: validity") if column.validity else None
    match dtype:
        case Vector(element, length):
            child = _plain(element, rows * length, column.values, b"", what)
            array = pa.Array.from_buffers(arrow_type(dtype), rows, [validity], children=[child])
        case List(element):
            offsets = _offsets(column.offsets, rows, f"{what}: offsets")
            child = _plain(element, _last(offsets), column.values, column.element_offsets, what)
            array = pa.Array.from_buffers(arrow_type(dtype), rows, [validity, pa.py_buffer(offsets)], children=[child])
        case _:
            array = _plain(dtype, rows, column.values, column.offsets, what, validity)
    return _valid(array, what)


def _plain(
    dtype: DType, rows: int, values: bytes, offsets: bytes, what: str, validity: pa.Buffer | None = None
) -> pa.Array:
    """An array of scalars."""
    if dtype in (String, Bytes):
        checked = _offsets(offsets, rows, f"{what}: offsets")
        data = _sized(values, _last(checked), f"{what}: values")
        buffers = [validity, pa.py_buffer(checked), data]
    else:
        buffers = [validity, _sized(values, _bytes_of(dtype, rows), f"{what}: values")]
    return pa.Array.from_buffers(arrow_type(dtype), rows, buffers)


def _valid(array: pa.Array, what: str) -> pa.Array:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"{what} is malformed: {error}; write it in the Arrow layout") from error
    return array


def _offsets(offsets: bytes, rows: int, what: str) -> bytes:
    """Offsets that start at 0 and never fall; without rows they may be left out."""
    if rows == 0 and not offsets:
        return bytes(_OFFSET_BYTES)
    _sized(offsets, (rows + 1) * _OFFSET_BYTES, what)
    steps = np.frombuffer(offsets, "<i4")
    if steps[0] != 0 or bool((steps[1:] < steps[:-1]).any()):
        raise InputError(f"{what} must start at 0 and never fall; write them in the Arrow layout")
    return offsets


def _sized(data: bytes, expected: int, what: str) -> pa.Buffer:
    if len(data) != expected:
        raise InputError(
            f"{what}: {len(data)} bytes, {expected} fit the number of rows; write them in the Arrow layout"
        )
    return pa.py_buffer(data)


def _cut(buffer: pa.Buffer | None, size: int) -> bytes:
    """The first `size` bytes; Arrow pads buffers, and leaves out those of empty arrays."""
    if buffer is None or size == 0:
        return bytes(size)
    return buffer.to_pybytes() if buffer.size == size else buffer.slice(0, size).to_pybytes()


def _last(offsets: bytes) -> int:
    return int.from_bytes(offsets[-_OFFSET_BYTES:], "little", signed=True)


def _bitmap_bytes(rows: int) -> int:
    return -(-rows // 8)


def _bytes_of(dtype: DType, count: int) -> int:
    if dtype == Bool:
        return _bitmap_bytes(count)
    width: int = dtype.width  # type: ignore[attr-defined]  # every fixed-width type has one
    return width * count
