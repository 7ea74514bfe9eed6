"""Columns of a reply as numpy arrays, a column at a time: views of the received bytes where the type allows it."""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import Mask, Values

_NUMPY: dict[int, np.dtype[Any]] = {
    pb.TYPE_KIND_INT32: np.dtype("<i4"),
    pb.TYPE_KIND_INT64: np.dtype("<i8"),
    pb.TYPE_KIND_FLOAT32: np.dtype("<f4"),
    pb.TYPE_KIND_FLOAT64: np.dtype("<f8"),
    pb.TYPE_KIND_TIMESTAMP: np.dtype("<M8[us]"),
}
_MISSING: dict[str, Any] = {"f": np.nan, "M": np.datetime64("NaT")}
_TEXT = (pb.TYPE_KIND_STRING, pb.TYPE_KIND_BYTES)
#: Python rounds to 28 digits otherwise.
_EXACT = decimal.Context(prec=38, traps=[decimal.Inexact, decimal.InvalidOperation])


class Decoded(NamedTuple):
    """A column of a reply. `valid` is None where every row has a value."""

    name: str
    values: Values
    valid: Mask | None


def decode_columns(columns: Sequence[pb.Column], rows: int) -> list[Decoded]:
    """The columns, of so many rows, as numpy arrays; ValueError, LookupError or ArithmeticError where they are not.

    Not to be written to, since several may be parts of one block. Numbers, timestamps and dates keep their type; bool
    is bool; a vector is a matrix; strings, bytes, lists and decimals are arrays of Python objects. Null is NaN in
    floats, NaT in timestamps and dates, None among objects, and anything in integers and bools: `valid` tells.
    """
    valid = _masks(columns, rows)
    values = [_values(column) for column in columns]
    if list(map(len, values)).count(rows) != len(values):
        raise ValueError(f"columns with values for another number than {rows} rows")
    _fill(values, valid)
    names = [column.name for column in columns]
    return [Decoded(*parts) for parts in zip(names, values, valid, strict=True)]


def _masks(columns: Sequence[pb.Column], rows: int) -> list[Mask | None]:
    """All bitmaps unpacked in one call."""
    bitmaps = [column.validity for column in columns]
    if not any(bitmaps):
        return [None] * len(bitmaps)
    size = -(-rows // 8)
    if not {0, size}.issuperset(map(len, bitmaps)):
        raise ValueError(f"validity of another number than {rows} rows")
    packed = np.frombuffer(b"".join(bitmaps), np.uint8)
    masks = iter(np.unpackbits(packed.reshape(-1, size), axis=1, count=rows, bitorder="little").view(np.bool_))
    return [next(masks) if bitmap else None for bitmap in bitmaps]


def _fill(values: list[Values], valid: list[Mask | None]) -> None:
    """Put what stands for null where it belongs: the columns of one type and shape together, as one block."""
    alike: dict[tuple[np.dtype[Any], tuple[int, ...]], list[int]] = {}
    for place, mask in enumerate(valid):
        if mask is not None and values[place].dtype.kind in "fMO":
            alike.setdefault((values[place].dtype, values[place].shape), []).append(place)
    for (dtype, _), places in alike.items():
        block = np.array([values[place] for place in places])
        block[~np.array([valid[place] for place in places])] = _MISSING.get(dtype.kind)
        for place, column in zip(places, block, strict=True):
            values[place] = column


def _values(column: pb.Column) -> Values:
    kind = column.type.kind
    if kind in _NUMPY:
        return np.frombuffer(column.values, _NUMPY[kind])
    if kind in _TEXT:
        return np.array(_texts(kind, column.values, column.offsets, column.rows), dtype=object)
    if kind == pb.TYPE_KIND_LIST:
        return _objects(_slices(_elements(column), column.offsets, column.rows), column.rows)
    if kind == pb.TYPE_KIND_VECTOR:
        if column.type.length < 1:
            raise ValueError("vectors of no length")
        count = column.rows * column.type.length
        return _numbers(column.type.element, column.values, count).reshape(column.rows, column.type.length)
    return _numbers(column.type, column.values, column.rows)


def _numbers(kind: pb.DataType, data: bytes, count: int) -> Values:
    match kind.kind:
        case pb.TYPE_KIND_BOOL:
            _check_size(data, -(-count // 8))
            bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")
            return bits.view(np.bool_)
        case pb.TYPE_KIND_DATE:
            return np.frombuffer(data, "<i4").astype("<M8[D]")  # numpy counts days in 64 bits
        case pb.TYPE_KIND_DECIMAL:
            _check_size(data, 16 * count)
            return _objects(_decimals(data, kind.scale), count)
        case number:
            return np.frombuffer(data, _NUMPY[number])


def _elements(column: pb.Column) -> Values:
    element, count = column.type.element, int(np.frombuffer(column.offsets, "<i4")[-1]) if column.offsets else 0
    if element.kind in _TEXT:
        return np.array(_texts(element.kind, column.values, column.element_offsets, count), dtype=object)
    return _numbers(element, column.values, count)


def _objects(pieces: Iterable[Any], count: int) -> Values:
    """An array of what numpy would take apart."""
    values = np.empty(count, dtype=object)
    for place, piece in enumerate(pieces):
        values[place] = piece
    return values


def _decimals(data: bytes, scale: int) -> Iterable[decimal.Decimal]:
    wholes = (int.from_bytes(data[start : start + 16], "little", signed=True) for start in range(0, len(data), 16))
    return (decimal.Decimal(whole).scaleb(-scale, _EXACT) for whole in wholes)


def _texts(kind: int, data: bytes, offsets: bytes, count: int) -> list[Any]:
    if kind == pb.TYPE_KIND_BYTES:
        return _slices(data, offsets, count)
    whole = data.decode()
    if len(whole) == len(data):  # ASCII: a character is a byte
        return _slices(whole, offsets, count)
    return [str(piece, "utf-8") for piece in _slices(data, offsets, count)]


def _slices(data: Any, offsets: bytes, count: int) -> list[Any]:
    edges = np.frombuffer(offsets, "<i4").tolist()
    if not count and not edges:
        return []
    # Sorting what is sorted is quicker than numpy for a request's few rows.
    if len(edges) != count + 1 or edges[0] != 0 or edges[-1] != len(data) or edges != sorted(edges):
        raise ValueError(f"offsets that do not cut {len(data)} into {count} pieces")
    return [data[start:end] for start, end in pairwise(edges)]


def _check_size(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes of values, where {expected} are needed")
