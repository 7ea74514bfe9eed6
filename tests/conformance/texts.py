"""Values of the corpus as text and back, by declared type: exact both ways, so that a file shows what a store holds.

docs/conformance.md lists the forms.
"""

from __future__ import annotations

import math
import re
import struct
from datetime import date, datetime
from decimal import Decimal as Number
from typing import Any

import numpy as np

from featurestore.clock import aware_utc
from featurestore.dtypes import FLOATS, INTEGERS, Bool, Bytes, Date, Decimal, DType, Float32, List, String, Vector
from featurestore.errors import InputError

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d:\d\d)?")
_DURATION = re.compile(r"(\d+)(d|h|m|s|ms|us)")
_UNIT_US = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}
_FORMS: dict[DType, tuple[str, str]] = {
    Bool: (r"true|false", "true or false"),
    Bytes: (r"([0-9a-f]{2})*", "lower-case hex, two digits a byte"),
    Date: (r"\d{4}-\d\d-\d\d", "YYYY-MM-DD"),
}
_WHOLE = (r"-?\d+", "digits")
_FLOAT = (
    r"-?\d+(\.\d+)?(e[+-]?\d+)?|NaN|-?Infinity|bits:([0-9a-f]{8}|[0-9a-f]{16})",
    "a number, NaN, or bits: and hex",
)
_NUMBER = (r"-?\d+(\.\d+)?", "digits with or without a point")


def parse_value(text: object, dtype: DType) -> Any:
    """The Python value of a text (a list of texts for lists and vectors); None stays None, ValueError otherwise."""
    match dtype:
        case List(element) | Vector(element):
            if text is None:
                return None
            if not isinstance(text, list):
                raise ValueError(f"{text!r} is not {dtype}; write its elements in brackets")
            return [parse_value(item, element) for item in text]
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not {dtype}; write one value")  # noqa: TRY004 - all faults of a file are alike
    return _scalar(text, dtype)


def _scalar(text: str, dtype: DType) -> Any:
    match dtype:
        case Decimal():
            return Number(_formed(text, dtype, _NUMBER))
    if dtype in INTEGERS:
        return int(_formed(text, dtype, _WHOLE))
    if dtype in FLOATS:
        return _float(_formed(text, dtype, _FLOAT), dtype)
    if dtype in _FORMS:
        _formed(text, dtype, _FORMS[dtype])
    if dtype == Bool:
        return text == "true"
    if dtype == Bytes:
        return bytes.fromhex(text)
    if dtype == Date:
        return date.fromisoformat(text)
    return text if dtype == String else parse_zoned(text)


def _formed(text: str, dtype: DType, form: tuple[str, str]) -> str:
    pattern, words = form
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{text!r} is not {dtype}; write {words}")
    return text


def _float(text: str, dtype: DType) -> float:
    if text.startswith("bits:"):
        data = bytes.fromhex(text.removeprefix("bits:"))
        return float(struct.unpack(">f" if len(data) == 4 else ">d", data)[0])
    return float(np.float32(float(text))) if dtype == Float32 else float(text)


def text_of(value: Any, dtype: DType) -> Any:
    """A value as texts that differ wherever its bits do; null is None."""
    match dtype:
        case List(element) | Vector(element):
            return None if value is None else [text_of(item, element) for item in value]
        case Decimal(_, scale):
            return None if value is None else f"{value:.{scale}f}"
    match value:
        case None | str():
            return value
        case bool():
            return str(value).lower()
        case bytes():
            return value.hex()
        case float():
            return _float_text(value)
        case datetime():
            return value.isoformat(timespec="microseconds").replace("+00:00", "Z")
        case _:
            return str(value)


def _float_text(value: float) -> str:
    bits = struct.pack(">d", value)
    if math.isnan(value):
        return "NaN" if bits == struct.pack(">d", math.nan) else f"bits:{bits.hex()}"
    return repr(value).replace("inf", "Infinity")


def parse_zoned(text: str) -> datetime:
    """A time with its offset, in UTC; ValueError when it has none."""
    if not (found := _TIME.fullmatch(text)) or not found["zone"]:
        raise ValueError(f"{text!r} is not a time with an offset; write it as 2013-12-01T09:00:00.000001Z")
    try:
        return aware_utc(datetime.fromisoformat(text), "time")
    except InputError as error:
        raise ValueError(str(error)) from error


def parse_local(text: str) -> datetime:
    """A time without offset, as clocks on a wall show it; ValueError when it has one."""
    if not (found := _TIME.fullmatch(text)) or found["zone"]:
        raise ValueError(f"{text!r} is not a local time; the view has a timezone, so write it as 2013-11-03T01:30")
    return datetime.fromisoformat(text)


def parse_duration_us(text: str) -> int:
    """Microseconds of a text like `1h 30m` or `1us`."""
    parts = [_DURATION.fullmatch(part) for part in text.split(" ")]
    if not all(parts):
        raise ValueError(f"{text!r} is not a duration; write it as 90m, or 1d 2h 1us (d, h, m, s, ms, us)")
    return sum(int(part[1]) * _UNIT_US[part[2]] for part in parts if part)
