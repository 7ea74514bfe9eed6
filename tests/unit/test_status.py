"""One status per view and row, the first that holds: the table of the rule, edges exact to the microsecond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.status import StaleReason, Status, row_statuses, stale_reasons

PRESENT, NULL, NOT_FOUND, EXPIRED = Status.PRESENT, Status.NULL, Status.NOT_FOUND, Status.EXPIRED
BIG = 253_402_300_799_999_999 + 62_135_596_800_000_000


def status(found: bool, event: int, as_of: int, all_null: bool, ttl: int | None) -> Status:
    def one(value: Any) -> Any:
        return np.array([value])

    return Status(row_statuses(one(found), one(event), one(as_of), one(all_null), ttl_us=ttl)[0])


@pytest.mark.parametrize(
    ("found", "event", "as_of", "all_null", "ttl", "expected"),
    [
        (True, 10, 10, False, 5, PRESENT),
        (True, 10, 15, False, 5, PRESENT),
        (True, 10, 16, False, 5, EXPIRED),
        (True, 10, 15, True, 5, NULL),
        (True, 10, 16, True, 5, EXPIRED),
        (True, 10, 10**15, False, None, PRESENT),
        (True, 10, 10**15, True, None, NULL),
        (False, 0, 10**15, False, 5, NOT_FOUND),
        (False, 0, 10**15, True, None, NOT_FOUND),
        (True, -62_135_596_800_000_000, 253_402_300_799_999_999, False, BIG, PRESENT),
        (True, -62_135_596_800_000_000, 253_402_300_799_999_999, False, BIG - 1, EXPIRED),
    ],
)
def test_the_first_status_that_holds(
    found: bool, event: int, as_of: int, all_null: bool, ttl: int | None, expected: Status
) -> None:
    assert status(found, event, as_of, all_null, ttl) is expected


def test_rows_are_judged_one_by_one_and_as_of_may_be_one_for_all() -> None:
    found = np.array([True, True, False])
    event = np.array([0, 4, 0])
    nulls = np.array([False, True, False])

    statuses = row_statuses(found, event, 6, nulls, ttl_us=5)

    assert statuses.dtype == np.uint8
    assert statuses.tolist() == [EXPIRED, NULL, NOT_FOUND]


@pytest.mark.parametrize("ttl", [None, 1])
def test_no_rows_have_no_statuses(ttl: int | None) -> None:
    none = np.zeros(0, dtype=np.int64)

    assert row_statuses(none.astype(bool), none, none, none.astype(bool), ttl_us=ttl).tolist() == []


def stale(statuses: list[Status], **limits: int | None) -> list[int]:
    asked = {"max_age_us": None, "freshness_us": None, "watermark_us": None, **limits}
    events = np.array([10] * len(statuses))
    return stale_reasons(np.array(statuses, dtype=np.uint8), events, 20, **asked).tolist()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, StaleReason.NONE),
        ({"max_age_us": 10}, StaleReason.NONE),
        ({"max_age_us": 9}, StaleReason.MAX_AGE),
        ({"freshness_us": 5, "watermark_us": 15}, StaleReason.NONE),
        ({"freshness_us": 4, "watermark_us": 15}, StaleReason.FRESHNESS),
        ({"freshness_us": 4, "watermark_us": None}, StaleReason.NONE),
        ({"freshness_us": None, "watermark_us": 0}, StaleReason.NONE),
        ({"freshness_us": 4, "watermark_us": 15, "max_age_us": 9}, StaleReason.MAX_AGE),
    ],
)
def test_a_row_is_stale_by_request_or_by_promise(limits: dict[str, int | None], reason: StaleReason) -> None:
    assert stale([PRESENT, NULL], **limits) == [reason, reason]


def test_only_living_rows_can_be_stale() -> None:
    dead = [NOT_FOUND, EXPIRED, Status.ERROR]

    assert stale(dead, max_age_us=1, freshness_us=1, watermark_us=0) == [StaleReason.NONE] * 3


def test_the_numbers_are_those_of_the_wire() -> None:
    assert {member.name: member.value for member in Status} == {
        "INVALID": 0,
        "PRESENT": 1,
        "NULL": 2,
        "NOT_FOUND": 3,
        "EXPIRED": 4,
        "STALE": 5,
        "ERROR": 6,
    }
    assert {member.name: member.value for member in StaleReason} == {
        "NONE": 0,
        "MAX_AGE": 1,
        "FRESHNESS": 2,
        "UNCONFIRMED": 3,
    }
