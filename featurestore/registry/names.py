"""Which names definitions may have: they become tables, columns, keys and metric labels as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Postgres cuts identifiers at 63 bytes.
NAME_LENGTH_MAX = 63
#: A history's table is named after its view with `__v` and the version, up to six digits.
VIEW_NAME_LENGTH_MAX = 54
#: Columns that every history, spine or reply has.
RESERVED = frozenset({"event_timestamp", "created_timestamp", "as_of"})

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def name_fault(name: object, length_max: int = NAME_LENGTH_MAX) -> tuple[str, str] | None:
    """What is wrong with the name of a definition and the way out, or None."""
    if not isinstance(name, str) or not name:
        return f"{name!r} is not a name", 'write a text, as in name="weather"'
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a name", "use letters, digits and _ only, a letter first"
    if len(name) > length_max:
        return f"the name {name!r} has {len(name)} characters", f"use at most {length_max}"
    return None


def column_fault(name: object) -> tuple[str, str] | None:
    """What is wrong with the name of a field, join key or output column, or None."""
    if isinstance(name, str) and (name.lower() in RESERVED or name.startswith("_")):
        return f"the name {name!r} is reserved", f"choose another one ({', '.join(sorted(RESERVED))} and _... are ours)"
    return name_fault(name)


def clashes(names: Iterable[object]) -> Iterator[tuple[int, str, str]]:
    """(index, name, earlier name) wherever a name repeats an earlier one, letter case aside, as SQL compares them."""
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            continue
        if name.lower() in seen:
            yield index, name, seen[name.lower()]
        else:
            seen[name.lower()] = name
