"""Where in the user's files a definition was written, so that every problem can name file and line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Location:
    """A file and a line; empty when the definition was not written in a file."""

    path: str = ""
    line: int = 0


def definition_site() -> Location:
    """The innermost caller outside this package, dataclass machinery (`<string>`) left out."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_PACKAGE, "<string>")):
            return Location(path, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return Location()
