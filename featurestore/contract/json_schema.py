"""One row of a view as JSON Schema (2020-12); what it cannot say is named under `x-featurestore`, not approximated.

Values stand as `encode_value` writes them: times and decimals as text, bytes in base64, NaN and infinities as text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from featurestore.compiler.names import CREATED, EVENT
from featurestore.contract.plain_pattern import ecma_pattern
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
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.registry.document import encode_value
from featurestore.registry.rules_document import rules_document

Document = dict[str, Any]

_END = r"(?![\s\S])"
_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = rf"^{_DAY}[T ][0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(?:\.[0-9]{{1,6}})?(?:Z|[+-][0-9]{{2}}:[0-9]{{2}}){_END}"
_BASE64 = rf"^(?:[A-Za-z0-9+/]{{4}})*(?:[A-Za-z0-9+/]{{2}}==|[A-Za-z0-9+/]{{3}}=)?{_END}"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema(view: FeatureView) -> Document:
    """The JSON Schema of a row: join keys, event_timestamp, created_timestamp where the source has one, fields."""
    columns: dict[str, Document] = {name: _typed(dtype) for name, dtype in view.join_keys.items()}
    columns[EVENT] = _typed(Timestamp) | {"description": "When the fact was true."}
    if view.has_created:
        columns[CREATED] = _typed(Timestamp) | {"description": "When it became known."}
    columns |= {field.name: _field(field) for field in view.schema}
    beyond = {field.name: rules for field in view.schema if (rules := beyond_row_schema(field))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:featurestore:{view.name}:{view.version}",
        "title": view.ref,
        **({"description": view.description} if view.description else {}),
        "type": "object",
        "properties": columns,
        "required": list(columns),
        "x-featurestore": {
            "on_violation": view.on_violation,
            **rules_document(view),
            **({"fields": beyond} if beyond else {}),
        },
    }


def beyond_row_schema(field: Field) -> Document:
    """The rules of a field that JSON Schema has no faithful form for, by name."""
    beyond: Document = {}
    if field.pattern is not None and ecma_pattern(field.pattern) is None:
        beyond["pattern"] = field.pattern
    if isinstance(field.dtype, Decimal):
        beyond |= {name: encode_value(value, field.dtype) for name, value in _declared(field).items()}
    if field.dtype == Bytes:
        lengths = {"min_length": field.min_length, "max_length": field.max_length}
        beyond |= {name: value for name, value in lengths.items() if value is not None}
    if field.dtype == Float32 or getattr(field.dtype, "element", None) == Float32:
        beyond["dtype"] = str(field.dtype)  # a number that is no float32 is a number all the same
    if field.on_violation is not None:
        beyond["on_violation"] = field.on_violation
    return beyond


def _field(field: Field) -> Document:
    document = _typed(field.dtype)
    if field.dtype in INTEGERS:
        document = _bounded_integer(field)
    elif field.dtype in FLOATS:
        document = _bounded_float(field)
    if field.pattern is not None and (pattern := ecma_pattern(field.pattern)) is not None:
        document["pattern"] = pattern
    if field.dtype == String or isinstance(field.dtype, List):
        least, most = ("minLength", "maxLength") if field.dtype == String else ("minItems", "maxItems")
        document |= {least: field.min_length} if field.min_length is not None else {}
        document |= {most: field.max_length} if field.max_length is not None else {}
    if field.allowed_values is not None:
        allowed = [encode_value(value, field.dtype) for value in field.allowed_values]
        document = {"allOf": [document, {"enum": allowed}]}
    if field.nullable:
        document = {"anyOf": [document, {"type": "null"}]}
    return ({"description": field.description} if field.description else {}) | document


def _typed(dtype: DType) -> Document:
    match dtype:
        case Decimal(precision, scale):
            whole = precision - scale
            digits = f"0*[0-9]{{0,{whole}}}" if whole else "0*"
            return {"type": "string", "pattern": rf"^-?(?=\.?[0-9]){digits}(?:\.[0-9]{{0,{scale}}}0*)?{_END}"}
        case List(element):
            return {"type": "array", "items": _typed(element)}
        case Vector(element, length):
            return {"type": "array", "items": _typed(element), "minItems": length, "maxItems": length}
    if dtype in INTEGERS:
        return _bounded_integer(Field(name="x", dtype=dtype))
    if dtype in FLOATS:
        return _bounded_float(Field(name="x", dtype=dtype))
    plain: Mapping[DType, Document] = {
        Bool: {"type": "boolean"},
        String: {"type": "string", "not": {"pattern": "\\u0000"}},
        Bytes: {"type": "string", "contentEncoding": "base64", "pattern": _BASE64},
        Timestamp: {"type": "string", "format": "date-time", "pattern": _TIME},
        Date: {"type": "string", "format": "date", "pattern": f"^{_DAY}{_END}"},
    }
    return dict(plain[dtype])


def _declared(field: Field) -> dict[str, Any]:
    return {name: value for name in _BOUNDS if (value := getattr(field, name)) is not None}


def _bounded_integer(field: Field) -> Document:
    limit = 2**31 if field.dtype == Int32 else 2**63
    declared = {_BOUNDS[name]: value for name, value in _declared(field).items()}
    return {"type": "integer", "minimum": -limit, "maximum": limit - 1} | declared


def _bounded_float(field: Field) -> Document:
    """A number within the bounds, or the text of what JSON has no number for, where it keeps the bounds."""
    declared = _declared(field)
    finite = {_BOUNDS[name]: value for name, value in declared.items() if math.isfinite(value)}
    numbers: Document = {"type": "number"} | finite
    if any(_breaks(name, 0.0, bound) for name, bound in declared.items() if math.isinf(bound)):
        numbers = {"not": {}}
    kept = [value for value in (math.inf, -math.inf) if not any(_breaks(n, value, b) for n, b in declared.items())]
    texts = [str(value) for value in kept] + (["nan"] if field.allow_nan or not field.bounded else [])
    return {"anyOf": [numbers, {"enum": texts}]} if texts else numbers


def _breaks(name: str, value: float, bound: float) -> bool:
    holds = {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}
    return not holds[name]
