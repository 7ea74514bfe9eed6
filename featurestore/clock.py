"""The one place that reads the wall clock, and the one rule of time zones.

Every timestamp is timezone-aware UTC, exact in microseconds. Inside the engines a timestamp is an int64 of
microseconds since 1970-01-01T00:00Z (`to_us`, `from_us`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from featurestore.errors import InputError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
#: 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z, the range of `datetime`.
TIMESTAMP_MIN_US = -62_135_596_800_000_000
TIMESTAMP_MAX_US = 253_402_300_799_999_999


class Clock(Protocol):
    """Tells the time that the whole process agrees on."""

    @property
    def real(self) -> bool:
        """Whether this is the wall clock itself; only then may a store expire rows natively."""
        ...

    def now(self) -> datetime:
        """The time now, aware, UTC."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The wall clock."""

    real = True

    def now(self) -> datetime:
        """The time now, aware, UTC."""
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class FixedClock:
    """A clock that stands still, so that history can be replayed as if it were today."""

    instant: datetime
    real = False

    def now(self) -> datetime:
        """Always `instant`."""
        return self.instant


@dataclass(frozen=True, slots=True)
class ShiftedClock:
    """A clock that runs at the speed of the wall clock, at another date."""

    offset: timedelta
    real = False

    def now(self) -> datetime:
        """The wall clock plus the offset."""
        return datetime.now(UTC) + self.offset


def parse_clock(text: str | None) -> Clock:
    """A clock from `--now`: nothing (the wall clock), an ISO time (fixed) or `from:` and an ISO time (running)."""
    if text is None:
        return SystemClock()
    if text.startswith("from:"):
        return ShiftedClock(parse_instant(text.removeprefix("from:"), "--now") - datetime.now(UTC))
    return FixedClock(parse_instant(text, "--now"))


def parse_instant(text: str, what: str) -> datetime:
    """An aware UTC datetime from ISO 8601 text; `what` names the input in the error."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{what}: {text!r} is not a time; write it as 2013-12-01T05:00:00Z") from error
    return aware_utc(parsed, what)


def aware_utc(value: datetime, what: str) -> datetime:
    """`value` in UTC; InputError naming `what` when it has no time zone."""
    if value.tzinfo is None:
        raise InputError(f"{what}: {value.isoformat()} has no time zone; add one, as in {value.isoformat()}Z")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise InputError(f"{what}: {value.isoformat()} lies outside the years 1 to 9999 in UTC") from error


def to_us(value: datetime) -> int:
    """Microseconds since the epoch, exact."""
    return (value - EPOCH) // MICROSECOND


def from_us(value: int) -> datetime:
    """The aware UTC datetime of `value` microseconds since the epoch."""
    return EPOCH + timedelta(microseconds=value)


def iso_text(value: int) -> str:
    """`value` microseconds since the epoch as ISO 8601 in UTC."""
    return from_us(value).isoformat().replace("+00:00", "Z")


def duration_text(value: timedelta) -> str:
    """A duration in the largest unit that divides it: `7d`, `90min`, `1500ms`; none at all is `0s`."""
    us = timedelta_us(value)
    if not us:
        return "0s"
    for unit, size in (
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("min", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1000),
    ):
        if us % size == 0:
            return f"{us // size}{unit}"
    return f"{us}us"


def timedelta_us(value: timedelta) -> int:
    """A duration in microseconds, exact."""
    return value // MICROSECOND
