"""Numpy columns as `Column` messages and back, for clients: needs numpy and protobuf, and nothing else of ours.

Replies are decoded a column at a time, as views of the received bytes where the type allows it.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving._pb.featurestore.serving.v1 import serving_pb2 as pb

Values = NDArray[Any]

_NUMPY: dict[int, str] = {
    pb.TYPE_KIND_INT32: "<i4",
    pb.TYPE_KIND_INT64: "<i8",
    pb.TYPE_KIND_FLOAT32: "<f4",
    pb.TYPE_KIND_FLOAT64: "<f8",
    pb.TYPE_KIND_TIMESTAMP: "<M8[us]",
    pb.TYPE_KIND_DATE: "<i4",
}
_TEXT = (pb.TYPE_KIND_STRING, pb.TYPE_KIND_BYTES)
#: Python rounds to 28 digits otherwise.
_EXACT = decimal.Context(prec=38, traps=[decimal.Inexact])
_DATE_EPOCH = date(1970, 1, 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# ---------------------------------------------------------------- replies


def valid_mask(column: pb.Column) -> NDArray[np.bool_] | None:
    """True where there is a value; None when there is one everywhere."""
    return _bits(column.validity, column.rows) if column.validity else None


def numpy_values(column: pb.Column) -> Values:
    """The values as a numpy array.

    Numbers, timestamps and dates keep their type; bool is bool; a vector is a matrix; strings, bytes, lists and
    decimals are arrays of Python objects. Null is NaN in floats, NaT in timestamps and dates, None among objects, and
    anything in integers and bools: `valid_mask` tells.
    """
    valid = valid_mask(column)
    kind = column.type.kind
    if kind == pb.TYPE_KIND_VECTOR:
        values = _fixed(column.type.element.kind, column.values, column.rows * column.type.length)
        values = values.reshape(column.rows, column.type.length)
    elif kind in _NUMPY or kind == pb.TYPE_KIND_BOOL:
        values = _fixed(kind, column.values, column.rows)
    else:
        return _objects(column, valid)
    if kind == pb.TYPE_KIND_DATE:
        values = values.astype("<M8[D]")  # numpy counts days in 64 bits
    if valid is None or values.dtype.kind not in "fM":
        return values
    values = values.copy()
    values[~valid] = np.nan if values.dtype.kind == "f" else np.datetime64("NaT")
    return values


def _fixed(kind: int, data: bytes, count: int) -> Values:
    return _bits(data, count) if kind == pb.TYPE_KIND_BOOL else np.frombuffer(data, _NUMPY[kind])


def _bits(data: bytes, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").view(np.bool_)


def _objects(column: pb.Column, valid: NDArray[np.bool_] | None) -> Values:
    """Values that numpy has no type for are made one by one, and only when asked for."""
    pieces: Sequence[Any]
    match column.type.kind:
        case pb.TYPE_KIND_DECIMAL:
            pieces = _decimals(column.values, column.type.scale)
        case pb.TYPE_KIND_LIST:
            pieces = _slices(_elements(column), column.offsets)
        case kind:
            pieces = _texts(kind, column.values, column.offsets)
    values = np.empty(column.rows, dtype=object)
    for place, piece in enumerate(pieces):
        values[place] = piece
    if valid is not None:
        values[~valid] = None
    return values


def _decimals(data: bytes, scale: int) -> list[decimal.Decimal]:
    wholes = (int.from_bytes(data[start : start + 16], "little", signed=True) for start in range(0, len(data), 16))
    return [decimal.Decimal(whole).scaleb(-scale, _EXACT) for whole in wholes]


def _elements(column: pb.Column) -> Values:
    element = column.type.element.kind
    if element in _TEXT:
        return np.array(_texts(element, column.values, column.element_offsets), dtype=object)
    return _fixed(element, column.values, int(np.frombuffer(column.offsets, "<i4")[-1]))


def _texts(kind: int, data: bytes, offsets: bytes) -> list[Any]:
    pieces = _slices(data, offsets)
    return [str(piece, "utf-8") for piece in pieces] if kind == pb.TYPE_KIND_STRING else pieces


def _slices(data: Any, offsets: bytes) -> list[Any]:
    ends = np.frombuffer(offsets, "<i4").tolist()
    return [data[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


# ---------------------------------------------------------------- requests


def encode_column(name: str, values: Any) -> pb.Column:
    """A column from an Arrow array, a numpy array or a Python sequence (None is null); TypeError says what will not do.

    Python ints travel as int64, floats as float64, str, bytes, bool, date and aware datetime as what they are.
    """
    if hasattr(values, "to_numpy") and hasattr(values, "type"):  # Arrow, without importing it
        return _from_arrow(name, values)
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return _from_numpy(name, values, None)
    return _from_sequence(name, [value.item() if isinstance(value, np.generic) else value for value in values])


def _from_sequence(name: str, values: list[Any]) -> pb.Column:
    valid = None
    if None in values:
        valid = np.fromiter((value is not None for value in values), np.bool_, len(values))
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if len(kinds) > 1:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{name!r} mixes {listed}; give values of one type")
    kind = kinds.pop() if kinds else int
    if kind not in _PYTHON:
        raise TypeError(f"{name!r} holds {kind.__name__}; give {', '.join(known.__name__ for known in _PYTHON)}")
    empty, write = _PYTHON[kind]
    return write(name, [empty if value is None else value for value in values], valid)


def _from_numpy(name: str, values: Values, valid: NDArray[np.bool_] | None) -> pb.Column:
    match values.dtype.kind:
        case "b":
            kind, data = pb.TYPE_KIND_BOOL, np.packbits(values, bitorder="little")
        case "i" | "u":
            if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
                raise TypeError(f"{name!r} holds integers beyond int64")
            narrow = values.dtype.itemsize < 8 and values.dtype != np.uint32
            kind, data = (
                (pb.TYPE_KIND_INT32, values.astype("<i4")) if narrow else (pb.TYPE_KIND_INT64, values.astype("<i8"))
            )
        case "f" if values.dtype.itemsize in (4, 8):
            wide = values.dtype.itemsize == 8
            kind, data = (
                (pb.TYPE_KIND_FLOAT64, values.astype("<f8")) if wide else (pb.TYPE_KIND_FLOAT32, values.astype("<f4"))
            )
        case "M":
            missing = np.isnat(values)
            valid = ~missing if missing.any() else valid
            days = np.datetime_data(values.dtype) == ("D", 1)
            kind, data = (
                (pb.TYPE_KIND_DATE, values.astype("<M8[D]").view("<i8").astype("<i4"))
                if days
                else (pb.TYPE_KIND_TIMESTAMP, _microseconds(name, values))
            )
        case "U" | "S":
            return _from_sequence(name, values.tolist())
        case _:
            raise TypeError(f"{name!r} is an array of {values.dtype}; give numbers, bools, text, bytes or datetimes")
    return pb.Column(
        name=name, type=pb.DataType(kind=kind), rows=len(values), values=data.tobytes(), validity=_bitmap(valid)
    )


def _microseconds(name: str, values: Values) -> Values:
    exact = values.astype("<M8[us]")
    if bool((exact.astype(values.dtype) != values)[~np.isnat(values)].any()):
        raise TypeError(f"{name!r} holds timestamps finer than microseconds")
    return exact


def _from_text(kind: pb.TypeKind, encode: Callable[[Any], bytes]) -> Callable[..., pb.Column]:
    def write(name: str, values: list[Any], valid: NDArray[np.bool_] | None) -> pb.Column:
        pieces = [encode(value) for value in values]
        offsets = np.zeros(len(pieces) + 1, "<i4")
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return pb.Column(
            name=name,
            type=pb.DataType(kind=kind),
            rows=len(pieces),
            values=b"".join(pieces),
            offsets=offsets.tobytes(),
            validity=_bitmap(valid),
        )

    return write


def _from_numbers(dtype: str) -> Callable[..., pb.Column]:
    def write(name: str, values: list[Any], valid: NDArray[np.bool_] | None) -> pb.Column:
        try:
            return _from_numpy(name, np.array(values, dtype), valid)
        except OverflowError as error:
            raise TypeError(f"{name!r} holds integers beyond int64") from error

    return write


def _from_datetimes(name: str, values: list[datetime], valid: NDArray[np.bool_] | None) -> pb.Column:
    if any(value.tzinfo is None for value in values):
        raise TypeError(f"{name!r} holds datetimes without a time zone; add one")
    us = np.array([value.astimezone(UTC).replace(tzinfo=None) for value in values], "<M8[us]")
    return _from_numpy(name, us, valid)


_PYTHON: Mapping[type, tuple[Any, Callable[..., pb.Column]]] = {
    bool: (False, _from_numbers("?")),
    int: (0, _from_numbers("<i8")),
    float: (0.0, _from_numbers("<f8")),
    str: ("", _from_text(pb.TYPE_KIND_STRING, str.encode)),
    bytes: (b"", _from_text(pb.TYPE_KIND_BYTES, bytes)),
    datetime: (_EPOCH, _from_datetimes),
    date: (_DATE_EPOCH, _from_numbers("<M8[D]")),
}
"""Python type -> what stands under a null, and what writes the column."""


def _from_arrow(name: str, values: Any) -> pb.Column:
    """An Arrow array, by its own buffers."""
    from serving import columns

    array, dtype = columns.canonical(values, repr(name))
    column = pb.Column(name=name, type=columns.encode_type(dtype))
    columns.encode_column(column, array, dtype)
    return column


def _bitmap(valid: NDArray[np.bool_] | None) -> bytes:
    return b"" if valid is None else np.packbits(valid, bitorder="little").tobytes()
