"""What the gauges of views tell: how old a view is, how its last load went, its quarantine; nothing of a store away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from featurestore.clock import FixedClock
from featurestore.errors import StoreUnreachable
from featurestore.registry.state import PublishState, Run, StateStore
from serving.metrics import Labels, Metrics, Snapshot, Value
from serving.view_gauges import COUNT_S, REFRESH_S, watch_quarantine, watch_views
from tests.unit.serving.conftest import Backend
from tests.unit.serving.world import HOUR_US, NOW, NOW_US
from tests.waiting import until

AGE = "featurestore_reading_age_seconds"


def of(snapshot: Snapshot, name: str) -> dict[Labels, Value]:
    return snapshot.values.get(name, {})


def test_the_age_of_each_view_is_that_of_its_newest_published_event(backend: Backend) -> None:
    metrics, catalog = Metrics(), backend.engine().catalog
    backend.publish("weather@1", NOW_US - 90_000_000)
    backend.publish("delays@2", NOW_US - HOUR_US)
    watch_views(metrics, lambda: catalog.views, backend.state, FixedClock(NOW), start=at_once)

    snapshot = metrics.snapshot()

    ages = {("weather@1",): 90.0, ("delays@2",): 3600.0}
    assert of(snapshot, "featurestore_view_watermark_age_seconds") == ages, "nothing of a view never published"
    assert of(snapshot, "featurestore_view_freshness_promise_seconds") == {("delays@2",): 6 * 3600.0}


def at_once(work: Callable[[], object], _: str) -> None:
    work()


class Leaving:
    """Job state that can be away; counts how often it was asked for."""

    def __init__(self, states: StateStore) -> None:
        self._states, self.away, self.asked = states, False, 0

    def publish_state(self, ref: str) -> PublishState | None:
        self._ask()
        return self._states.publish_state(ref)

    def runs(self, limit: int) -> Sequence[Run]:
        self._ask()
        return self._states.runs(limit)

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise StoreUnreachable("nobody answers")


def test_job_state_that_is_away_is_told_once_and_once_that_it_is_back(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    states, metrics, now = Leaving(backend.state), Metrics(), 0.0
    catalog = backend.engine().catalog
    backend.publish("weather@1", NOW_US - 90_000_000)
    watch_views(metrics, lambda: catalog.views, states, FixedClock(NOW), ticks=lambda: now, start=at_once)

    def told() -> list[str]:
        nonlocal now
        caplog.clear()
        for _ in range(6):
            metrics.snapshot()
            now += REFRESH_S / 2
        return [record.getMessage() for record in caplog.records]

    assert told() == []
    states.away, states.asked = True, 0
    assert told() == ["job state cannot be read, its metrics are missing until it can: nobody answers"]
    assert states.asked == 3, "once in a while, not at every gauge"
    assert of(metrics.snapshot(), AGE) == {("job state",): 4 * REFRESH_S}, "of what was read last"
    assert of(metrics.snapshot(), "featurestore_view_watermark_age_seconds") == {}
    now += REFRESH_S
    states.away = False
    assert told() == ["job state can be read again, and its metrics are back"]
    assert of(metrics.snapshot(), "featurestore_view_watermark_age_seconds") == {("weather@1",): 90.0}


def test_the_last_load_of_each_view_tells_how_it_kept_its_contract(backend: Backend) -> None:
    """A run that found nothing new, or replayed, leaves the figures of the load; a view not served is not told of."""

    def ran(kind: str, error: str | None = None, **loaded: object) -> None:
        run = backend.state.start_run(kind, ["weather@1"])
        counts = {"loaded": loaded or None, "published": None, "error": error}
        backend.state.finish_run(run.id, "succeeded", {"weather@1": counts, "gone@1": counts})

    ran("materialize-incremental", read=10, quarantined=9, warned=0, breaches={"temp:le": 9})
    ran("materialize-incremental", read=100, quarantined=2, warned=1, breaches={"temp:le": 2, "sky:pattern": 1})
    ran("replay", read=2, quarantined=1, warned=0, breaches={"temp:le": 1})
    ran("materialize-incremental", "the store is away", read=0, quarantined=0, warned=0, breaches={})
    metrics = Metrics()
    watch_views(metrics, lambda: backend.engine().catalog.views, backend.state, FixedClock(NOW), start=at_once)

    snapshot = metrics.snapshot()

    assert of(snapshot, "featurestore_view_load_rows") == {
        ("weather@1", "read"): 100, ("weather@1", "quarantined"): 2, ("weather@1", "warned"): 1,
    }  # fmt: skip
    assert of(snapshot, "featurestore_view_load_breaches") == {
        ("weather@1", "temp:le"): 2,
        ("weather@1", "sky:pattern"): 1,
    }
    assert of(snapshot, "featurestore_view_run_failed") == {("weather@1",): 1}


def test_quarantined_rows_are_counted_now_and_then_for_the_views_that_are_served(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, catalog, now = Metrics(), backend.engine().catalog, 0.0
    found: dict[str, int] | None = {"weather@1": 3, "gone@1": 9}

    def totals() -> dict[str, int]:
        if found is None:
            raise StoreUnreachable("nobody answers")
        return found

    def told() -> dict[Labels, Value]:
        return of(metrics.snapshot(), "featurestore_view_quarantined_rows")

    watch_quarantine(metrics, lambda: catalog.views, totals, lambda: now, start=at_once)
    none = {(ref,): 0 for ref in catalog.views}
    assert told() == none | {("weather@1",): 3}
    found = {}
    assert told() == none | {("weather@1",): 3}, "kept for a while"
    now += COUNT_S
    assert told() == none
    found = None
    now += COUNT_S
    assert told() == {}
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["quarantine cannot be read"]


def test_metrics_wait_neither_for_a_count_of_quarantine_nor_for_job_state(backend: Backend) -> None:
    """A store may be silent for ever: what it told last is told on, and how old that is."""
    metrics, catalog, answers, now = Metrics(), backend.engine().catalog, threading.Event(), 0.0
    backend.publish("weather@1", NOW_US - 90_000_000)

    class Silent(Leaving):
        def _ask(self) -> None:
            answers.wait()

    def totals() -> dict[str, int]:
        answers.wait()
        return {"weather@1": 3}

    def told() -> dict[Labels, Value]:
        snapshot = metrics.snapshot()
        return of(snapshot, "featurestore_view_quarantined_rows") | of(snapshot, "featurestore_view_run_failed")

    def ages() -> dict[Labels, Value]:
        return of(metrics.snapshot(), "featurestore_view_watermark_age_seconds")

    watch_views(metrics, lambda: catalog.views, Silent(backend.state), FixedClock(NOW), ticks=lambda: now)
    watch_quarantine(metrics, lambda: catalog.views, totals, ticks=lambda: now)
    assert told() == ages() == of(metrics.snapshot(), AGE) == {}, "as long as nobody has answered"
    answers.set()
    until(lambda: told().get(("weather@1",)) == 3 and ages() == {("weather@1",): 90.0})
    answers.clear()
    now += COUNT_S
    assert ages() == {("weather@1",): 90.0}
    assert of(metrics.snapshot(), AGE) == {("job state",): COUNT_S, ("quarantine",): COUNT_S}
    answers.set()
    until(lambda: set(of(metrics.snapshot(), AGE).values()) == {0.0})
