"""Ctrl-C while DuckDB works: the engine stops its query and says so in words of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: DuckDB's words for a query that a signal has stopped; a RuntimeError, or Arrow's error where it was streaming.
_INTERRUPTED = ("Query interrupted", "INTERRUPT Error", "KeyboardInterrupt")


@contextmanager
def interruptible() -> Iterator[None]:
    """Make an interrupted query the KeyboardInterrupt that it is."""
    try:
        yield
    except Exception as error:
        if any(words in str(error) for words in _INTERRUPTED):
            raise KeyboardInterrupt from error
        raise
