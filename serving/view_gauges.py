"""Gauges of each view, from job state: how old what is published is by the process's clock, how its last load went."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from featurestore.clock import Clock, timedelta_us, to_us
from featurestore.errors import FeatureStoreError
from featurestore.feature_view import FeatureView
from serving.last_loads import LastLoad, LastLoads, Runs
from serving.metrics import LOAD_BREACHES, LOAD_ROWS, PROMISE, RUN_FAILED, WATERMARK_AGE, Labels, Metrics
from serving.watermarks import PublishedWatermarks, PublishStates

log = logging.getLogger(__name__)

#: Watermarks are read again after this time; more often than scrapes come would be for nobody.
REFRESH_S = 10.0


class JobStates(PublishStates, Runs, Protocol):
    """The part of the state store that is read here."""


def watch_views(
    metrics: Metrics, views: Callable[[], Mapping[str, FeatureView]], states: JobStates, clock: Clock
) -> None:
    """Add the gauges of all views that are served when they are read; `views` are keyed by name@version."""
    watermarks = PublishedWatermarks(states, REFRESH_S)

    def ages() -> dict[Labels, float]:
        now_us = to_us(clock.now())
        try:
            known = {ref: watermarks.watermark_us(ref) for ref in views()}
        except FeatureStoreError as error:
            log.warning("watermarks cannot be read, their metric is missing: %s", error)
            return {}
        return {(ref,): max(now_us - at_us, 0) / 1e6 for ref, at_us in known.items() if at_us is not None}

    def promises() -> dict[Labels, float]:
        return {
            (ref,): timedelta_us(view.freshness) / 1e6 for ref, view in views().items() if view.freshness is not None
        }

    metrics.watch(WATERMARK_AGE, ages)
    metrics.watch(PROMISE, promises)
    _watch_loads(metrics, views, LastLoads(states))


def _watch_loads(metrics: Metrics, views: Callable[[], Mapping[str, FeatureView]], loads: LastLoads) -> None:
    def served() -> dict[str, LastLoad]:
        try:
            return {ref: load for ref, load in loads.now().items() if ref in views()}
        except FeatureStoreError as error:
            log.warning("runs cannot be read, the metrics of loads are missing: %s", error)
            return {}

    def rows() -> dict[Labels, float]:
        return {(ref, outcome): count for ref, load in served().items() for outcome, count in load.rows.items()}

    def breaches() -> dict[Labels, float]:
        return {(ref, rule): count for ref, load in served().items() for rule, count in load.breaches.items()}

    metrics.watch(LOAD_ROWS, rows)
    metrics.watch(LOAD_BREACHES, breaches)
    metrics.watch(RUN_FAILED, lambda: {(ref,): float(load.failed) for ref, load in served().items()})
