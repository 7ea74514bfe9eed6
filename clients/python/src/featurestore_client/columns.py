"""Columns of a request written as messages: from Python sequences, numpy arrays and, where asked for, Arrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb

Values = NDArray[Any]
Mask = NDArray[np.bool_]

_INT64 = np.iinfo(np.int64)
_DATE_EPOCH = date(1970, 1, 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def encode_column(name: str, values: Any) -> pb.Column:
    """A column from an Arrow array, a numpy array or a Python sequence (None is null); TypeError says what will not do.

    Python ints travel as int64, floats as float64, str, bytes, bool, date and aware datetime as what they are.
    """
    if hasattr(values, "to_numpy") and hasattr(values, "type"):  # Arrow, without importing it
        from featurestore_client.arrow_columns import from_arrow

        return from_arrow(name, values)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise TypeError(f"{name!r} is an array of {values.ndim} dimensions; give one, with a value per row")
        return _from_sequence(name, values.tolist()) if values.dtype.kind in "OUS" else _from_numpy(name, values)
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name!r} is one value; give a sequence with one value per row")
    return _from_sequence(name, list(values))


def _from_sequence(name: str, values: list[Any]) -> pb.Column:
    kinds = set(map(type, values))
    if any(issubclass(kind, np.generic) for kind in kinds):
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        kinds = set(map(type, values))
    valid = None
    if NoneType in kinds:
        valid = np.fromiter((value is not None for value in values), np.bool_, len(values))
        kinds.remove(NoneType)
    if len(kinds) > 1:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{name!r} mixes {listed}; give values of one type")
    kind = kinds.pop() if kinds else int
    if kind not in _PYTHON:
        raise TypeError(f"{name!r} holds {kind.__name__}; give {', '.join(known.__name__ for known in _PYTHON)}")
    empty, write = _PYTHON[kind]
    return write(name, values if valid is None else [empty if value is None else value for value in values], valid)


def _from_numpy(name: str, values: Values, valid: Mask | None = None) -> pb.Column:
    match values.dtype.kind:
        case "b":
            kind, data = pb.TYPE_KIND_BOOL, np.packbits(values, bitorder="little")
        case "i" | "u":
            if values.dtype == np.uint64 and values.size and values.max() > _INT64.max:
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


def _from_texts(name: str, values: list[str], valid: Mask | None) -> pb.Column:
    whole = "".join(values)
    try:
        if whole.isascii():
            return _text_column(name, pb.TYPE_KIND_STRING, whole.encode(), list(map(len, values)), valid)
        pieces = [value.encode() for value in values]
    except UnicodeEncodeError as error:
        raise TypeError(f"{name!r} holds text that is not Unicode: {error}") from error
    return _text_column(name, pb.TYPE_KIND_STRING, b"".join(pieces), list(map(len, pieces)), valid)


def _from_bytes(name: str, values: list[bytes], valid: Mask | None) -> pb.Column:
    return _text_column(name, pb.TYPE_KIND_BYTES, b"".join(values), list(map(len, values)), valid)


def _text_column(name: str, kind: pb.TypeKind, data: bytes, lengths: list[int], valid: Mask | None) -> pb.Column:
    offsets = np.zeros(len(lengths) + 1, "<i4")
    np.cumsum(lengths, out=offsets[1:])
    return pb.Column(
        name=name,
        type=pb.DataType(kind=kind),
        rows=len(lengths),
        values=data,
        offsets=offsets.tobytes(),
        validity=_bitmap(valid),
    )


def _from_numbers(dtype: str) -> Callable[..., pb.Column]:
    def write(name: str, values: list[Any], valid: Mask | None) -> pb.Column:
        try:
            return _from_numpy(name, np.array(values, dtype), valid)
        except OverflowError as error:
            raise TypeError(f"{name!r} holds integers beyond int64") from error

    return write


def _from_datetimes(name: str, values: list[datetime], valid: Mask | None) -> pb.Column:
    if any(value.tzinfo is None for value in values):
        raise TypeError(f"{name!r} holds datetimes without a time zone; add one")
    us = np.array([value.astimezone(UTC).replace(tzinfo=None) for value in values], "<M8[us]")
    return _from_numpy(name, us, valid)


_PYTHON: Mapping[type, tuple[Any, Callable[..., pb.Column]]] = {
    bool: (False, _from_numbers("?")),
    int: (0, _from_numbers("<i8")),
    float: (0.0, _from_numbers("<f8")),
    str: ("", _from_texts),
    bytes: (b"", _from_bytes),
    datetime: (_EPOCH, _from_datetimes),
    date: (_DATE_EPOCH, _from_numbers("<M8[D]")),
}
"""Python type -> what stands under a null, and what writes the column."""


def _bitmap(valid: Mask | None) -> bytes:
    return b"" if valid is None else np.packbits(valid, bitorder="little").tobytes()
