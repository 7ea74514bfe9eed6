"""Values of flags, read once and within their limits; what argparse says of a wrong one names the flag."""

from __future__ import annotations

import argparse
from datetime import timedelta

COUNT_MAX = 1_000_000
PORT_MAX = 65_535


def count(text: str) -> int:
    """How many to show."""
    return _whole(text, 1, COUNT_MAX)


def port(text: str) -> int:
    """A TCP port; 0 takes a free one."""
    return _whole(text, 0, PORT_MAX)


def seconds(text: str) -> timedelta:
    """A duration in seconds, fractions allowed."""
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error


def _whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
    return int(text)
