"""Arrow arrays as `Column` messages and back, buffer by buffer. Needs pyarrow: imported only where Arrow is asked for.

The server writes its replies and reads its requests with this module too, so nothing that arrives is trusted: sizes
are checked before an array is made over the bytes, offsets and UTF-8 after.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb

Writer = Callable[[pb.Column, pa.Array], None]

_SCALARS: dict[pb.TypeKind, pa.DataType] = {
    pb.TYPE_KIND_BOOL: pa.bool_(),
    pb.TYPE_KIND_INT32: pa.int32(),
    pb.TYPE_KIND_INT64: pa.int64(),
    pb.TYPE_KIND_FLOAT32: pa.float32(),
    pb.TYPE_KIND_FLOAT64: pa.float64(),
    pb.TYPE_KIND_STRING: pa.string(),
    pb.TYPE_KIND_BYTES: pa.binary(),
    pb.TYPE_KIND_TIMESTAMP: pa.timestamp("us", tz="UTC"),
    pb.TYPE_KIND_DATE: pa.date32(),
}
_KINDS: dict[pa.DataType, pb.TypeKind] = {kind: number for number, kind in _SCALARS.items()}
#: Whatever bytes of the right length are values of these.
_TEXT = (pb.TYPE_KIND_STRING, pb.TYPE_KIND_BYTES)
_PLAIN_BITS = {number: kind.bit_width for number, kind in _SCALARS.items() if number not in _TEXT}
_WITH_OFFSETS = (pa.StringArray, pa.BinaryArray, pa.ListArray)
_OFFSET_BYTES = 4


class MalformedColumn(ValueError):
    """The buffers of a column do not fit together, or hold what its type cannot."""


# ---------------------------------------------------------------- types


def arrow_type(kind: pb.DataType) -> pa.DataType:
    """The Arrow type of a column's type; MalformedColumn for one that this version does not know."""
    match kind.kind:
        case pb.TYPE_KIND_DECIMAL:
            return pa.decimal128(kind.precision, kind.scale)
        case pb.TYPE_KIND_LIST:
            return pa.list_(arrow_type(kind.element))
        case pb.TYPE_KIND_VECTOR:
            return pa.list_(arrow_type(kind.element), kind.length)
    if kind.kind not in _SCALARS:
        raise MalformedColumn(f"type kind {kind.kind} is not known; update the package that reads it")
    return _SCALARS[kind.kind]


def column_type(kind: pa.DataType) -> pb.DataType:
    """The column type of an Arrow type that `arrow_type` gives."""
    if pt.is_fixed_size_list(kind):
        return pb.DataType(kind=pb.TYPE_KIND_VECTOR, element=column_type(kind.value_type), length=kind.list_size)
    if pt.is_list(kind):
        return pb.DataType(kind=pb.TYPE_KIND_LIST, element=column_type(kind.value_type))
    if pt.is_decimal(kind):
        return pb.DataType(kind=pb.TYPE_KIND_DECIMAL, precision=kind.precision, scale=kind.scale)
    return pb.DataType(kind=_KINDS[kind])


