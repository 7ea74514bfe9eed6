"""Arrow columns to and from the binary COPY format of Postgres, whole columns at a time.

A row is the number of its fields (int16), then for each field its length (int32; -1 is null) and its bytes; all numbers
are big-endian, times count from 2000-01-01. Bits pass as they are: NaN, the sign of zero and infinities included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP
from featurestore.errors import StoreError
from featurestore.online.packing import (
    as_array,
    byte_offsets,
    check_batch_bytes,
    data_bytes,
    from_matrix,
    from_offsets,
    join,
    null_mask,
)

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
#: Bytes of Arrow data that are encoded at once: bounds the memory of a load.
ENCODED_BYTES_MAX = 64 << 20
#: 1970-01-01 as Postgres counts days and microseconds.
_EPOCH_DAYS = -10_957
_EPOCH_US = _EPOCH_DAYS * 86_400_000_000
#: Element types of arrays, by the number Postgres has for them.
_OIDS: dict[str, int] = {
    "bool": 16,
    "binary": 17,
    "int64": 20,
    "int32": 23,
    "string": 25,
    "float": 700,
    "double": 701,
    "date32[day]": 1082,
    "timestamp[us, tz=UTC]": 1184,
}
_NUMERIC_OID = 1700
#: What Postgres sends for the types of fixed width.
_WORDS: dict[pa.DataType, np.dtype[Any]] = {
    pa.bool_(): np.dtype(">u1"),
    pa.int32(): np.dtype(">i4"),
    pa.int64(): np.dtype(">i8"),
    pa.float32(): np.dtype(">i4"),
    pa.float64(): np.dtype(">i8"),
    pa.date32(): np.dtype(">i4"),
    TIMESTAMP: np.dtype(">i8"),
}

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
_LENGTH = np.dtype(">i4")


# ------------------------------------------------------------------ to Postgres


def encode_rows(table: pa.Table) -> Iterator[memoryview]:
    """The table in pieces of the binary COPY format, header and trailer included."""
    yield memoryview(HEADER)
    rows_max = max(1, ENCODED_BYTES_MAX * table.num_rows // max(table.nbytes, 1))
    for start in range(0, table.num_rows, rows_max):
        part = table.slice(start, rows_max)
        count = _Words(np.full(part.num_rows, part.num_columns, dtype=">i2"), None)
        rows = join(_merged([count, *(piece for column in part.columns for piece in _fields(as_array(column)))]))
        offsets = byte_offsets(rows)
        yield memoryview(data_bytes(rows).data)[int(offsets[0]) : int(offsets[-1])]
    yield memoryview(TRAILER)


class _Words(NamedTuple):
    """Numbers of one width, big-endian, as Postgres reads them; `null` where there is none."""

    values: NDArray[Any]
    null: Mask | None


def _merged(pieces: Sequence[_Words | pa.BinaryArray]) -> list[pa.BinaryArray]:
    """The pieces as rows of bytes, neighbours of fixed width laid side by side."""
    merged: list[pa.BinaryArray] = []
    fixed: list[_Words] = []
    for piece in pieces:
        if isinstance(piece, _Words):
            fixed.append(piece)
            continue
        merged += [*([_side_by_side(fixed)] if fixed else []), piece]
        fixed = []
    return [*merged, *([_side_by_side(fixed)] if fixed else [])]


def _side_by_side(words: Sequence[_Words]) -> pa.BinaryArray:
    """Rows of words, the bytes of nulls left out."""
    layout = np.dtype([(str(place), word.values.dtype, word.values.shape[1:]) for place, word in enumerate(words)])
    packed = np.empty(len(words[0].values), dtype=layout)
    for place, word in enumerate(words):
        packed[str(place)] = word.values
    matrix = packed.view(np.uint8).reshape(len(packed), layout.itemsize)
    if all(word.null is None for word in words):
        return from_matrix(matrix)
    kept = np.ones(matrix.shape, dtype=np.bool_)
    fields: Mapping[str, Any] = layout.fields or {}
    for place, word in enumerate(words):
        if word.null is not None:
            start = fields[str(place)][1]
            kept[:, start : start + fields[str(place)][0].itemsize] = ~word.null[:, None]
    lengths = kept.sum(axis=1)
    check_batch_bytes(int(lengths.sum()))
    return from_offsets(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), matrix[kept])


def _fields(column: pa.Array) -> Iterable[_Words | pa.BinaryArray]:
    """Each value with its length before it."""
    kind = column.type
    null = null_mask(column) if column.null_count else None
    if not _varies(kind):
        words = _words(column)
        width = np.full(len(column), words.dtype.itemsize * math.prod(words.shape[1:]), dtype=_LENGTH)
        if null is not None:
            width[null] = -1
        return _Words(width, None), _Words(words, null)
    values = _arrays(column) if _nested(kind) else column.cast(pa.binary()).fill_null(b"")
    lengths = np.diff(byte_offsets(values)).astype(_LENGTH)
    if null is None:
        return _Words(lengths, None), values
    lengths[null] = -1
    # What a null list was encoded as is left out again.
    return _Words(lengths, None), pc.if_else(pa.array(null), pa.scalar(b"", pa.binary()), values)


def _varies(kind: pa.DataType) -> bool:
    return _nested(kind) or bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _words(column: pa.Array) -> NDArray[Any]:
    """The values of a fixed-width column; nulls as anything."""
    kind = column.type
    if pa.types.is_decimal128(kind):
        return _numerics(column)
    if pa.types.is_boolean(kind):
        return column.fill_null(False).cast(pa.uint8()).to_numpy()
    if pa.types.is_timestamp(kind):
        return _big_endian(_values(column, np.dtype(np.int64)) + _EPOCH_US)
    if pa.types.is_date32(kind):
        return _big_endian(_values(column, np.dtype(np.int32)) + np.int32(_EPOCH_DAYS))
    # Floats as the integers of their width: arithmetic could touch the bits of a NaN.
    return _big_endian(_values(column, np.dtype(f"i{kind.bit_width // 8}")))


def _values(column: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(column) == 0:
        return np.zeros(0, dtype=dtype)
    return np.frombuffer(column.buffers()[1], dtype=dtype)[column.offset : column.offset + len(column)]


def _big_endian(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder(">"))


def _numerics(column: pa.Array) -> NDArray[Any]:
    """Decimals as 11 digits to the base 10,000, enough for 38 decimal digits wherever the point stands."""
    scale, digits = column.type.scale, 11
    if len(column) == 0:
        return np.zeros((0, 4 + digits), dtype=">i2")
    words = np.frombuffer(column.buffers()[1], dtype=np.uint64).reshape(-1, 2)
    low, high = words[column.offset : column.offset + len(column)].T
    negative = high >> np.uint64(63) != 0
    low, high = np.where(negative, ~low + np.uint64(1), low), np.where(negative, ~high + (low == 0), high)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    # The lowest 32 bits first; one more word than 128 bits, since the point moves to a multiple of four digits.
    limbs = [low & mask, low >> half, high & mask, high >> half, np.zeros_like(low)]
    shift, carry = np.uint64(10 ** (-scale % 4)), np.zeros_like(low)
    for place, limb in enumerate(limbs):
        product = limb * shift + carry
        limbs[place], carry = product & mask, product >> half
    numbers = np.zeros((len(column), digits), dtype=np.uint64)
    for digit in reversed(range(digits)):
        rest = np.zeros_like(low)
        for place in reversed(range(len(limbs))):
            part = (rest << half) | limbs[place]
            limbs[place], rest = part // np.uint64(10_000), part % np.uint64(10_000)
        numbers[:, digit] = rest
    head = np.zeros((len(column), 4), dtype=np.int64)
    head[:] = (digits, digits - 1 - (scale + 3) // 4, 0, scale)
    head[:, 2] = np.where(negative, 0x4000, 0)
    return np.concatenate([head, numbers.astype(np.int64)], axis=1).astype(">i2")


def _arrays(column: pa.Array) -> pa.BinaryArray:
    """Lists as arrays of one dimension; an empty one has none. Their elements are never null."""
    element = column.type.value_type
    oid = _NUMERIC_OID if pa.types.is_decimal(element) else _OIDS[str(element)]
    # The length of a null is whatever Arrow keeps room for.
    lengths = pc.list_value_length(column).fill_null(0).to_numpy() * (~null_mask(column)).astype(np.int64)
    elements = join(_merged(list(_fields(as_array(column.flatten())))))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    bodies = from_offsets(byte_offsets(elements)[ends].astype(np.int32), data_bytes(elements))
    head = np.empty((len(column), 5), dtype=">i4")
    head[:] = (1, 0, oid, 0, 1)
    head[:, 3] = lengths
    none = np.broadcast_to(np.array([0, 0, oid], dtype=">i4"), (len(column), 3))
    full, empty = (
        from_matrix(np.ascontiguousarray(one).view(np.uint8).reshape(len(column), -1)) for one in (head, none)
    )
    return join([pc.if_else(pa.array(lengths > 0), full, empty), bodies])


# ------------------------------------------------------------------ from Postgres


def decode_rows(messages: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of COPY TO, a message each, without header and trailer, as columns of `schema`.

    Decimals come as text (see `sent`).
    """
    data = np.frombuffer(b"".join(messages), dtype=np.uint8)
    lengths = np.fromiter(map(len, messages), dtype=np.int64, count=len(messages))
    at = np.cumsum(lengths) - lengths + 2
    columns: list[pa.Array] = []
    while len(columns) < len(schema):
        decoded, at = _fixed_run(data, at, schema.types[len(columns) :])
        if not decoded:
            kind = schema.types[len(columns)]
            width = _numbers(data, at, _LENGTH).astype(np.int64)
            decoded = [_decoded(data, at + 4, width, kind)]
            at = at + 4 + np.maximum(width, 0)
        columns += decoded
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def sent(kind: pa.DataType) -> str | None:
    """The type a column is cast to before it is sent; None for those that are sent as they are."""
    if pa.types.is_decimal(kind):
        return "TEXT"
    return "TEXT[]" if _nested(kind) and pa.types.is_decimal(kind.value_type) else None


