"""What is counted of one version of a model, and the metrics made of it. Only the event loop counts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.metrics import BOUNDS_S, Distribution, Family, Snapshot

BOUNDS_ROWS = tuple(float(1 << power) for power in range(15))

_MODEL = ("model", "version")
REQUESTS = Family(
    name="featurestore_inference_requests",
    kind="counter",
    help="Requests to a model, by gRPC status code.",
    labels=(*_MODEL, "code"),
)
BATCH_ROWS = Family(
    name="featurestore_inference_batch_rows",
    kind="histogram",
    help="Rows of one run of a model.",
    labels=_MODEL,
    bounds=BOUNDS_ROWS,
)
BATCH_REQUESTS = Family(
    name="featurestore_inference_batched_requests",
    kind="counter",
    help="Requests that ran; against the number of runs, how many share one.",
    labels=_MODEL,
)
QUEUE_SECONDS = Family(
    name="featurestore_inference_queue_seconds",
    kind="histogram",
    help="Time a request waits for its run.",
    labels=_MODEL,
)
COMPUTE_SECONDS = Family(
    name="featurestore_inference_compute_seconds",
    kind="histogram",
    help="Time of one run of a model, putting its batch together included.",
    labels=_MODEL,
)
WAITING_ROWS = Family(
    name="featurestore_inference_waiting_rows", kind="gauge", help="Rows that wait for a run.", labels=_MODEL
)
SHED = Family(
    name="featurestore_inference_requests_shed",
    kind="counter",
    help="Requests turned away since too many rows waited.",
    labels=_MODEL,
)
STUCK = Family(
    name="featurestore_inference_runs_given_up",
    kind="counter",
    help="Runs that took longer than run_timeout_s.",
    labels=_MODEL,
)
READY = Family(
    name="featurestore_inference_model_ready",
    kind="gauge",
    help="1 for a version that takes requests, 0 for one that could not be loaded or hangs.",
    labels=_MODEL,
)
SHADOW = Family(
    name="featurestore_inference_shadow_requests",
    kind="counter",
    help="Copies of requests for a shadow version, by outcome: same, different, failed, dropped.",
    labels=(*_MODEL, "outcome"),
)
DEVICE_BYTES = Family(
    name="featurestore_inference_device_memory_bytes",
    kind="gauge",
    help="Memory that a model's framework has taken on the device, where it says.",
    labels=_MODEL,
)

FAMILIES = {
    family.name: family
    for family in (
        REQUESTS, BATCH_ROWS, BATCH_REQUESTS, QUEUE_SECONDS, COMPUTE_SECONDS, WAITING_ROWS, SHED, STUCK, READY, SHADOW,
        DEVICE_BYTES,
    )
}  # fmt: skip


@dataclass
class _Histogram:
    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def told(self) -> Distribution:
        return Distribution(list(self.counts), self.total)


@dataclass
class Tally:
    """The numbers of one version of a model."""

    codes: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    shed: int = 0
    stuck: int = 0
    shadowed: Counter[str] = field(default_factory=Counter)
    rows: _Histogram = field(default_factory=lambda: _Histogram(BOUNDS_ROWS))
    queue_s: _Histogram = field(default_factory=lambda: _Histogram(BOUNDS_S))
    compute_s: _Histogram = field(default_factory=lambda: _Histogram(BOUNDS_S))

    def ran(self, rows: Sequence[int], waited_ns: Sequence[int], took_ns: int) -> None:
        """One run: the rows of each of its requests, and how long each waited."""
        self.requests += len(rows)
        self.rows.add(sum(rows))
        self.compute_s.add(took_ns / 1e9)
        for one_ns in waited_ns:
            self.queue_s.add(one_ns / 1e9)

    def put_into(self, snapshot: Snapshot, model: str, version: str) -> None:
        """Tell it all."""
        labels = (model, version)
        for code, count in self.codes.copy().items():
            snapshot.put(REQUESTS, (*labels, code), count)
        snapshot.put(BATCH_ROWS, labels, self.rows.told())
        snapshot.put(BATCH_REQUESTS, labels, self.requests)
        snapshot.put(QUEUE_SECONDS, labels, self.queue_s.told())
        snapshot.put(COMPUTE_SECONDS, labels, self.compute_s.told())
        snapshot.put(SHED, labels, self.shed)
        snapshot.put(STUCK, labels, self.stuck)
        for outcome, count in self.shadowed.copy().items():
            snapshot.put(SHADOW, (*labels, outcome), count)
