"""Source columns as canonical Arrow columns: exactly, value by value, or not at all.

No silent coercion: an int64 beyond 2^53 stays exact, a null does not turn ints into floats, a float never becomes an
int. NaN gets one bit pattern per width, -0.0 stays; timestamps are UTC microseconds of the years 1 to 9999; strings
are valid UTF-8 without U+0000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featurestore.dtypes import (
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
from featurestore.errors import SourceError

#: Days since 1970-01-01 of 0001-01-01 and 9999-12-31.
DATE_MIN, DATE_MAX = -719_162, 2_932_896

#: Significant binary places of a float.
MANTISSA_BITS: dict[DType, int] = {Float32: 24, Float64: 53}

#: A time of day with an offset at its end; what else ISO allows is a local time.
_ZONED = r"[ T]\d\d.*(?:Z|[+-]\d\d(?::?\d\d)?)\z"
_WHOLE = r"\A-?\d+\z"

Mask = NDArray[np.bool_]
Convert = Callable[[pa.Array], pa.Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a source writes its values: naive times in `timezone`, everything as text (CSV)."""

    timezone: str | None = None
    ambiguous: str | None = None
    text: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """A canonical column; `faults` marks values that have no exact canonical form (null in `values`)."""

    values: pa.Array
    faults: Mask | None

    @property
    def fault_mask(self) -> Mask:
        """`faults` as a mask, all False when there are none."""
        return np.zeros(len(self.values), dtype=bool) if self.faults is None else self.faults


def convert(column: pa.Array, name: str, dtype: DType, reading: Reading) -> Converted:
    """`column` as the canonical array of `dtype`; SourceError when its type can never fit."""
    plain = _plain(column)
    if pa.types.is_null(plain.type):
        return Converted(pa.nulls(len(plain), arrow_type(dtype)), None)
    if reading.text and pa.types.is_string(plain.type) and not isinstance(dtype, (List, Vector)):
        return _parsed(plain, name, dtype, reading)
    if not _fits(plain.type, dtype):
        raise SourceError(
            f"column {name!r} holds {plain.type}, declared is {dtype}; a value is never coerced: convert the column in "
            f"the source, or declare the type it has"
        )
    return _exact(plain, name, dtype, reading)