def _canonical_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of ours that holds every value of an Arrow type; None when there is none."""
    if pt.is_fixed_size_list(kind) or pt.is_list(kind) or pt.is_large_list(kind):
        element = _canonical_type(kind.value_type)
        if element is None or pt.is_nested(element):
            return None
        return pa.list_(element, kind.list_size) if pt.is_fixed_size_list(kind) else pa.list_(element)
    if pt.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= 38 else None
    if pt.is_timestamp(kind) and kind.tz is None:
        return None
    return next((_SCALARS[number] for belongs, number in _CANONICAL if belongs(kind)), None)


_CANONICAL: tuple[tuple[Callable[[pa.DataType], bool], pb.TypeKind], ...] = (
    (pt.is_boolean, pb.TYPE_KIND_BOOL),
    (pt.is_int32, pb.TYPE_KIND_INT32),
    (pt.is_integer, pb.TYPE_KIND_INT64),
    (pt.is_float32, pb.TYPE_KIND_FLOAT32),
    (pt.is_float64, pb.TYPE_KIND_FLOAT64),
    (pt.is_string, pb.TYPE_KIND_STRING),
    (pt.is_large_string, pb.TYPE_KIND_STRING),
    (pt.is_string_view, pb.TYPE_KIND_STRING),
    (pt.is_binary, pb.TYPE_KIND_BYTES),
    (pt.is_large_binary, pb.TYPE_KIND_BYTES),
    (pt.is_timestamp, pb.TYPE_KIND_TIMESTAMP),
    (pt.is_date, pb.TYPE_KIND_DATE),
    (pt.is_null, pb.TYPE_KIND_INT64),
)


# ---------------------------------------------------------------- writing


def from_arrow(name: str, values: pa.Array | pa.ChunkedArray) -> pb.Column:
    """Any Arrow column that a type of ours holds without loss, as a message; TypeError says what will not do."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    wanted = _canonical_type(array.type)
    if wanted is None:
        raise TypeError(
            f"{name!r} is {array.type}; cast it to numbers, bool, string, binary, date, decimal, timestamps with a "
            "time zone, or lists of these"
        )
    try:
        array = array.cast(wanted)
    except pa.ArrowInvalid as error:
        raise TypeError(f"{name!r} has values that no {wanted} holds: {error}") from error
    column = pb.Column(name=name, type=column_type(wanted))
    column_writer(column.type)(column, array)
    return column


