"""What the serving process counts, and the table of all metrics. Knows neither sockets nor the text format.

A request costs one short append: times and verdicts are kept as they are and turned into histogram buckets and counts
by numpy, hundreds of requests at a time. `snapshot` gives plain numbers that `exposition` adds up over all workers.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featurestore.status import StaleReason, Status
from serving.observing import Call, Stage

Labels = tuple[str, ...]

#: Upper bounds of the histograms, seconds: from a cached row to the longest deadline that makes sense.
BOUNDS_S = (
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
    0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_BOUNDS_NS = np.array([round(bound * 1e9) for bound in BOUNDS_S], np.int64)
#: Requests and rows of a service that wait to be counted; with them, a worker holds at most some 100 KB a service.
PENDING_REQUESTS_MAX = 512
PENDING_ROWS_MAX = 1 << 16
#: The service label of a list of features, and of a request refused before its service was known.
FEATURE_LIST, UNKNOWN = "(features)", "(none)"
_REASONS = 8


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric. `merge` says how the gauges of several workers become one; counters and histograms add up."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    merge: Literal["sum", "max"] = "sum"
    #: Upper bounds of a histogram.
    bounds: tuple[float, ...] = BOUNDS_S


REQUESTS = Family(
    name="featurestore_requests",
    kind="counter",
    help="Requests answered or refused, by gRPC status code.",
    labels=("method", "service", "code"),
)
REQUEST_SECONDS = Family(
    name="featurestore_request_seconds",
    kind="histogram",
    help="Time from the arrival of a request to its reply.",
    labels=("method", "service"),
)
STAGE_SECONDS = Family(
    name="featurestore_request_stage_seconds",
    kind="histogram",
    help="Time of a request in one stage: queue, parse, fetch, decode, model, encode.",
    labels=("method", "service", "stage"),
)
REQUEST_ROWS = Family(
    name="featurestore_request_rows",
    kind="counter",
    help="Rows (entities) answered.",
    labels=("method", "service"),
)
ROWS = Family(
    name="featurestore_rows",
    kind="counter",
    help="Verdicts on rows: one per view and row.",
    labels=("service", "view", "status", "reason"),
)
IN_FLIGHT = Family(name="featurestore_requests_in_flight", kind="gauge", help="Requests being answered.")
QUEUE_DEPTH = Family(name="featurestore_queue_depth", kind="gauge", help="Requests waiting to be admitted.")
SHED = Family(
    name="featurestore_requests_shed",
    kind="counter",
    help="Requests refused by admission control.",
    labels=("method", "reason"),
)
BREAKER = Family(
    name="featurestore_store_breaker_state",
    kind="gauge",
    help="Circuit breaker to the online store: 0 closed, 1 half open, 2 open; the worst of all workers.",
    merge="max",
)
CACHE_ROWS = Family(
    name="featurestore_near_cache_rows",
    kind="counter",
    help="Rows looked for in the near cache, by outcome: hit, miss.",
    labels=("view", "outcome"),
)
CACHE_BYTES = Family(
    name="featurestore_near_cache_bytes",
    kind="gauge",
    help="Memory that near caches take, by the measure of near_cache.megabytes.",
)
SIDECAR_BREAKER = Family(
    name="featurestore_sidecar_breaker_state",
    kind="gauge",
    help="Circuit breaker to the inference sidecar: 0 closed, 1 half open, 2 open; the worst of all workers.",
    merge="max",
)
WATERMARK_AGE = Family(
    name="featurestore_view_watermark_age_seconds",
    kind="gauge",
    help="Age of the newest event time published for a view.",
    labels=("view",),
    merge="max",
)
PROMISE = Family(
    name="featurestore_view_freshness_promise_seconds",
    kind="gauge",
    help="How old the newest published event of a view may be, as it promises.",
    labels=("view",),
    merge="max",
)
LOAD_ROWS = Family(
    name="featurestore_view_load_rows",
    kind="gauge",
    help="Rows of the last load of a view by outcome: read, quarantined, warned.",
    labels=("view", "outcome"),
    merge="max",
)
LOAD_BREACHES = Family(
    name="featurestore_view_load_breaches",
    kind="gauge",
    help="Rows of the last load of a view that break a rule of its contract.",
    labels=("view", "rule"),
    merge="max",
)
RUN_FAILED = Family(
    name="featurestore_view_run_failed",
    kind="gauge",
    help="Whether the last run failed for a view.",
    labels=("view",),
    merge="max",
)
QUARANTINED = Family(
    name="featurestore_view_quarantined_rows",
    kind="gauge",
    help="Rows of a view in quarantine.",
    labels=("view",),
    merge="max",
)
READING_AGE = Family(
    name="featurestore_reading_age_seconds",
    kind="gauge",
    help="Time since what the gauges of views tell was read, by where it lies: job state, quarantine.",
    labels=("reading",),
    merge="max",
)
WORKERS = Family(name="featurestore_workers", kind="gauge", help="Worker processes alive.")
READY = Family(name="featurestore_workers_ready", kind="gauge", help="Worker processes that take requests.")

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        REQUESTS, REQUEST_SECONDS, STAGE_SECONDS, REQUEST_ROWS, ROWS, IN_FLIGHT, QUEUE_DEPTH, SHED, BREAKER,
        SIDECAR_BREAKER, CACHE_ROWS, CACHE_BYTES, WATERMARK_AGE, PROMISE, LOAD_ROWS, LOAD_BREACHES, RUN_FAILED,
        QUARANTINED, READING_AGE, WORKERS, READY,
    )
}  # fmt: skip


@dataclass
class Distribution:
    """A histogram's numbers: how many fell into each bucket (the last is beyond all bounds), and their sum."""

    counts: list[int]
    sum_s: float


