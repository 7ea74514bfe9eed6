"""Trouble that lasts, told in the log when it begins and when it is over, not at every try between."""

from __future__ import annotations

import logging

#: Different words for one trouble that are told; a server may find new ones for ever.
WORDS_MAX = 8


class Trouble:
    """Of one kind, as `log` tells it; for one thread at a time. `what` says what cannot be done, `over` that it can."""

    def __init__(self, log: logging.Logger, what: str, over: str) -> None:
        self._log, self._what, self._over = log, what, over
        self._told: set[str] = set()

    def met(self, error: Exception) -> None:
        """It is there: told unless it was told in these words since it began."""
        if str(error) not in self._told and len(self._told) < WORDS_MAX:
            self._told.add(str(error))
            self._log.warning("%s: %s", self._what, error)

    def passed(self) -> None:
        """It is not there (any more): told where it was."""
        if self._told:
            self._told.clear()
            self._log.warning("%s", self._over)
