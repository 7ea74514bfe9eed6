"""How a described object looks to people: lines, sections, tables, and contracts in words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from featurestore.cli.output import duration, properties, table

Document = dict[str, Any]

_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
#: Said in a column of their own.
_COLUMNS = ("name", "dtype", "description")
#: Lists of fields, which are shown with their contract in words.
_FIELDS = ("schema", "request_fields")


def described(document: Document) -> str:
    """Plain values as lines, documents as sections, lists of documents as tables."""
    plain: Document = {}
    sections: list[str] = []
    for name, value in document.items():
        title = name.replace("_", " ")
        if value and _is_rows(value):
            sections += ["", f"{title}:", _table([field_row(row) for row in value] if name in _FIELDS else value)]
        elif value and isinstance(value, dict) and name not in ("tags", "links"):
            sections += ["", f"{title}:", _indented(properties(_said(value)))]
        else:
            plain[name] = value
    return "\n".join([properties(_said(plain)), *sections])


def field_row(document: Document) -> Document:
    """A field with all its rules in words; a rule not known here is shown as it is written."""
    rules = [] if document.get("nullable", True) else ["not null"]
    rules += [f"{sign} {_flat(document[name])}" for name, sign in _LIMITS.items() if name in document]
    if document.get("allow_nan"):
        rules.append("NaN too")
    if "allowed_values" in document:
        rules.append(f"one of {_flat(document['allowed_values'])}")
    known = {*_COLUMNS, *_LIMITS, "nullable", "allow_nan", "allowed_values"}
    rules += [f"{name.replace('_', ' ')} {_flat(value)}" for name, value in document.items() if name not in known]
    return {
        "field": document["name"],
        "type": document["dtype"],
        "contract": ", ".join(rules) or None,
        "description": document.get("description"),
    }


def _said(values: Document) -> Document:
    """Durations in units, lists and documents on a line."""
    return {
        name.removesuffix("_us").replace("_", " "): duration(timedelta(microseconds=value))
        if name.endswith("_us")
        else _flat(value)
        for name, value in values.items()
    }


def _table(rows: list[Document]) -> str:
    headers = list(dict.fromkeys(key for row in rows for key in row if any(row.get(key) is not None for row in rows)))
    return table(
        [name.replace("_", " ") for name in headers], [[_flat(row.get(key)) for key in headers] for row in rows]
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_flat(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(str(_flat(item)) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value
