"""Where in the user's files a definition was written, so that every problem can name file and line."""

from __future__ import annotations

import dataclasses
import os.path
import sys
from dataclasses import dataclass

#: Frames that are never where a user wrote something: this package, and what dataclasses generate and `replace` calls.
_MACHINERY = (os.path.join(os.path.dirname(__file__), ""), "<string>", dataclasses.__file__)


@dataclass(frozen=True, slots=True)
class Location:
    """A file and a line; empty when the definition was not written in a file."""

    path: str = ""
    line: int = 0


def definition_site() -> Location:
    """The innermost caller outside this package and the machinery of dataclasses."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_MACHINERY):
            return Location(path, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return Location()
