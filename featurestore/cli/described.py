"""How a described object looks to people: lines, sections, tables, and contracts in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from featurestore.cli.output import duration, properties, table

Document = dict[str, Any]

_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
#: Said in a column of their own.
_COLUMNS = ("name", "dtype", "description")
#: Lists of fields, which are shown with their contract in words.
_FIELDS = ("schema", "request_fields")
_DIGEST, _DIGEST_SHOWN = re.compile("[0-9a-f]{64}"), 12
#: Characters of a text in a table; `--json` has all.
_CELL_SHOWN = 120


def described(document: Document) -> str:
    """Plain values as lines, documents as sections, lists of documents as tables."""
    plain: Document = {}
    sections: list[str] = []
    for name, value in document.items():
        title = name.replace("_", " ")
        if name == "join_keys":
            plain[name] = [f"{key['name']} {key['dtype']}" for key in value]
        elif value and _is_rows(value):
            sections += ["", f"{title}:", _table([field_row(row) for row in value] if name in _FIELDS else value)]
        elif value and isinstance(value, dict) and name not in ("tags", "links"):
            sections += ["", f"{title}:", _indented(_lines(value))]
        else:
            plain[name] = value
    return "\n".join([_lines(plain), *sections])


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


def _lines(values: Document) -> str:
    return properties({_title(name): _shown(name, value) for name, value in values.items()})


def _table(rows: list[Document]) -> str:
    """Columns that say nothing are left out, and so are all but the first characters of digests and long texts."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    cells = [[_shortened(_shown(name, row.get(name))) for name in names] for row in rows]
    return table([_title(name) for name in names], cells)


def _title(name: str) -> str:
    for unit in _UNITS:
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _shown(name: str, value: Any) -> Any:
    """Durations in units, lists and documents on a line."""
    if value is None:
        return None
    for unit, show in _UNITS.items():
        if name.endswith(unit):
            return show(value)
    return _flat(value)


#: Endings of names that tell a unit, and how people see such values.
_UNITS: dict[str, Callable[[float], str | None]] = {
    "_us": lambda us: duration(timedelta(microseconds=us)),
    "_s": lambda s: str(timedelta(seconds=round(s))),
}


def _shortened(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if _DIGEST.fullmatch(value):
        return value[:_DIGEST_SHOWN]
    return value if len(value) <= _CELL_SHOWN else f"{value[: _CELL_SHOWN - 3]}..."


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
