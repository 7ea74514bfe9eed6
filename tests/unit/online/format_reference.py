"""docs/online-format.md once more, value by value in plain Python: slow, obvious, and the judge of the fast one."""

from __future__ import annotations

import datetime
import decimal
import struct
from collections.abc import Sequence
from typing import Any

from featurestore.clock import to_us
from featurestore.dtypes import (
    INTEGERS,
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
)

_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_MASK = (1 << 64) - 1


def key(dtypes: Sequence[DType], values: Sequence[Any]) -> bytes:
    return b"\x01" + b"".join(_key_part(dtype, value) for dtype, value in zip(dtypes, values, strict=True))


def _key_part(dtype: DType, value: Any) -> bytes:
    if dtype in INTEGERS:
        return b"i" + struct.pack(">Q", value + (1 << 63))
    if dtype == Date:
        return b"d" + struct.pack(">I", value.toordinal() - _EPOCH_DAY + (1 << 31))
    if dtype == Bool:
        return b"b" + bytes([value])
    data = value.encode() if dtype == String else value
    return (b"s" if dtype == String else b"x") + struct.pack(">I", len(data)) + data


def key_hash(key: bytes) -> int:
    state = (len(key) * 0xC2B2AE3D27D4EB4F & _MASK) ^ 0x9E3779B97F4A7C15
    for first in range(0, len(key), 8):
        word = int.from_bytes(key[first : first + 8], "little")
        state = (state ^ word) * 0xFF51AFD7ED558CCD & _MASK
        state ^= state >> 32
    return (state ^ state >> 29) * 0xC4CEB9FE1A85EC53 & _MASK


def bucket(key: bytes) -> int:
    return key_hash(key) >> 52


def row(order: Sequence[int], schema_id: int, dtypes: Sequence[DType], values: Sequence[Any]) -> bytes:
    order_key = b"".join(struct.pack(">Q", number + (1 << 63)) for number in order)
    return order_key + b"\x01" + struct.pack("<I", schema_id) + payload(dtypes, values)


def payload(dtypes: Sequence[DType], values: Sequence[Any]) -> bytes:
    bitmap = bytearray(-(-len(dtypes) // 8))
    fixed, variable = b"", b""
    for index, (dtype, value) in enumerate(zip(dtypes, values, strict=True)):
        if value is None:
            bitmap[index // 8] |= 1 << index % 8
        slots = _slots(dtype, value)
        if slots is None:
            fixed += _cell(dtype, value)
        for slot in slots or ():
            variable += slot
            fixed += struct.pack("<I", len(variable))
    return bytes(bitmap) + fixed + variable


def _cell(dtype: DType, value: Any) -> bytes:
    if value is None:
        return bytes(dtype.width)  # type: ignore[attr-defined]
    if isinstance(dtype, Vector):
        return b"".join(_cell(dtype.element, element) for element in value)
    match dtype:
        case Decimal(_, scale):
            unscaled = int(value.scaleb(scale, decimal.Context(prec=60)))
            return unscaled.to_bytes(16, "little", signed=True)
        case _ if dtype == Timestamp:
            return struct.pack("<q", to_us(value))
        case _ if dtype == Date:
            return struct.pack("<i", value.toordinal() - _EPOCH_DAY)
        case _:
            return struct.pack("<" + _FORMATS[dtype], value)


_FORMATS: dict[DType, str] = {Bool: "?", Int32: "i", Int64: "q", Float32: "f", Float64: "d"}


def _slots(dtype: DType, value: Any) -> list[bytes] | None:
    if isinstance(dtype, List):
        elements = value or []
        if dtype.element in (String, Bytes):
            texts = [_text(element) for element in elements]
            return [b"".join(struct.pack("<I", len(text)) for text in texts), b"".join(texts)]
        return [b"".join(_cell(dtype.element, element) for element in elements)]
    if dtype in (String, Bytes):
        return [_text(value)]
    return None


def _text(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
