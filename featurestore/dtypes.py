"""Logical types: what a field or join key holds, independent of any engine.

Pure Python and import-light, since definitions are made of these. Engines translate them in one table
each: `arrow_types.py`, `compiler/dialects/*.py`, `online/row_codec.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DECIMAL_PRECISION_MAX = 38
VECTOR_LENGTH_MAX = 65_536


class DType:
    """A logical type. `str(dtype)` is its canonical text, `parse_dtype` reads it back."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Scalar(DType):
    """A type without parameters; `width` is its fixed size in bytes, None where it varies."""

    name: str
    width: int | None

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name.capitalize()


@dataclass(frozen=True, slots=True)
class Decimal(DType):
    """Exact decimal numbers of at most `precision` digits, `scale` of them after the point."""

    precision: int
    scale: int = 0

    width = 16

    def __str__(self) -> str:
        return f"decimal({self.precision},{self.scale})"


@dataclass(frozen=True, slots=True)
class List(DType):
    """A list of any length of one scalar type; its elements are never null."""

    element: DType

    width = None

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True, slots=True)
class Vector(DType):
    """Exactly `length` numbers of one type, none of them null."""

    element: DType
    length: int

    @property
    def width(self) -> int:
        """Size in bytes."""
        return (self.element.width or 0) * self.length  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return f"vector<{self.element},{self.length}>"


Bool = Scalar("bool", 1)
Int32 = Scalar("int32", 4)
Int64 = Scalar("int64", 8)
Float32 = Scalar("float32", 4)
Float64 = Scalar("float64", 8)
String = Scalar("string", None)
Bytes = Scalar("bytes", None)
Timestamp = Scalar("timestamp", 8)
Date = Scalar("date", 4)

SCALARS = {str(dtype): dtype for dtype in (Bool, Int32, Int64, Float32, Float64, String, Bytes, Timestamp, Date)}
INTEGERS = frozenset({Int32, Int64})
FLOATS = frozenset({Float32, Float64})
JOIN_KEY_TYPES = (Bool, Int32, Int64, String, Bytes, Date)
VECTOR_ELEMENTS = (Bool, Int32, Int64, Float32, Float64)


def is_numeric(dtype: DType) -> bool:
    """Whether bounds make sense for it."""
    return dtype in INTEGERS or dtype in FLOATS or isinstance(dtype, Decimal)


def dtype_fault(dtype: object) -> str | None:
    """What is wrong with a declared type, or None."""
    if isinstance(dtype, Scalar):
        return None
    if isinstance(dtype, Decimal):
        if not 1 <= dtype.precision <= DECIMAL_PRECISION_MAX or not 0 <= dtype.scale <= dtype.precision:
            return f"{dtype} needs 1 <= precision <= {DECIMAL_PRECISION_MAX} and 0 <= scale <= precision"
        return None
    if isinstance(dtype, List):
        inner = "a list holds a scalar" if isinstance(dtype.element, (List, Vector)) else dtype_fault(dtype.element)
        return inner and f"{dtype}: {inner}"
    if isinstance(dtype, Vector):
        if dtype.element not in VECTOR_ELEMENTS:
            return f"{dtype}: a vector holds one of {', '.join(map(str, VECTOR_ELEMENTS))}"
        if not isinstance(dtype.length, int) or not 1 <= dtype.length <= VECTOR_LENGTH_MAX:
            return f"{dtype}: the length is from 1 to {VECTOR_LENGTH_MAX}"
        return None
    return f"{dtype!r} is not a type of featurestore"


def parse_dtype(text: str) -> DType:
    """The type whose `str` is `text`; ValueError for anything else."""
    if text in SCALARS:
        return SCALARS[text]
    if match := re.fullmatch(r"decimal\((\d+),(\d+)\)", text):
        return Decimal(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"vector<(.+),(\d+)>", text):
        return Vector(parse_dtype(match[1]), int(match[2]))
    if match := re.fullmatch(r"list<(.+)>", text):
        return List(parse_dtype(match[1]))
    raise ValueError(f"{text!r} is not a type of featurestore; known: {', '.join(SCALARS)}, decimal, list, vector")
