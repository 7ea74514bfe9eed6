"""Which RE2 patterns mean the same in ECMA-262 and in Python, so that a document may carry them."""

from __future__ import annotations

import re

#: ASCII literals, classes of them, groups, alternatives, counts; no `.`, no classes by name, no flags, no anchors.
_CLASS = r"\[(?:[A-Za-z0-9_ /:@,;.+*?(){}|$%#!&=<>~'\"-]|\\[\\\].^/-])+\]"
_LITERAL = r"[A-Za-z0-9_ /:@,;%#!&=<>~'\"-]|\\[.+*?()\[\]{}|^$\\/-]"
_PLAIN = re.compile(rf"(?:{_CLASS}|{_LITERAL}|\((?:\?:|(?!\?))|[)|]|[*+?]\??|\{{\d+(?:,\d*)?\}}\??)*", re.ASCII)


def ecma_pattern(pattern: str) -> str | None:
    """The pattern, for the whole text, as JSON Schema writes it; None when it may mean something else there."""
    return f"^(?:{pattern})(?![\\s\\S])" if _PLAIN.fullmatch(pattern) else None
