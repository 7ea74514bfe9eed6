"""JSON values as columns and back, exact in both directions (docs/rest.md says how each type is written).

What a JSON number cannot carry without loss travels as text: NaN, infinities, int64 beyond 2^53, decimals. Work is per
value here: REST is for people and scripts, programs that hurry use gRPC.
"""

from __future__ import annotations

import base64
import decimal
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.clock import parse_instant
from featurestore.dtypes import (
    FLOATS,
    INTEGERS,
    Bool,
    Bytes,
    Date,
    Decimal,
    DType,
    Float32,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.errors import InputError

#: The integers that every reader of JSON keeps, since many read numbers as float64.
SAFE_INTEGER_MAX = 2**53 - 1
NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
#: No number that fits a type is longer.
_NUMBER_CHARS_MAX = 64

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?([Zz]|[+-].*)")


# ---------------------------------------------------------------- requests


def columns_from_json(
    columns: Mapping[str, Sequence[Any]], dtypes: Mapping[str, DType], what: str = "entity"
) -> dict[str, pa.Array]:
    """Columns of JSON values in the Arrow types of `dtypes`; InputError says in which row a value will not do."""
    return {name: _column(f"{what} {name!r}", values, dtypes[name]) for name, values in columns.items()}


def _column(what: str, values: Sequence[Any], dtype: DType) -> pa.Array:
    read, wanted = _reader(dtype)
    read_values = []
    for row, value in enumerate(values):
        try:
            read_values.append(None if value is None else read(value))
        except (ValueError, TypeError, ArithmeticError, InputError) as error:
            raise InputError(f"{what}, row {row}: a {dtype} is written as {wanted}") from error
    try:
        return pa.array(read_values, arrow_type(dtype))
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} holds values that are no {dtype}: {error}") from error


def _reader(dtype: DType) -> tuple[Callable[[Any], Any], str]:
    """What reads one JSON value of a type, and how such values are written."""
    match dtype:
        case List(element) | Vector(element):
            read, wanted = _reader(element)
            return lambda value: [read(item) for item in _of(list, value)], f"an array, each element {wanted}"
        case Decimal():
            return _decimal, 'a string of digits, as "12.50"'
        case _ if dtype in INTEGERS:
            return _integer, 'a whole number, or the same as a string, as "9007199254740993"'
        case _ if dtype in FLOATS:
            narrow = dtype == Float32
            return lambda value: _float(value, narrow), 'a number within its range, or "NaN", "Infinity", "-Infinity"'
    return _READERS[dtype]


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:  # True is an int, but not here
        raise TypeError
    return value


def _integer(value: Any) -> int:
    if type(value) is str and _INTEGER.fullmatch(value):
        return int(value)
    return _of(int, value)


def _float(value: Any, narrow: bool) -> float:
    """The nearest value of the width: decimal text has none of its own."""
    if type(value) is str:
        return NON_FINITE[value] if value in NON_FINITE else _of(float, value)
    number = float(_of(int, value) if type(value) is int else _of(float, value))
    if type(value) is int and int(number) != value:
        raise ValueError
    if narrow:
        with np.errstate(over="ignore"):
            number = float(np.float32(number))
    if not np.isfinite(number):
        raise ValueError
    return number


def _decimal(value: Any) -> decimal.Decimal:
    if type(value) is str and len(value) <= _NUMBER_CHARS_MAX:
        number = decimal.Decimal(value)
        if not number.is_finite():
            raise ValueError
        return number
    return decimal.Decimal(_of(int, value))


def _instant(value: Any) -> Any:
    if not _INSTANT.fullmatch(_of(str, value)):
        raise ValueError
    return parse_instant(value, "timestamp")


def _date(value: Any) -> date:
    if not _DATE.fullmatch(_of(str, value)):
        raise ValueError
    return date.fromisoformat(value)


_READERS: dict[DType, tuple[Callable[[Any], Any], str]] = {
    Bool: (lambda value: _of(bool, value), "true or false"),
    String: (lambda value: _of(str, value), "a string"),
    Bytes: (lambda value: base64.b64decode(_of(str, value), validate=True), "a string in base64"),
    Timestamp: (_instant, 'a string like "2013-12-01T05:00:00.000000Z", in microseconds, with its time zone'),
    Date: (_date, 'a string like "2013-12-01"'),
}


# ---------------------------------------------------------------- replies


def json_values(array: pa.Array, dtype: DType) -> list[Any]:
    """The values of a column as JSON has them."""
    write = _writer(dtype)
    return [None if value is None else write(value) for value in array.to_pylist()]


def _writer(dtype: DType) -> Callable[[Any], Any]:
    match dtype:
        case List(element) | Vector(element):
            write = _writer(element)
            return lambda value: [write(item) for item in value]
        case Decimal():
            return lambda value: format(value, "f")
        case _ if dtype in INTEGERS:
            return integer_value
        case _ if dtype in FLOATS:
            return float_value
    return _WRITERS[dtype]


def integer_value(value: int) -> int | str:
    """An integer as every reader of JSON keeps it."""
    return value if -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX else str(value)


def float_value(value: float) -> float | str:
    """A float, or the text of what JSON has no number for."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


_WRITERS: dict[DType, Callable[[Any], Any]] = {
    Bool: bool,
    String: str,
    Bytes: lambda value: base64.b64encode(value).decode("ascii"),
    Timestamp: lambda value: value.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    Date: date.isoformat,
}


def iso_instants(us: NDArray[np.int64]) -> list[str]:
    """Microseconds since the epoch as ISO 8601 text."""
    return np.datetime_as_string(np.ascontiguousarray(us).view("<M8[us]"), timezone="UTC").tolist()
