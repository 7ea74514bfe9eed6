"""How old the published data of each view is, as gauges: from the publish state, at the time of the process's clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from featurestore.clock import Clock, timedelta_us, to_us
from featurestore.errors import FeatureStoreError
from featurestore.feature_view import FeatureView
from serving.metrics import PROMISE, WATERMARK_AGE, Labels, Metrics
from serving.watermarks import PublishedWatermarks, PublishStates

log = logging.getLogger(__name__)

#: Watermarks are read again after this time; more often than scrapes come would be for nobody.
REFRESH_S = 10.0


def watch_views(
    metrics: Metrics, views: Callable[[], Mapping[str, FeatureView]], states: PublishStates, clock: Clock
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