def _fixed_run(data: Bytes, at: Places, kinds: Sequence[pa.DataType]) -> tuple[list[pa.Array], Places]:
    """The leading columns of fixed width, read at once, and where the next one starts; none if any value is null."""
    words = [_WORDS.get(kind) for kind in kinds]
    words = words[: words.index(None)] if None in words else words
    layout = np.dtype([field for n, word in enumerate(words) for field in ((f"l{n}", _LENGTH), (f"v{n}", word))])
    if len(words) < 2 or not len(at) or int(at.max()) + layout.itemsize > len(data):
        return [], at
    rows = _sliding(data, layout)[at]
    if not all((rows[f"l{n}"] == word.itemsize).all() for n, word in enumerate(words) if word is not None):
        return [], at
    return [_column(rows[f"v{n}"], kinds[n], None) for n in range(len(words))], at + layout.itemsize


def _decoded(data: Bytes, at: Places, width: Places, kind: pa.DataType) -> pa.Array:
    """The values that start at `at`; a negative width is a null."""
    null = width < 0
    mask = null if null.any() else None
    if _nested(kind):
        return _decoded_lists(data, at, null, kind)
    if pa.types.is_decimal(kind):
        return _decoded(data, at, width, pa.string()).cast(kind)
    if _varies(kind):
        return _decoded_bytes(data, at, np.maximum(width, 0), mask, kind)
    return _column(_numbers(data, at if mask is None else np.where(null, 0, at), _WORDS[kind]), kind, mask)


