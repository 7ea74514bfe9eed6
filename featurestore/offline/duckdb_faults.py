"""What DuckDB says when something is wrong, as errors of the project, with the way out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from featurestore.errors import StoreError, StoreFull, StoreUnreachable

_HOLDER = re.compile(r"Conflicting lock is held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")
_NO_SPACE = ("No space left", "not enough space", "Not enough space", "File too large", "Disk quota exceeded")


def holder_of(error: duckdb.Error) -> str | None:
    """Who keeps us from opening the file; None when that is not what the error says."""
    if held := _HOLDER.search(str(error)):
        return f"process {held['pid']} ({held['program']})"
    # Within a process DuckDB shares an open file only with connections that are opened alike.
    if "different configuration" in str(error):
        return f"another connection of this process ({os.getpid()})"
    return None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Driver errors that a user can act on, as errors of the project."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise StoreFull(
            f"the offline store {path} ran out of memory: {_first_line(error)}; raise offline.memory_limit"
        ) from error
    except duckdb.Error as error:
        text = _first_line(error)
        if "bad allocation" in text:
            raise StoreFull(
                f"the system has no memory left for the offline store {path}: {text}; lower offline.memory_limit"
            ) from error
        if any(words in text for words in _NO_SPACE):
            raise StoreFull(f"no space left for the offline store {path}: {text}; free space and run again") from error
        if isinstance(error, duckdb.SerializationException) or "Corrupt database" in text:
            raise StoreError(f"the offline store {path} cannot be read: {text}; if damaged, restore it") from error
        if not isinstance(error, duckdb.IOException):
            raise
        if "not a valid DuckDB" in text:
            raise StoreError(f"{path} is not a DuckDB file: {text}; point offline.path at another file") from error
        if "Cannot open file" in text:
            raise StoreUnreachable(f"cannot open the offline store {path}: {text}") from error
        raise StoreError(f"the offline store {path} failed: {text}") from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
