"""Source rows as JSON text that reads back exactly: what quarantine keeps of a row, and how it becomes a row again.

A *form* stands beside the texts: whether the rows are CSV (all text), and the Arrow type of each column. In a text,
numbers, booleans and strings are JSON's own; NaN and infinities are `"nan"`, `"inf"`, `"-inf"`; bytes are hex, and a
string that is no UTF-8 is `{"hex": ...}`; times are ISO text where that says all, else the number that Arrow keeps;
decimals are text. Dictionary encoding, which carries no meaning, is dropped; of columns with one name the last is kept.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import StoreError

_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")
#: Before a type that has no short name: its Arrow schema, in base64.
_ARROW = "arrow:"
#: Made once: `json.dumps` makes one for each text.
_JSON = json.JSONEncoder(allow_nan=False)


def form_of(rows: pa.Table, *, text: bool) -> str:
    """The form of the rows of a table, as text."""
    types = {field.name: _type_text(_kept_type(field.type)) for field in rows.schema}
    return json.dumps({"text": text, "types": types})


def column_names(form: str) -> list[str]:
    """The columns of rows of a form."""
    return list(json.loads(form)["types"])


def raw_texts(rows: pa.Table) -> list[str]:
    """Each row as a JSON object."""
    columns = [json_values(column.combine_chunks()) for column in rows.columns]
    names = rows.column_names
    return [_JSON.encode(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def rows_of(raws: Sequence[str], form: str) -> tuple[pa.Table, bool]:
    """(the rows that the texts of one form were made of, whether they are CSV)."""
    try:
        described = json.loads(form)
        rows = [json.loads(raw) for raw in raws]
        columns = {
            name: _array([row[name] for row in rows], _type_of(text)) for name, text in described["types"].items()
        }
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"a quarantined row cannot be read back: {error}; was the table altered by hand?") from error
    return pa.table(columns), bool(described["text"])


def json_values(column: pa.Array) -> list[Any]:
    """The values of a column as JSON has them."""
    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return json_values(column.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        return json_values(column.storage)
    if _is_string(kind):
        return _strings(column)
    if _is_binary(kind):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    if _is_time(kind):
        return _times(column)
    if _is_list(kind):
        return _lists(column)
    if types.is_struct(kind):
        parts = [json_values(part) for part in column.flatten()]
        names = [field.name for field in kind]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True)]
        return [row if valid else None for row, valid in zip(rows, column.is_valid().to_pylist(), strict=True)]
    if _is_plain(column):
        return list(column.to_pylist())
    return [_plain(value) for value in column.to_pylist()]


def _is_plain(column: pa.Array) -> bool:
    """Whether JSON has all values as Python has them."""
    kind, types = column.type, pa.types
    if types.is_float32(kind) or types.is_float64(kind):
        return not pc.any(pc.invert(pc.is_finite(column))).as_py()
    return bool(types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind))


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            return float(value) if math.isfinite(value) else repr(float(value))
        case _:
            return str(value)


def _strings(column: pa.Array) -> list[Any]:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        wide = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [None if value is None else _text_or_hex(value) for value in column.cast(wide).to_pylist()]
    return list(column.to_pylist())


def _text_or_hex(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"hex": value.hex()}


def _times(column: pa.Array) -> list[Any]:
    """Texts where all of them read back as the same times, else numbers."""
    try:
        texts = column.cast(pa.string())
        if texts.cast(column.type).equals(column):
            return list(texts.to_pylist())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # out of the calendar's range, or of a type that Arrow does not read from text
    return list(column.view(_whole(column.type)).to_pylist())


def _lists(column: pa.Array) -> list[Any]:
    values = json_values(pc.list_flatten(column))
    lists: list[Any] = []
    first = 0
    for length in pc.list_value_length(column).to_pylist():
        lists.append(None if length is None else values[first : first + length])
        first += length or 0
    return lists


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The column of which `json_values` made the values."""
    types = pa.types
    if _is_string(kind):
        if not any(isinstance(value, dict) for value in values):
            return pa.array(values, kind)
        wide = pa.large_binary() if types.is_large_string(kind) else pa.binary()
        texts = [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in values]
        return pa.array([text.encode() if isinstance(text, str) else text for text in texts], wide).view(kind)
    if _is_binary(kind):
        return pa.array([None if value is None else bytes.fromhex(value) for value in values], kind)
    if _is_time(kind):
        numbers = pa.array([value if isinstance(value, int) else None for value in values], _whole(kind))
        texts = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
        read = numbers if texts.null_count == len(texts) else texts.cast(kind).view(_whole(kind))
        return pc.coalesce(numbers, read).view(kind)
    if _is_list(kind):
        return _list_array(values, kind)
    if types.is_struct(kind):
        parts = [_array([None if row is None else row[field.name] for row in values], field.type) for field in kind]
        absent = pa.array([row is None for row in values], pa.bool_())
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=absent)
    if types.is_floating(kind):
        return pa.array([None if value is None else float(value) for value in values], pa.float64()).cast(kind)
    if types.is_decimal(kind):
        return pa.array([None if value is None else Decimal(value) for value in values], kind)
    return pa.array(values, kind)


def _list_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    absent = pa.array([value is None for value in values], pa.bool_())
    if pa.types.is_fixed_size_list(kind):
        empty = [None] * kind.list_size
        inner = [item for value in values for item in (empty if value is None else value)]
        return pa.FixedSizeListArray.from_arrays(_array(inner, kind.value_type), type=kind, mask=absent)
    inner = _array([item for value in values for item in value or ()], kind.value_type)
    ends = np.cumsum([0, *(len(value or ()) for value in values)])
    made = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    return made.from_arrays(pa.array(ends, _offsets(kind)), inner, type=kind, mask=absent)


def _offsets(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_large_list(kind) else pa.int32()


def _kept_type(kind: pa.DataType) -> pa.DataType:
    """The type that a column reads back with; text for what has no other form here, such as maps."""
    types = pa.types
    if types.is_dictionary(kind):
        return _kept_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _kept_type(kind.storage_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_fixed_size_list(kind):
        return pa.list_(_kept_type(kind.value_type), kind.list_size)
    if _is_list(kind):
        listed = pa.large_list if types.is_large_list(kind) else pa.list_
        return listed(_kept_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _kept_type(field.type)) for field in kind])
    exact = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal)
    if any(test(kind) for test in (*exact, _is_string, _is_binary, _is_time)):
        return kind
    return pa.string()


def _type_text(kind: pa.DataType) -> str:
    text = str(kind)
    if _short(text) == kind:
        return text
    schema = pa.schema([pa.field("", kind)]).serialize().to_pybytes()
    return _ARROW + base64.b64encode(schema).decode()


def _type_of(text: str) -> pa.DataType:
    if text.startswith(_ARROW):
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text.removeprefix(_ARROW)))).field(0).type
    kind = _short(text)
    if kind is None:
        raise ValueError(f"{text!r} is no type")
    return kind


def _short(text: str) -> pa.DataType | None:
    if zoned := _ZONED.fullmatch(text):
        return pa.timestamp(zoned[1], zoned[2])
    try:
        return pa.type_for_alias(text)
    except ValueError:
        return None


def _whole(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    plain = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(plain or types.is_fixed_size_binary(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