def _column(words: NDArray[Any], kind: pa.DataType, null: Mask | None) -> pa.Array:
    """Big-endian words of Postgres as a column."""
    values = words.astype(words.dtype.newbyteorder("="))
    if pa.types.is_boolean(kind):
        return pa.array(values != 0, mask=null)
    if pa.types.is_timestamp(kind):
        values -= _EPOCH_US
    if pa.types.is_date32(kind):
        values -= np.int32(_EPOCH_DAYS)
    validity = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(values)])


def _numbers(data: Bytes, at: Places, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers from anywhere in `data`. A place beyond its end stands for nothing, and may give anything."""
    if not len(at):
        return np.zeros(0, dtype=dtype)
    return _sliding(data, dtype)[np.minimum(at, len(data) - dtype.itemsize)]


def _sliding(data: Bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`data` read as `dtype` from each of its bytes on."""
    return np.ndarray((len(data) - dtype.itemsize + 1,), dtype=dtype, buffer=data, strides=(1,))


def _decoded_bytes(data: Bytes, at: Places, width: Places, mask: Mask | None, kind: pa.DataType) -> pa.Array:
    ends = np.cumsum(width)
    total = int(ends[-1]) if len(ends) else 0
    if total > np.iinfo(np.int32).max:
        raise StoreError(f"one batch of rows takes {total:,} bytes; use smaller batches")
    starts = ends - width
    values = data[np.repeat(at - starts, width) + np.arange(total)]
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int32))
    validity = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(kind, len(at), [validity, offsets, pa.py_buffer(values)])


