"""What people and programs read: tables for people, one JSON document for `--json`, progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from featurestore.clock import duration_text, iso_text


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and infinities are not JSON and must have been made text before."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # A file name need not be text: what is none in it is written as JSON's own escapes.
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, numbers to the right; None is shown as `-`."""
    cells = [[("-" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    right = [_numeric([row[i] for row in rows]) for i in range(len(headers))]
    lines = [_line(headers, widths, right), _line(["-" * width for width in widths], widths, right)]
    return "\n".join(lines + [_line(row, widths, right) for row in cells])


def _numeric(column: Sequence[Any]) -> bool:
    said = [cell for cell in column if cell is not None]
    return bool(said) and all(isinstance(cell, (int, float)) for cell in said)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return "  ".join(padded).rstrip()


def properties(values: Mapping[str, Any]) -> str:
    """`name  value` lines, aligned; values that say nothing are left out."""
    said = {name: value for name, value in values.items() if value not in (None, "", [], {}, ())}
    width = max(map(len, said), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in said.items())


def instant(us: int | None) -> str | None:
    """Microseconds since the epoch as ISO 8601 in UTC."""
    return None if us is None else iso_text(us)


def duration(value: timedelta | None) -> str | None:
    """A duration as `duration_text` writes it; None stays."""
    return None if value is None else duration_text(value)


class Progress:
    """One line on stderr that is written over, when stderr is a terminal; silent otherwise."""

    def __init__(self) -> None:
        self._visible = sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._visible:
            sys.stderr.write(f"\r{text.ljust(self._width)}")
            sys.stderr.flush()
            self._width = len(text)

    def done(self) -> None:
        """Clear the line."""
        if self._visible and self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()
            self._width = 0


def plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO text, bytes as hex, decimals, NaN and infinities as text."""
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date() | Decimal():
            return str(value)
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return str(value)
        case list():
            return [plain(item) for item in value]
        case _:
            return value