def _plain(column: pa.Array) -> pa.Array:
    """Encodings and offset widths that carry no meaning, removed."""
    if pa.types.is_dictionary(column.type):
        return _plain(column.dictionary_decode())
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    binary = (pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if any(kind(column.type) for kind in binary):
        return column.cast(pa.binary())
    return column


def _fits(kind: pa.DataType, dtype: DType) -> bool:
    """Whether values of an Arrow type can be exact values of a logical type."""
    types = pa.types
    if types.is_dictionary(kind):
        return _fits(kind.value_type, dtype)
    match dtype:
        case List(element) | Vector(element):
            lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
            return bool(lists and (types.is_null(kind.value_type) or _fits(kind.value_type, element)))
        case Decimal():
            return bool(types.is_decimal(kind) or types.is_integer(kind))
    accepted: dict[DType, tuple[Callable[[pa.DataType], bool], ...]] = {
        Bool: (types.is_boolean,),
        Int32: (types.is_integer,),
        Int64: (types.is_integer,),
        Float32: (types.is_floating, types.is_integer),
        Float64: (types.is_floating, types.is_integer),
        String: (types.is_string, types.is_large_string, types.is_string_view),
        Bytes: (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
        Timestamp: (types.is_timestamp,),
        Date: (types.is_date,),
    }
    return any(test(kind) for test in accepted[dtype])


def _exact(column: pa.Array, name: str, dtype: DType, reading: Reading) -> Converted:
    match dtype:
        case List() | Vector():
            return _lists(column, name, dtype, reading)
        case Decimal(scale=scale):
            # From integers by way of a type that holds them all: Arrow looks at the width of a type, not at values.
            wide = pa.decimal256(76, scale) if pa.types.is_integer(column.type) else column.type
            return _each(column, lambda part: part.cast(wide).cast(arrow_type(dtype)))
    if dtype == Timestamp:
        return _timestamps(column, name, reading)
    if dtype in (Float32, Float64):
        return _floats(column, dtype)
    if dtype == String:
        return _strings(column)
    if dtype == Date:
        return _ranged(_each(column, lambda part: part.cast(pa.date32())), pa.int32(), DATE_MIN, DATE_MAX)
    if dtype in (Int32, Int64):
        limits = np.iinfo(np.int32 if dtype == Int32 else np.int64)
        return _within(column, arrow_type(dtype), limits.min, limits.max)
    return _each(column, lambda part: part.cast(arrow_type(dtype)))


def _within(column: pa.Array, target: pa.DataType, low: int, high: int) -> Converted:
    """A safe cast of integers; when some lie outside of [low, high] numpy says which, quicker than halving does."""
    try:
        return Converted(column.cast(target), None)
    except pa.ArrowInvalid:
        numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
        outside = (numbers < low) | (numbers > high)
        return Converted(_without(column, outside).cast(target), outside)


def _each(column: pa.Array, change: Convert) -> Converted:
    """`change` applied at once; where Arrow refuses, the values it refuses are found by halving."""
    try:
        return Converted(change(column), None)
    except pa.ArrowInvalid:
        faults = np.zeros(len(column), dtype=bool)
        _halve(column, change, faults, 0)
        return Converted(change(_without(column, faults)), faults)


def _halve(part: pa.Array, change: Convert, faults: Mask, start: int) -> None:
    try:
        change(part)
    except pa.ArrowInvalid:
        if len(part) == 1:
            faults[start] = True
            return
        middle = len(part) // 2
        _halve(part.slice(0, middle), change, faults, start)
        _halve(part.slice(middle), change, faults, start + middle)


def _without(column: pa.Array, faults: Mask) -> pa.Array:
    # `if_else` would read the bytes of faulty strings; a gather by index does not.
    places = pa.array(np.arange(len(column)), mask=faults)
    return column.take(places)


def _merged(first: Mask | None, second: Mask | None) -> Mask | None:
    if first is None or second is None:
        return first if second is None else second
    return first | second


def _floats(column: pa.Array, dtype: DType) -> Converted:
    target = arrow_type(dtype)
    if pa.types.is_integer(column.type):
        inexact = _inexact_integers(column, MANTISSA_BITS[dtype])
        exact = column if inexact is None else _without(column, inexact)
        return Converted(exact.cast(target, safe=False), inexact)
    narrowed = column.cast(target, safe=False)
    faults = None
    if column.type.bit_width > target.bit_width:
        same = pc.or_(pc.equal(narrowed.cast(column.type), column), pc.is_nan(column)).fill_null(True)
        changed = ~same.to_numpy(zero_copy_only=False)
        faults = changed if changed.any() else None
    return Converted(one_nan(narrowed if faults is None else _without(narrowed, faults)), faults)


def _inexact_integers(column: pa.Array, bits: int) -> Mask | None:
    """Integers whose significant digits need more than `bits` binary places."""
    numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
    if numbers.dtype != np.uint64:
        numbers = np.abs(numbers.astype(np.int64))  # the least int64 wraps, and has the right bits as it is
    magnitude = numbers.astype(np.uint64)
    lowest = magnitude & (~magnitude + np.uint64(1))
    inexact = (magnitude // np.maximum(lowest, np.uint64(1))) >> np.uint64(bits) != 0
    return inexact if inexact.any() else None


def one_nan(column: pa.Array) -> pa.Array:
    """A float column whose NaNs all have the same bits (quiet, positive, no payload)."""
    nans = pc.is_nan(column)
    if not pc.any(nans).as_py():
        return column
    return pc.if_else(nans, pa.scalar(float("nan"), column.type), column)


def _strings(column: pa.Array) -> Converted:
    def checked(part: pa.Array) -> pa.Array:
        part.validate(full=True)
        return part.cast(pa.string())

    valid = _each(column, checked)
    zeros = pc.match_substring(valid.values, "\0").fill_null(False).to_numpy(zero_copy_only=False)
    if not zeros.any():
        return valid
    return Converted(_without(valid.values, zeros), _merged(valid.faults, zeros))


def _timestamps(column: pa.Array, name: str, reading: Reading) -> Converted:
    micros = _micros(column)
    if column.type.tz is not None:
        return _in_range(Converted(micros.values.cast(TIMESTAMP), micros.faults))
    if reading.timezone is None:
        raise SourceError(
            f"column {name!r} holds timestamps without a time zone; write them with one, or declare on the source "
            f'where they were written, as in timezone="America/New_York"'
        )
    zone = reading.timezone
    ambiguous = {"earlier": "earliest", "later": "latest"}.get(reading.ambiguous or "", "raise")

    def placed(part: pa.Array) -> pa.Array:
        return pc.assume_timezone(part, zone, ambiguous=ambiguous, nonexistent="raise").cast(TIMESTAMP)

    zoned = _each(micros.values, placed)
    return _in_range(Converted(zoned.values, _merged(micros.faults, zoned.faults)))


def _micros(column: pa.Array) -> Converted:
    """Timestamps in microseconds, in the zone they have; a remainder of nanoseconds is a fault."""
    target = pa.timestamp("us", column.type.tz)
    try:
        return Converted(column.cast(target), None)
    except pa.ArrowInvalid:
        numbers = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        if column.type.unit == "ns":
            faults = numbers % 1_000 != 0
        else:
            factor = 1_000 if column.type.unit == "ms" else 1_000_000
            faults = (numbers < TIMESTAMP_MIN_US // factor) | (numbers > TIMESTAMP_MAX_US // factor)
        return Converted(_without(column, faults).cast(target), faults)


def _in_range(converted: Converted) -> Converted:
    return _ranged(converted, pa.int64(), TIMESTAMP_MIN_US, TIMESTAMP_MAX_US)


def _ranged(converted: Converted, storage: pa.DataType, low: int, high: int) -> Converted:
    """Values outside the years 1 to 9999 (an engine's infinities among them) are faults."""
    numbers = converted.values.cast(storage)
    inside = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high)).fill_null(True)
    outside = ~inside.to_numpy(zero_copy_only=False)
    if not outside.any():
        return converted
    return Converted(_without(converted.values, outside), _merged(converted.faults, outside))


def _lists(column: pa.Array, name: str, dtype: List | Vector, reading: Reading) -> Converted:
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    elements = convert(column.flatten(), name, dtype.element, reading)
    parents = np.repeat(np.arange(len(column)), lengths)
    faults = np.zeros(len(column), dtype=bool)
    # An element that is null, or has no exact form, spoils its row.
    unusable = elements.fault_mask | elements.values.is_null().to_numpy(zero_copy_only=False)
    faults[parents[unusable]] = True
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if isinstance(dtype, Vector):
        faults |= ~missing & (lengths != dtype.length)
        return Converted(_vectors(elements.values, parents, missing | faults, dtype), faults if faults.any() else None)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    filled = pa.ListArray.from_arrays(pa.array(offsets), elements.values, mask=pa.array(missing))
    if not faults.any():
        return Converted(filled, None)
    return Converted(_without(filled, faults), faults)


def _vectors(elements: pa.Array, parents: NDArray[np.int64], absent: Mask, dtype: Vector) -> pa.Array:
    kept = elements.filter(pa.array(~absent[parents]))
    numbers = kept.to_numpy(zero_copy_only=False)
    filled = np.zeros((len(absent), dtype.length), dtype=numbers.dtype)
    filled[~absent] = numbers.reshape(-1, dtype.length)
    values = pa.array(filled.reshape(-1), type=arrow_type(dtype.element))
    return pa.FixedSizeListArray.from_arrays(values, dtype.length, mask=pa.array(absent))


def _parsed(column: pa.Array, name: str, dtype: DType, reading: Reading) -> Converted:
    """Text of a CSV cell: Arrow's strict ISO readers, base64 for bytes, times with an offset or a declared zone."""
    if dtype == String:
        return _strings(column)
    if dtype == Bytes:
        return _base64(column)
    if dtype == Timestamp:
        return _parsed_times(column, name, reading)
    if dtype in (Int32, Int64):
        # Arrow would read 0x1F as a number too.
        strange = _mask(pc.invert(pc.match_substring_regex(column, _WHOLE)))
        whole = _each(_without(column, strange) if strange.any() else column, lambda part: part.cast(arrow_type(dtype)))
        return Converted(whole.values, _merged(whole.faults, strange if strange.any() else None))
    parsed = _each(column, lambda part: part.cast(arrow_type(dtype)))
    if dtype in (Float32, Float64):
        # A finite number past the greatest float has become an infinity.
        written = pc.match_substring(column, "inf", ignore_case=True)
        lost = _mask(pc.and_not(pc.is_inf(parsed.values), written))
        if lost.any():
            parsed = Converted(_without(parsed.values, lost), _merged(parsed.faults, lost))
        return Converted(one_nan(parsed.values), parsed.faults)
    if dtype == Date:
        return _ranged(parsed, pa.int32(), DATE_MIN, DATE_MAX)
    return parsed


def _parsed_times(column: pa.Array, name: str, reading: Reading) -> Converted:
    """Texts with an offset as they are, the others as local times of the declared zone."""
    local = _mask(pc.invert(pc.match_substring_regex(column, _ZONED)))
    if not local.any():
        return _in_range(_each(column, lambda part: part.cast(TIMESTAMP)))
    naive = _each(_without(column, ~local), lambda part: part.cast(pa.timestamp("us")))
    some_zoned = (~local & _mask(column.is_valid())).any()
    if reading.timezone is None and (some_zoned or naive.values.null_count == len(column)):
        placed = Converted(pa.nulls(len(column), TIMESTAMP), local)
    else:
        placed = _timestamps(naive.values, name, reading)
    zoned = _each(_without(column, local), lambda part: part.cast(TIMESTAMP))
    faults = _merged(_merged(naive.faults, placed.faults), zoned.faults)
    return _in_range(Converted(pc.coalesce(zoned.values, placed.values), faults))


def _mask(marks: pa.Array) -> Mask:
    return marks.fill_null(False).to_numpy(zero_copy_only=False)


def _base64(column: pa.Array) -> Converted:
    import base64

    # CSV has no bytes; this is the one type read value by value, and only from text.
    decoded: list[bytes | None] = []
    faults = np.zeros(len(column), dtype=bool)
    for place, text in enumerate(column.to_pylist()):
        try:
            decoded.append(None if text is None else base64.b64decode(text, validate=True))
        except ValueError:
            decoded.append(None)
            faults[place] = True
    return Converted(pa.array(decoded, pa.binary()), faults if faults.any() else None)
