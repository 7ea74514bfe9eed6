"""Whether a Python value written in a definition is a value of a dtype, exactly: no coercion, nothing cut."""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from featurestore.dtypes import (
    FLOATS,
    INTEGERS,
    Bool,
    Bytes,
    Date,
    Decimal,
    DType,
    Float32,
    Int32,
    List,
    String,
    Timestamp,
    Vector,
)

FLOAT32_MAX = 3.4028234663852886e38


def value_fault(value: Any, dtype: DType) -> str | None:
    """Why `value` is no value of `dtype`, as the end of a sentence, or None."""
    match dtype:
        case Decimal():
            return _decimal_fault(value, dtype)
        case List(element):
            return _items_fault(value, element, None)
        case Vector(element, length):
            return _items_fault(value, element, length)
    if dtype in INTEGERS:
        return _integer_fault(value, dtype)
    if dtype in FLOATS:
        return _float_fault(value, dtype)
    if dtype == String:
        return _string_fault(value)
    if dtype == Timestamp:
        return _timestamp_fault(value)
    if dtype == Date:
        return None if isinstance(value, date) and not isinstance(value, datetime) else "is not a datetime.date"
    assert dtype in (Bool, Bytes)
    kind = bool if dtype == Bool else bytes
    return None if isinstance(value, kind) else f"is not a {kind.__name__}"


def _integer_fault(value: Any, dtype: DType) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return "is not an int"
    limit = 2**31 if dtype == Int32 else 2**63
    return None if -limit <= value < limit else f"does not fit {dtype}"


def _float_fault(value: Any, dtype: DType) -> str | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "is not a float"
    try:
        number = float(value)
    except OverflowError:
        return f"does not fit {dtype}"
    too_large = dtype == Float32 and math.isfinite(number) and abs(number) > FLOAT32_MAX
    return f"does not fit {dtype}" if too_large else None


def _decimal_fault(value: Any, dtype: Decimal) -> str | None:
    if not isinstance(value, (int, decimal.Decimal)) or isinstance(value, bool):
        return "is not a decimal.Decimal"
    number = decimal.Decimal(value)
    if not number.is_finite():
        return f"does not fit {dtype}"
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).lstrip("0")
    scale = exponent + len(text) - len(text.rstrip("0"))  # zeros at the end need no place
    fits = not text or (-scale <= dtype.scale and len(text) + exponent <= dtype.precision - dtype.scale)
    return None if fits else f"does not fit {dtype} exactly"


def _string_fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return "is not a str"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return "holds U+0000" if "\0" in value else None


def _timestamp_fault(value: Any) -> str | None:
    if not isinstance(value, datetime):
        return "is not a datetime"
    return "has no time zone" if value.tzinfo is None else None


def _items_fault(value: Any, element: DType, length: int | None) -> str | None:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return "is not a list"
    if length is not None and len(value) != length:
        return f"has {len(value)} elements, not {length}"
    faults = (fault for item in value if (fault := value_fault(item, element)))
    return next((f"holds an element that {fault}" for fault in faults), None)
