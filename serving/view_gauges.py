"""Gauges of each view, from job state: how old what is published is by the process's clock, how its last load went."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from featurestore.clock import Clock, timedelta_us, to_us
from featurestore.errors import FeatureStoreError
from featurestore.feature_view import FeatureView
from serving.last_loads import LastLoad, LastLoads, Runs
from serving.metrics import (
    LOAD_BREACHES,
    LOAD_ROWS,
    PROMISE,
    QUARANTINED,
    RUN_FAILED,
    WATERMARK_AGE,
    Labels,
    Metrics,
)
from serving.watermarks import PublishedWatermarks, PublishStates

log = logging.getLogger(__name__)

#: Watermarks are read again after this time; more often than scrapes come would be for nobody.
REFRESH_S = 10.0

#: Quarantined rows are counted again after this time: a million take a tenth of a second.
COUNT_S = 60.0

Known = TypeVar("Known")
#: Rows by view, name@version.
Totals = Callable[[], Mapping[str, int]]


def _in_a_thread(work: Callable[[], None]) -> None:
    """Nobody waits for it, nor does the end of the process."""
    threading.Thread(target=work, name="quarantine", daemon=True).start()


class JobStates(PublishStates, Runs, Protocol):
    """The part of the state store that is read here."""


class _Reading:
    """Reads a store, or nothing while it is away: a scrape does not wait for it at every gauge, and one tells."""

    def __init__(self, what: str, ticks: Callable[[], float]) -> None:
        self._what, self._ticks = what, ticks
        self._failed_at: float | None = None

    def of(self, read: Callable[[], Mapping[str, Known]]) -> Mapping[str, Known]:
        """What is read; nothing for `REFRESH_S` after a failure, and where it fails again."""
        if self._failed_at is not None and self._ticks() - self._failed_at < REFRESH_S:
            return {}
        try:
            found = read()
        except FeatureStoreError as error:
            if self._failed_at is None:
                log.warning("%s cannot be read, its metrics are missing until it can: %s", self._what, error)
            self._failed_at = self._ticks()
            return {}
        if self._failed_at is not None:
            log.warning("%s can be read again, and its metrics are back", self._what)
            self._failed_at = None
        return found


def watch_views(
    metrics: Metrics,
    views: Callable[[], Mapping[str, FeatureView]],
    states: JobStates,
    clock: Clock,
    ticks: Callable[[], float] = time.monotonic,
) -> None:
    """Add the gauges of all views that are served when they are read; `views` are keyed by name@version."""
    watermarks, reading = PublishedWatermarks(states, REFRESH_S, ticks), _Reading("the job state of views", ticks)

    def ages() -> dict[Labels, float]:
        now_us = to_us(clock.now())
        known = reading.of(lambda: {ref: watermarks.watermark_us(ref) for ref in views()})
        return {(ref,): max(now_us - at_us, 0) / 1e6 for ref, at_us in known.items() if at_us is not None}

    def promises() -> dict[Labels, float]:
        return {
            (ref,): timedelta_us(view.freshness) / 1e6 for ref, view in views().items() if view.freshness is not None
        }

    metrics.watch(WATERMARK_AGE, ages)
    metrics.watch(PROMISE, promises)
    _watch_loads(metrics, views, LastLoads(states, ticks), reading)


def _watch_loads(
    metrics: Metrics, views: Callable[[], Mapping[str, FeatureView]], loads: LastLoads, reading: _Reading
) -> None:
    def served() -> Mapping[str, LastLoad]:
        return {ref: load for ref, load in reading.of(loads.now).items() if ref in views()}

    def rows() -> dict[Labels, float]:
        return {(ref, outcome): count for ref, load in served().items() for outcome, count in load.rows.items()}

    def breaches() -> dict[Labels, float]:
        return {(ref, rule): count for ref, load in served().items() for rule, count in load.breaches.items()}

    metrics.watch(LOAD_ROWS, rows)
    metrics.watch(LOAD_BREACHES, breaches)
    metrics.watch(RUN_FAILED, lambda: {(ref,): float(load.failed) for ref, load in served().items()})


def watch_quarantine(
    metrics: Metrics,
    views: Callable[[], Mapping[str, FeatureView]],
    totals: Totals,
    ticks: Callable[[], float] = time.monotonic,
    start: Callable[[Callable[[], None]], None] = _in_a_thread,
) -> None:
    """Add the gauge of quarantined rows; `totals` counts them by name@version.

    They are counted in a thread: metrics do not wait for history. The gauge tells what was counted last.
    """
    reading = _Reading("quarantine", ticks)
    counted_at, counting = -math.inf, False
    counts: Mapping[str, int] | None = None

    def count() -> None:
        nonlocal counts, counting
        try:
            counts = reading.of(lambda: {"totals": totals()}).get("totals")
        finally:
            counting = False  # whatever it was, the next one may be counted

    def told() -> dict[Labels, float]:
        nonlocal counted_at, counting
        if not counting and ticks() - counted_at >= COUNT_S:
            counting, counted_at = True, ticks()
            start(count)
        return {} if counts is None else {(ref,): counts.get(ref, 0) for ref in views()}

    metrics.watch(QUARANTINED, told)
