"""Gauges of each view, from job state and history: how old what is published is, its last load, its quarantine.

Both are read in threads and may be silent: a scrape waits for neither, tells what was read last, and when that was.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from featurestore.clock import Clock, timedelta_us, to_us
from featurestore.errors import FeatureStoreError
from featurestore.feature_view import FeatureView
from featurestore.trouble import Trouble
from serving.last_loads import LastLoad, LastLoads, Runs
from serving.metrics import (
    LOAD_BREACHES,
    LOAD_ROWS,
    PROMISE,
    QUARANTINED,
    READING_AGE,
    RUN_FAILED,
    WATERMARK_AGE,
    Labels,
    Metrics,
)
from serving.own_threads import left_to_itself
from serving.watermarks import PublishStates

log = logging.getLogger(__name__)

#: Job state is read again after this time; more often than scrapes come would be for nobody.
REFRESH_S = 10.0

#: Quarantined rows are counted again after this time: a million take a tenth of a second.
COUNT_S = 60.0

Known = TypeVar("Known")
#: Rows by view, name@version.
Totals = Callable[[], Mapping[str, int]]
Views = Callable[[], Mapping[str, FeatureView]]
#: Begins work of this name, which may hang.
Start = Callable[[Callable[[], object], str], None]


class JobStates(PublishStates, Runs, Protocol):
    """The part of the state store that is read here."""


class _Reading(Generic[Known]):
    """What a store told last; it is asked every so often when somebody wants to know, and nobody waits for it."""

    def __init__(
        self, what: str, read: Callable[[], Known], every_s: float, ticks: Callable[[], float], start: Start
    ) -> None:
        self._what, self._read, self._every_s, self._ticks, self._start = what, read, every_s, ticks, start
        self._trouble = Trouble(
            log,
            f"{what} cannot be read, its metrics are missing until it can",
            f"{what} can be read again, and its metrics are back",
        )
        #: Held while the store is asked, from the thread that begins it to the one that does it.
        self._asking = threading.Lock()
        self._asked_at, self._known_at = -math.inf, -math.inf
        self._known: Known | None = None

    def latest(self) -> Known | None:
        """What was read last, None where that failed; begins to read when it is time."""
        if self._ticks() - self._asked_at >= self._every_s and self._asking.acquire(blocking=False):
            self._asked_at = self._ticks()
            self._start(self._ask, self._what)
        return self._known

    def age(self) -> dict[Labels, float]:
        """For how long the store has told nothing newer; nothing before its first word."""
        return {} if self._known_at == -math.inf else {(self._what,): self._ticks() - self._known_at}

    def _ask(self) -> None:
        known, at = None, self._asked_at
        try:
            known, self._known_at = self._read(), at
            self._trouble.passed()
        except FeatureStoreError as error:
            self._trouble.met(error)
        finally:
            self._known = known
            self._asking.release()


@dataclass(frozen=True)
class _Jobs:
    """By name@version: watermarks of what was published, and the last loads."""

    watermarks_us: Mapping[str, int]
    loads: Mapping[str, LastLoad]


def watch_views(
    metrics: Metrics,
    views: Views,
    states: JobStates,
    clock: Clock,
    ticks: Callable[[], float] = time.monotonic,
    start: Start = left_to_itself,
) -> None:
    """Add the gauges of all views that are served when they are read; `views` are keyed by name@version."""
    loads = LastLoads(states)

    def read() -> _Jobs:
        published = {ref: states.publish_state(ref) for ref in views()}
        watermarks = {ref: state.watermark_us for ref, state in published.items() if state is not None}
        return _Jobs({ref: at_us for ref, at_us in watermarks.items() if at_us is not None}, loads.read())

    reading = _Reading("job state", read, REFRESH_S, ticks, start)

    def ages() -> dict[Labels, float]:
        known, now_us = reading.latest(), to_us(clock.now())
        watermarks = {} if known is None else known.watermarks_us
        return {(ref,): max(now_us - at_us, 0) / 1e6 for ref, at_us in watermarks.items() if ref in views()}

    def promises() -> dict[Labels, float]:
        return {
            (ref,): timedelta_us(view.freshness) / 1e6 for ref, view in views().items() if view.freshness is not None
        }

    metrics.watch(WATERMARK_AGE, ages)
    metrics.watch(PROMISE, promises)
    metrics.watch(READING_AGE, reading.age)
    _watch_loads(metrics, views, reading)
    reading.latest()  # so that the first scrape finds it


def _watch_loads(metrics: Metrics, views: Views, reading: _Reading[_Jobs]) -> None:
    def served() -> Mapping[str, LastLoad]:
        known = reading.latest()
        return {} if known is None else {ref: load for ref, load in known.loads.items() if ref in views()}

    def rows() -> dict[Labels, float]:
        return {(ref, outcome): count for ref, load in served().items() for outcome, count in load.rows.items()}

    def breaches() -> dict[Labels, float]:
        return {(ref, rule): count for ref, load in served().items() for rule, count in load.breaches.items()}

    metrics.watch(LOAD_ROWS, rows)
    metrics.watch(LOAD_BREACHES, breaches)
    metrics.watch(RUN_FAILED, lambda: {(ref,): float(load.failed) for ref, load in served().items()})


def watch_quarantine(
    metrics: Metrics,
    views: Views,
    totals: Totals,
    ticks: Callable[[], float] = time.monotonic,
    start: Start = left_to_itself,
) -> None:
    """Add the gauge of quarantined rows; `totals` counts them by name@version."""
    reading = _Reading("quarantine", totals, COUNT_S, ticks, start)

    def told() -> dict[Labels, float]:
        counts = reading.latest()
        return {} if counts is None else {(ref,): counts.get(ref, 0) for ref in views()}

    metrics.watch(QUARANTINED, told)
    metrics.watch(READING_AGE, reading.age)
    reading.latest()
