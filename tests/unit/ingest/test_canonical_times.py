"""Canonical times: instants in UTC microseconds and dates, never guessed, never out of range."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest

from featurestore import (
    Date,
    Timestamp,
)
from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featurestore.errors import SourceError
from featurestore.ingest.canonical import Reading, convert
from tests.unit.ingest.canonical import FAULT, NEW_YORK, assert_becomes, us


@pytest.mark.parametrize("zone", ["UTC", NEW_YORK, "+05:30"])
def test_timestamps_of_every_unit_are_instants_in_utc_microseconds(zone: str) -> None:
    for unit, factor in (("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        counts = [0, 1, -1, None]
        expected = [None if count is None else count * factor for count in counts]
        assert_becomes(pa.array(counts, pa.timestamp(unit, zone)), Timestamp, expected)
    assert_becomes(
        pa.array([0, 1, 1000, -1, -1000, None], pa.timestamp("ns", zone)), Timestamp, [0, FAULT, 1, FAULT, -1, None]
    )


def test_timestamps_outside_the_years_1_to_9999_are_faults() -> None:
    low, high = TIMESTAMP_MIN_US, TIMESTAMP_MAX_US
    infinities = [2**63 - 1, -(2**63) + 1, -(2**63)]
    assert_becomes(
        pa.array([low, low - 1, high, high + 1, *infinities], pa.timestamp("us", "UTC")),
        Timestamp,
        [low, FAULT, high, *[FAULT] * 4],
    )
    seconds = [low // 10**6, low // 10**6 - 1, high // 10**6, high // 10**6 + 1, 2**62]
    expected = [seconds[0] * 10**6, FAULT, seconds[2] * 10**6, FAULT, FAULT]
    assert_becomes(pa.array(seconds, pa.timestamp("s", "UTC")), Timestamp, expected)
    assert_becomes(pa.array(seconds, pa.timestamp("s")), Timestamp, expected, Reading(timezone="UTC"))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_naive_timestamps_are_refused_by_the_name_of_their_column(unit: str) -> None:
    with pytest.raises(SourceError, match=r"column 'seen_at' holds timestamps without a time zone.*timezone="):
        convert(pa.array([0], pa.timestamp(unit)), "seen_at", Timestamp, Reading())


def test_naive_timestamps_are_read_in_the_declared_zone() -> None:
    local = [datetime(2013, 1, 1), datetime(2013, 7, 1, 12), None]  # noqa: DTZ001 - naive on purpose
    for unit in ("s", "ms", "us", "ns"):
        assert_becomes(
            pa.array(local, pa.timestamp(unit)),
            Timestamp,
            [us(2013, 1, 1, 5), us(2013, 7, 1, 16), None],
            Reading(timezone=NEW_YORK),
        )
    assert_becomes(pa.array([1, 1000], pa.timestamp("ns")), Timestamp, [FAULT, 1], Reading(timezone="UTC"))


@pytest.mark.parametrize(
    ("ambiguous", "repeated"),
    [(None, FAULT), ("earlier", us(2013, 11, 3, 5, 30)), ("later", us(2013, 11, 3, 6, 30))],
)
def test_local_times_that_clock_changes_repeat_or_skip_are_never_guessed(ambiguous: str | None, repeated: Any) -> None:
    local = pa.array(
        [
            datetime(2013, 3, 10, 1, 59, 59),  # noqa: DTZ001
            datetime(2013, 3, 10, 2, 30),  # noqa: DTZ001 - skipped
            datetime(2013, 3, 10, 3),  # noqa: DTZ001
            datetime(2013, 11, 3, 1, 30),  # noqa: DTZ001 - twice
            datetime(2013, 11, 3, 2),  # noqa: DTZ001
        ]
    )
    expected = [us(2013, 3, 10, 6, 59, 59), FAULT, us(2013, 3, 10, 7), repeated, us(2013, 11, 3, 7)]
    assert_becomes(local, Timestamp, expected, Reading(timezone=NEW_YORK, ambiguous=ambiguous))


def test_a_declared_zone_leaves_zoned_timestamps_alone() -> None:
    assert_becomes(pa.array([0], pa.timestamp("us", "UTC")), Timestamp, [0], Reading(timezone=NEW_YORK))


def test_dates_outside_the_years_1_to_9999_or_with_a_time_of_day_are_faults() -> None:
    days = pa.array([-719_162, -719_163, 2_932_896, 2_932_897, 2**31 - 1, None], pa.int32()).cast(pa.date32())
    assert_becomes(days, Date, [date(1, 1, 1), FAULT, date(9999, 12, 31), FAULT, FAULT, None])
    day = 86_400_000
    assert_becomes(pa.array([day, day + 1, 2**62, None], pa.date64()), Date, [date(1970, 1, 2), FAULT, FAULT, None])


def test_a_timestamp_is_no_date_and_a_date_no_timestamp() -> None:
    for column, dtype in ((pa.array([0], pa.timestamp("s", "UTC")), Date), (pa.array([date(2020, 1, 1)]), Timestamp)):
        with pytest.raises(SourceError, match="column 'x' holds"):
            convert(column, "x", dtype, Reading())