def column_writer(kind: pb.DataType) -> Writer:
    """What writes rows, validity and values of an array into a column whose name and type are set.

    Chosen once for each column of a reply; the writer itself looks at no type.
    """
    match kind.kind:
        case pb.TYPE_KIND_VECTOR:
            return partial(_write_whole, partial(_write_vector, _bits(kind.element), kind.length))
        case pb.TYPE_KIND_LIST if kind.element.kind in _TEXT:
            return partial(_write_whole, _write_text_list)
        case pb.TYPE_KIND_LIST:
            return partial(_write_whole, partial(_write_list, _bits(kind.element)))
        case pb.TYPE_KIND_STRING | pb.TYPE_KIND_BYTES:
            return partial(_write_whole, _write_text)
        case pb.TYPE_KIND_BOOL:
            return partial(_write_whole, _write_bits)
        case _:
            return partial(_write_words, _bits(kind) // 8)


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
    column.values = _cut_bits(buffers[1], column.rows)


def _write_text(column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.offsets = _cut(buffers[1], (column.rows + 1) * _OFFSET_BYTES)
    column.values = _cut(buffers[2], _last(column.offsets))


def _write_vector(bits: int, length: int, column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.values = _cut_bits(buffers[2], bits * column.rows * length)


def _write_list(bits: int, column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.offsets = _cut(buffers[1], (column.rows + 1) * _OFFSET_BYTES)
    column.values = _cut_bits(buffers[3], bits * _last(column.offsets))


def _write_text_list(column: pb.Column, buffers: list[pa.Buffer | None]) -> None:
    column.offsets = _cut(buffers[1], (column.rows + 1) * _OFFSET_BYTES)
    column.element_offsets = _cut(buffers[3], (_last(column.offsets) + 1) * _OFFSET_BYTES)
    column.values = _cut(buffers[4], _last(column.element_offsets))


def _validity(array: pa.Array, rows: int) -> bytes:
    if array.offset % 8 == 0:
        return _cut_bits(array.buffers()[0].slice(array.offset // 8), rows)
    return _cut_bits(array.is_valid().buffers()[1], rows)


def _at_its_start(array: pa.Array) -> pa.Array:
    """The same values in buffers that begin with the first of them."""
    moved = array.offset or (isinstance(array, (pa.ListArray, pa.FixedSizeListArray)) and array.values.offset)
    if not moved and isinstance(array, _WITH_OFFSETS) and len(array):
        moved = np.frombuffer(array.buffers()[1], "<i4", count=1)[0]
    return pa.concat_arrays([array, array.slice(0, 0)]) if moved else array


def _cut(buffer: pa.Buffer | None, size: int) -> bytes:
    """The first `size` bytes; Arrow pads buffers, and leaves out those of empty arrays."""
    if buffer is None or size == 0:
        return bytes(size)
    return buffer.to_pybytes() if buffer.size == size else buffer.slice(0, size).to_pybytes()


def _cut_bits(buffer: pa.Buffer | None, bits: int) -> bytes:
    """The first `bits`, in bytes; those after them are 0, for they may be the values of other rows."""
    data = _cut(buffer, -(-bits // 8))
    return data if bits % 8 == 0 else data[:-1] + bytes((data[-1] & (1 << bits % 8) - 1,))


# ---------------------------------------------------------------- reading


def read_column(column: pb.Column) -> pa.Array:
    """The column as an array over the message's bytes; MalformedColumn when they do not fit together."""
    rows, kind, number = column.rows, column.type, column.type.kind
    validity = _sized(column.validity, _bytes_of(1, rows), "validity") if column.validity else None
    bits = _PLAIN_BITS.get(number)
    if bits is not None:  # most join keys; whatever bytes of the right length are values of these
        values = _sized(column.values, _bytes_of(bits, rows), "values")
        return pa.Array.from_buffers(_SCALARS[number], rows, [validity, values])
    array = _read_other(column, rows, kind, validity)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise MalformedColumn(f"{error}; write it in the Arrow layout") from error
    return array


def _read_other(column: pb.Column, rows: int, kind: pb.DataType, validity: pa.Buffer | None) -> pa.Array:
    """An array whose bytes may be wrong."""
    element = kind.element
    match kind.kind:
        case pb.TYPE_KIND_VECTOR:
            child = _plain(element, rows * kind.length, column.values, b"")
            return pa.Array.from_buffers(arrow_type(kind), rows, [validity], children=[child])
        case pb.TYPE_KIND_LIST:
            offsets = _offsets(column.offsets, rows)
            child = _plain(element, _last(offsets), column.values, column.element_offsets)
            return pa.Array.from_buffers(arrow_type(kind), rows, [validity, pa.py_buffer(offsets)], children=[child])
        case _:
            return _plain(kind, rows, column.values, column.offsets, validity)


def _plain(kind: pb.DataType, rows: int, values: bytes, offsets: bytes, validity: pa.Buffer | None = None) -> pa.Array:
    """An array of scalars."""
    if kind.kind in _TEXT:
        checked = _offsets(offsets, rows)
        buffers = [validity, pa.py_buffer(checked), _sized(values, _last(checked), "values")]
    else:
        buffers = [validity, _sized(values, _bytes_of(_bits(kind), rows), "values")]
    return pa.Array.from_buffers(arrow_type(kind), rows, buffers)


def _offsets(offsets: bytes, rows: int) -> bytes:
    """Offsets that start at 0 and never fall; without rows they may be left out."""
    if rows == 0 and not offsets:
        return bytes(_OFFSET_BYTES)
    _sized(offsets, (rows + 1) * _OFFSET_BYTES, "offsets")
    steps = np.frombuffer(offsets, "<i4")
    if steps[0] != 0 or bool((steps[1:] < steps[:-1]).any()):
        raise MalformedColumn("offsets must start at 0 and never fall; write them in the Arrow layout")
    return offsets


def _sized(data: bytes, expected: int, what: str) -> pa.Buffer:
    if len(data) != expected:
        raise MalformedColumn(
            f"{what}: {len(data)} bytes, {expected} fit the number of rows; write them in the Arrow layout"
        )
    return pa.py_buffer(data)


def _last(offsets: bytes) -> int:
    return int.from_bytes(offsets[-_OFFSET_BYTES:], "little", signed=True)


def _bits(kind: pb.DataType) -> int:
    """Size of one value of a fixed-width scalar."""
    return int(arrow_type(kind).bit_width)


def _bytes_of(bits: int, count: int) -> int:
    return -(-bits * count // 8)
