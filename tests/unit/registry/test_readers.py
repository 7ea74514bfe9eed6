"""Who read which views is known, for long enough, and keeps them from removal."""

from __future__ import annotations

from datetime import timedelta

import pytest

from featurestore.clock import SystemClock, to_us
from featurestore.registry.readers import Reader, list_readers, recent_readers, record_reader, record_readers
from featurestore.registry.state import StateStore
from tests.fix_registry import on_both


@on_both
def test_a_reader_is_known_by_what_it_read_last(state: StateStore) -> None:
    record_reader(state, "model", "late", ["weather@1"], service="model", digest="d1", seen_at_us=1)
    record_reader(state, "model", "late", ["weather@2"], service="model", digest="d2", seen_at_us=2)
    record_reader(state, "training set", "late", ["weather@1"], seen_at_us=3)
    assert list_readers(state) == [
        Reader(kind="training set", name="late", views=("weather@1",), seen_at_us=3),
        Reader(kind="model", name="late", views=("weather@2",), seen_at_us=2, service="model", digest="d2"),
    ]


@on_both
def test_an_older_sight_never_replaces_a_newer_one(state: StateStore) -> None:
    """Several workers tell once a minute each, in any order."""
    new, old = (Reader(kind="service", name="s", views=(ref,), seen_at_us=us) for ref, us in (("b@1", 9), ("a@1", 5)))
    record_readers(state, [new])
    record_readers(state, [old])
    assert list_readers(state) == [new]


@pytest.mark.parametrize(("days", "known"), [(30, ["young"]), (60, ["young", "old"]), (0, [])])
def test_recent_is_what_was_seen_within_the_window(state: StateStore, days: int, known: list[str]) -> None:
    now_us = to_us(SystemClock().now())
    for name, age in (("young", timedelta(days=29)), ("old", timedelta(days=31))):
        seen_at_us = now_us - age // timedelta(microseconds=1)
        record_reader(state, "service", name, ["weather@1"], seen_at_us=seen_at_us)
    assert [reader.name for reader in recent_readers(state, timedelta(days=days))] == known


def test_a_reader_in_words_says_what_it_is_and_when_it_was_seen() -> None:
    digest = "0123456789abcdef"
    training = Reader(kind="training set", name=digest, views=(), seen_at_us=0, service="late")
    assert str(training) == "training set 0123456789ab of service late, last seen 1970-01-01T00:00:00Z"
    assert str(Reader(kind="service", name="late", views=(), seen_at_us=0, service="late")) == (
        "serving of late, last seen 1970-01-01T00:00:00Z"
    )
