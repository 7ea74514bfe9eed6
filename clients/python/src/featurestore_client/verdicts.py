"""The verdicts on a row, by the numbers they travel as."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The verdict on one row of one view: the first of ERROR, NOT_FOUND, EXPIRED, STALE, NULL, PRESENT that holds."""

    PRESENT = 1
    NULL = 2
    NOT_FOUND = 3
    EXPIRED = 4
    STALE = 5
    ERROR = 6


class StaleReason(IntEnum):
    """Why a row is STALE; NONE where it is not."""

    NONE = 0
    MAX_AGE = 1
    FRESHNESS = 2
    UNCONFIRMED = 3
