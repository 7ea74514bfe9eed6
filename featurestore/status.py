"""Which of the seven verdicts a row gets, online and offline alike: the rule in one place.

One status per view and row, the first that holds: ERROR, NOT_FOUND, EXPIRED, STALE, NULL, PRESENT.
Nulls of single values are told by validity alone.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Status(IntEnum):
    """The verdict on one row of one view; the numbers are part of the wire format."""

    INVALID = 0
    PRESENT = 1
    NULL = 2
    NOT_FOUND = 3
    EXPIRED = 4
    STALE = 5
    ERROR = 6


class StaleReason(IntEnum):
    """Why a row is STALE; the numbers are part of the wire format."""

    NONE = 0
    MAX_AGE = 1
    FRESHNESS = 2
    UNCONFIRMED = 3


# As plain numbers: a member of an enumeration costs a microsecond each time it is compared with an array.
_PRESENT, _NULL, _NOT_FOUND, _EXPIRED = map(int, (Status.PRESENT, Status.NULL, Status.NOT_FOUND, Status.EXPIRED))


def row_statuses(
    found: NDArray[np.bool_],
    event_us: NDArray[np.int64],
    as_of_us: NDArray[np.int64] | int,
    all_null: NDArray[np.bool_],
    *,
    ttl_us: int | None,
) -> NDArray[np.uint8]:
    """NOT_FOUND, EXPIRED, NULL or PRESENT per row: what training and parity know.

    `found` says whether a visible row exists; `event_us` is ignored where it does not. A row is EXPIRED when
    `ttl` is set and `as_of - event_timestamp > ttl`; at exactly ttl it is alive.
    """
    import numpy

    statuses = numpy.full(len(found), _PRESENT, dtype=numpy.uint8)
    statuses[all_null] = _NULL
    if ttl_us is not None:
        # Both times lie in years 1-9999, so their difference cannot overflow an int64 of microseconds.
        statuses[as_of_us - event_us > ttl_us] = _EXPIRED
    statuses[~found] = _NOT_FOUND
    return statuses


def stale_reasons(
    statuses: NDArray[np.uint8],
    event_us: NDArray[np.int64],
    now_us: int,
    *,
    max_age_us: int | None,
    freshness_us: int | None,
    watermark_us: int | None,
) -> NDArray[np.uint8]:
    """Why a live row is STALE (`StaleReason`), NONE where it is not; only serving asks.

    STALE by request: `max_age < now - event_timestamp`. STALE by promise: `now - watermark > freshness`, where the
    watermark is the greatest event time published and visible (no watermark yet: nothing to be stale).
    """
    import numpy

    reasons = numpy.zeros(len(statuses), dtype=numpy.uint8)
    late = freshness_us is not None and watermark_us is not None and now_us - watermark_us > freshness_us
    if not late and max_age_us is None:
        return reasons
    live = (statuses == _PRESENT) | (statuses == _NULL)
    if late:
        reasons[live] = StaleReason.FRESHNESS
    if max_age_us is not None:
        reasons[live & (now_us - numpy.where(live, event_us, now_us) > max_age_us)] = StaleReason.MAX_AGE
    return reasons