def _decoded_lists(data: Bytes, at: Places, null: Mask, kind: pa.DataType) -> pa.Array:
    """Arrays: dimensions, flags, type, length, lower bound, then the elements as fields are written."""
    filled = ~null & (_numbers(data, at, _LENGTH) > 0)
    lengths = np.where(filled, _numbers(data, at + 12, _LENGTH), 0).astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    starts = ends - lengths
    element = kind.value_type
    if element in _WORDS:
        width = _WORDS[element].itemsize
        within = np.arange(total) - np.repeat(starts, lengths)
        places = np.repeat(at + 24, lengths) + within * (width + 4)
        values = _decoded(data, places, np.full(total, width), element)
    else:
        places, widths = _walked(data, at + 20, lengths, starts, total)
        values = _decoded(data, places, widths, element)
    mask = pa.array(null) if null.any() else None
    if pa.types.is_fixed_size_list(kind):
        return _fixed_lists(values, null, lengths, kind)
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]).astype(np.int32)), values, type=kind, mask=mask
    )


def _fixed_lists(values: pa.Array, null: Mask, lengths: Places, kind: pa.DataType) -> pa.Array:
    if not (lengths[~null] == kind.list_size).all():
        raise StoreError(f"history holds a vector of another length than {kind.list_size}; somebody wrote it by hand")
    if not null.any():
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    # Arrow keeps room for the elements of a null.
    room = np.repeat(np.cumsum(~null) - 1, kind.list_size) * kind.list_size + np.tile(
        np.arange(kind.list_size), len(null)
    )
    spread = values.take(pa.array(np.maximum(room, 0), mask=np.repeat(null, kind.list_size)))
    return pa.FixedSizeListArray.from_arrays(spread, type=kind, mask=pa.array(null))


def _walked(data: Bytes, at: Places, lengths: Places, starts: Places, total: int) -> tuple[Places, Places]:
    """(where each element's bytes start, how many there are): the n-th elements of all lists at once."""
    places, widths = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    rows = np.flatnonzero(lengths)
    at = at.copy()
    place = 0
    while len(rows):
        width = _numbers(data, at[rows], _LENGTH).astype(np.int64)
        places[starts[rows] + place], widths[starts[rows] + place] = at[rows] + 4, width
        at[rows] += 4 + width
        place += 1
        rows = rows[lengths[rows] > place]
    return places, widths
