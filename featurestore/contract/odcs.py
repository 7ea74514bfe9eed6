"""A view's contract in the Open Data Contract Standard, v3.1.

What the standard has no faithful form for stands as a `custom` check of the engine featurestore, word for word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurestore.clock import MICROSECOND
from featurestore.compiler.names import CREATED, EVENT, history_name
from featurestore.contract.plain_pattern import ecma_pattern
from featurestore.dtypes import (
    FLOATS,
    INTEGERS,
    Bool,
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

API_VERSION = "v3.1.0"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def open_data_contract(view: FeatureView, project: str) -> Document:
    """The ODCS document of a view; its only schema object is the view's history."""
    document: Document = {
        "apiVersion": API_VERSION,
        "kind": "DataContract",
        "id": f"{project}.{view.ref}",
        "name": view.name,
        "version": str(view.version),
        "status": "active",
    }
    if view.description:
        document["description"] = {"purpose": view.description}
    if view.owner:
        document["team"] = {"name": view.owner}
    if view.tags:
        document["tags"] = _tags(view.tags)
    if view.links:
        document["authoritativeDefinitions"] = _links(view.links)
    document["schema"] = [_history(view)]
    if view.freshness is not None:
        seconds = view.freshness / (1_000_000 * MICROSECOND)
        document["slaProperties"] = [
            {"property": "freshness", "value": seconds, "unit": "s", "element": f"{view.name}.{EVENT}"}
        ]
    custom = {"onViolation": view.on_violation, "maxBreachShare": view.max_breach_share, "tier": view.tier or None}
    if view.ttl is not None:
        custom["ttlSeconds"] = view.ttl / (1_000_000 * MICROSECOND)
    document["customProperties"] = _custom_properties(custom)
    return document


def _history(view: FeatureView) -> Document:
    keys = [
        _property(name, dtype) | {"required": True, "primaryKey": True, "primaryKeyPosition": place}
        for place, (name, dtype) in enumerate(view.join_keys.items(), start=1)
    ]
    times = [_property(name, Timestamp) | {"required": True} for name in (EVENT, CREATED)]
    history: Document = {
        "name": view.name,
        "physicalName": history_name(view.ref),
        "logicalType": "object",
        "physicalType": "table",
        "dataGranularityDescription": f"one row per {', '.join(view.join_keys)} and time; the latest counts",
        "properties": [*keys, *times, *(_field(field) for field in view.schema)],
    }
    if checks := [_check(name, rule) for name, rule in _rules(view)]:
        history["quality"] = checks
    if view.references:
        history["relationships"] = [_relationship(view, rule) for rule in view.references]
    return history


def _rules(view: FeatureView) -> list[tuple[str, Document]]:
    """The rules of whole rows and of the history, each by its name."""
    declared = rules_document(view)
    declared.pop("max_breach_share", None)
    rules = [(rule["name"], {"rule": "condition"} | rule) for rule in declared.pop("conditions", [])]
    rules += [(f"reference to {rule['view']}", {"rule": "reference"} | rule) for rule in declared.pop("references", [])]
    return rules + [(name.removesuffix("_us"), {"rule": name, "value": value}) for name, value in declared.items()]


def _relationship(view: FeatureView, rule: Any) -> Document:
    other = str(rule.view).partition("@")[0]
    ends = [[f"{view.name}.{ours}" for ours in rule.columns.values()], [f"{other}.{name}" for name in rule.columns]]
    source, target = (end[0] if len(end) == 1 else end for end in ends)
    return {"type": "foreignKey", "from": source, "to": target}


def _field(field: Field) -> Document:
    document = _property(field.name, field.dtype)
    if field.description:
        document["description"] = field.description
    if field.tags:
        document["tags"] = _tags(field.tags)
    if field.links:
        document["authoritativeDefinitions"] = _links(field.links)
    if not field.nullable:
        document["required"] = True
    options, beyond = _options(field)
    if options:
        document.setdefault("logicalTypeOptions", {}).update(options)
    checks = [_check(f"{field.name}: {name}", {"rule": name, "value": value}) for name, value in beyond.items()]
    if field.allowed_values is not None:
        allowed = [encode_value(value, field.dtype) for value in field.allowed_values]
        valid = {"type": "library", "metric": "invalidValues", "arguments": {"validValues": allowed}, "mustBe": 0}
        checks.append({"name": f"{field.name}: allowed_values"} | valid)
    if checks:
        document["quality"] = checks
    if field.on_violation is not None:
        document["customProperties"] = _custom_properties({"onViolation": field.on_violation})
    return document


def _options(field: Field) -> tuple[Document, Document]:
    """(the rules that logicalTypeOptions can say, the others by name)."""
    options: Document = {}
    beyond: Document = {}
    for name, option in _BOUNDS.items():
        if (bound := getattr(field, name)) is None:
            continue
        encoded = encode_value(bound, field.dtype)
        if isinstance(encoded, str):  # a decimal, or an infinity
            beyond[name] = encoded
        else:
            options[option] = encoded
    if field.dtype in FLOATS and field.bounded:
        beyond["allow_nan"] = field.allow_nan
    if field.pattern is not None:
        pattern = ecma_pattern(field.pattern)
        (beyond if pattern is None else options)["pattern"] = field.pattern if pattern is None else pattern
    lengths = {"min_length": field.min_length, "max_length": field.max_length}
    sayable = {String: ("minLength", "maxLength")}.get(field.dtype)  # type: ignore[call-overload]
    if isinstance(field.dtype, List):
        sayable = ("minItems", "maxItems")
    for place, (name, length) in enumerate(lengths.items()):
        if length is not None and sayable:
            options[sayable[place]] = length
        elif length is not None:
            beyond[name] = length
    return options, beyond


def _property(name: str, dtype: DType) -> Document:
    return {"name": name} | _logical(dtype)


def _logical(dtype: DType) -> Document:
    document: Document = {"logicalType": "string", "physicalType": str(dtype)}
    if isinstance(dtype, (List, Vector)):
        document |= {"logicalType": "array", "items": _logical(dtype.element)}
        if isinstance(dtype, Vector):
            document["logicalTypeOptions"] = {"minItems": dtype.length, "maxItems": dtype.length}
    elif dtype in INTEGERS:
        document |= {"logicalType": "integer", "logicalTypeOptions": {"format": "i32" if dtype == Int32 else "i64"}}
    elif dtype in FLOATS:
        document |= {"logicalType": "number", "logicalTypeOptions": {"format": "f32" if dtype == Float32 else "f64"}}
    elif isinstance(dtype, Decimal):
        document["logicalType"] = "number"
    elif dtype == Timestamp:
        document |= {"logicalType": "timestamp", "logicalTypeOptions": {"timezone": True}}
    elif dtype in (Bool, Date):
        document["logicalType"] = "boolean" if dtype == Bool else "date"
    elif dtype != String:
        document["logicalTypeOptions"] = {"format": "binary"}
    return document


def _check(name: str, implementation: Document) -> Document:
    return {"name": name, "type": "custom", "engine": "featurestore", "implementation": implementation}


def _custom_properties(values: Document) -> list[Document]:
    return [{"property": name, "value": value} for name, value in values.items() if value is not None]


def _links(links: Mapping[str, str]) -> list[Document]:
    return [{"type": name, "url": address} for name, address in links.items()]


def _tags(tags: Any) -> list[str]:
    return [f"{name}:{value}" for name, value in tags.items()]