Value = float | Distribution


@dataclass
class Snapshot:
    """The numbers of one process, or of several put together: name of a family -> labels -> value."""

    values: dict[str, dict[Labels, Value]] = field(default_factory=dict)

    def put(self, family: Family, labels: Labels, value: Value) -> None:
        """Set one number."""
        assert len(labels) == len(family.labels), f"{family.name} has the labels {family.labels}"
        self.values.setdefault(family.name, {})[labels] = value


class Metrics:
    """The counters of one process; any thread may record and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str | None], _Series] = {}
        self._counts: Counter[tuple[Family, Labels]] = Counter()
        self._watched: list[tuple[Family, Callable[[], Mapping[Labels, float]]]] = []

    def add(self, family: Family, labels: Labels = (), amount: float = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._counts[family, labels] += amount  # type: ignore[assignment]  # a count may be a float

    def watch(self, family: Family, read: Callable[[], Mapping[Labels, float]]) -> None:
        """A gauge that is read whenever a snapshot is made: labels -> value."""
        self._watched.append((family, read))

    def record(self, call: Call) -> None:
        """Count a request that has ended."""
        with self._lock:
            series = self._series.get((call.method, call.service))
            if series is None:
                series = self._series[call.method, call.service] = _Series()
            series.record(call)

    def snapshot(self) -> Snapshot:
        """All numbers as they stand."""
        snapshot = Snapshot()
        with self._lock:
            for (family, labels), count in self._counts.items():
                snapshot.put(family, labels, count)
            for (method, service), series in self._series.items():
                label = UNKNOWN if service is None else service or FEATURE_LIST
                series.put_into(snapshot, method, label)
        for family, read in self._watched:
            for labels, value in read().items():
                snapshot.put(family, labels, value)
        snapshot.put(WORKERS, (), 1)
        return snapshot


class _Series:
    """The requests of one method and service: those not yet counted, and the counts."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._rows = 0
        self._times: list[Sequence[int]] = []
        #: (view, statuses, reasons): the verdicts without what they may be views of.
        self._views: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]] = []
        self._pending_rows = 0
        #: A row per stage, and one for the whole.
        self._buckets = np.zeros((len(Stage) + 1, len(BOUNDS_S) + 1), np.int64)
        self._sums_ns = np.zeros(len(Stage) + 1, np.int64)
        #: View -> how often each status with each reason.
        self._verdicts: dict[str, NDArray[np.int64]] = {}

    def record(self, call: Call) -> None:
        self._codes[call.code] = self._codes.get(call.code, 0) + 1
        call.stages_ns.append(call.ended_ns - call.started_ns)
        self._times.append(call.stages_ns)
        for view in call.views:
            self._views.append((view.ref, view.statuses, view.reasons))
            self._pending_rows += call.rows
        self._rows += call.rows
        if len(self._times) >= PENDING_REQUESTS_MAX or self._pending_rows >= PENDING_ROWS_MAX:
            self._count()

    def put_into(self, snapshot: Snapshot, method: str, service: str) -> None:
        self._count()
        for code, count in self._codes.items():
            snapshot.put(REQUESTS, (method, service, code), count)
        snapshot.put(REQUEST_SECONDS, (method, service), self._distribution(len(Stage)))
        for stage in Stage:
            if self._buckets[stage].any():
                snapshot.put(STAGE_SECONDS, (method, service, stage.name.lower()), self._distribution(stage))
        if self._rows:
            snapshot.put(REQUEST_ROWS, (method, service), self._rows)
        for view, counts in self._verdicts.items():
            for number in np.flatnonzero(counts).tolist():
                status, reason = Status(number // _REASONS), StaleReason(number % _REASONS)
                labels = (service, view, status.name, reason.name if reason else "")
                before = snapshot.values.get(ROWS.name, {}).get(labels, 0)
                assert isinstance(before, (int, float))
                snapshot.put(ROWS, labels, before + int(counts[number]))  # several methods answer one service

    def _distribution(self, row: int) -> Distribution:
        return Distribution(self._buckets[row].tolist(), int(self._sums_ns[row]) / 1e9)

    def _count(self) -> None:
        if not self._times:
            return
        times = np.array(self._times, np.int64).T
        for row, column in enumerate(times):
            happened = column[column > 0]
            places = np.searchsorted(_BOUNDS_NS, happened)
            self._buckets[row] += np.bincount(places, minlength=len(BOUNDS_S) + 1)
        self._sums_ns += times.sum(axis=1)
        by_view: dict[str, tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]] = {}
        for ref, statuses, reasons in self._views:
            of_view = by_view.setdefault(ref, ([], []))
            of_view[0].append(statuses)
            of_view[1].append(reasons)
        for ref, of_view in by_view.items():
            counted = _counted(*map(np.concatenate, of_view))
            self._verdicts[ref] = self._verdicts.get(ref, 0) + counted
        self._times, self._views, self._pending_rows = [], [], 0


def _counted(statuses: NDArray[np.uint8], reasons: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each (status, reason) occurs."""
    return np.bincount(statuses * np.uint8(_REASONS) + reasons, minlength=len(Status) * _REASONS)
