"""Metrics: what requests leave behind, how workers are added up, what a scrape of a real server shows."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.clock import FixedClock
from featurestore.errors import ConfigError
from featurestore.online.order_keys import OrderKeys
from featurestore.status import StaleReason, Status
from featurestore_client import FeatureClient, RequestFailed
from serving.exposition import exposition, merged, metrics_port
from serving.metrics import (
    BOUNDS_S,
    BREAKER,
    CACHE_ROWS,
    FAMILIES,
    IN_FLIGHT,
    PENDING_REQUESTS_MAX,
    PENDING_ROWS_MAX,
    REQUEST_SECONDS,
    REQUESTS,
    ROWS,
    SHED,
    STAGE_SECONDS,
    WORKERS,
    Distribution,
    Labels,
    Metrics,
    Snapshot,
    Value,
)
from serving.metrics_folder import MetricsFolder, for_workers
from serving.observing import Call, Stage
from serving.response import ViewVerdicts
from serving.telemetry import Telemetry, TelemetryOptions
from serving.view_gauges import watch_views
from tests.unit.serving.conftest import Backend
from tests.unit.serving.metrics_worker import publish_until_told
from tests.unit.serving.running import server
from tests.unit.serving.world import HOUR_US, NOW, NOW_US
from tests.waiting import until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """(name, labels without the project) -> value."""
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "project"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def call(service: str | None = "s", code: str = "OK", took_ns: int = 1_000_000, **stages: int) -> Call:
    made = Call("GetOnlineFeatures", "id")
    made.service, made.code = service, code
    made.ended_ns = made.started_ns + took_ns
    for name, ns in stages.items():
        made.stages_ns[Stage[name.upper()]] = ns
    return made


def answered(rows: int, **statuses: list[tuple[Status, StaleReason]]) -> Call:
    made = call()
    made.rows = rows
    made.views = [
        ViewVerdicts(
            ref=ref,
            statuses=np.array([status for status, _ in verdicts], np.uint8),
            reasons=np.array([reason for _, reason in verdicts], np.uint8),
            event_us=np.zeros(len(verdicts), np.int64),
            stored=OrderKeys(*[np.zeros(len(verdicts), np.int64)] * 3),
        )
        for ref, verdicts in statuses.items()
    ]
    return made


def of(snapshot: Snapshot, name: str) -> dict[Labels, Value]:
    return snapshot.values.get(name, {})


# ---------------------------------------------------------------- what requests leave behind


def test_requests_are_counted_by_method_service_and_code() -> None:
    metrics = Metrics()
    for made in (call(), call(), call(code="NOT_FOUND"), call(""), call(None, "INVALID_ARGUMENT")):
        metrics.record(made)

    assert of(metrics.snapshot(), REQUESTS.name) == {
        ("GetOnlineFeatures", "s", "OK"): 2,
        ("GetOnlineFeatures", "s", "NOT_FOUND"): 1,
        ("GetOnlineFeatures", "(features)", "OK"): 1,
        ("GetOnlineFeatures", "(none)", "INVALID_ARGUMENT"): 1,
    }


@pytest.mark.parametrize("bound", BOUNDS_S)
def test_a_time_at_a_bound_belongs_to_its_bucket_and_one_beyond_to_the_next(bound: float) -> None:
    metrics = Metrics()
    at = round(bound * 1e9)
    metrics.record(call(took_ns=at))
    metrics.record(call(took_ns=at + 1))

    seconds = of(metrics.snapshot(), REQUEST_SECONDS.name)["GetOnlineFeatures", "s"]

    assert isinstance(seconds, Distribution)
    place = BOUNDS_S.index(bound)
    assert seconds.counts[place : place + 2] == [1, 1]
    assert math.isclose(seconds.sum_s, (2 * at + 1) / 1e9)


def test_a_stage_that_did_not_happen_is_not_a_time_of_zero() -> None:
    metrics = Metrics()
    metrics.record(call(parse=5_000, fetch=2_000_000))

    stages = of(metrics.snapshot(), STAGE_SECONDS.name)

    assert sorted(labels[2] for labels in stages) == ["fetch", "parse"]


def test_verdicts_are_counted_by_view_status_and_reason() -> None:
    metrics = Metrics()
    fine, stale = (Status.PRESENT, StaleReason.NONE), (Status.STALE, StaleReason.FRESHNESS)
    metrics.record(answered(3, a=[fine, fine, stale], b=[(Status.STALE, StaleReason.MAX_AGE), fine, fine]))
    metrics.record(answered(1, a=[(Status.NOT_FOUND, StaleReason.NONE)]))

    assert of(metrics.snapshot(), ROWS.name) == {
        ("s", "a", "PRESENT", ""): 2,
        ("s", "a", "STALE", "FRESHNESS"): 1,
        ("s", "a", "NOT_FOUND", ""): 1,
        ("s", "b", "STALE", "MAX_AGE"): 1,
        ("s", "b", "PRESENT", ""): 2,
    }


@pytest.mark.parametrize("calls", [1, PENDING_REQUESTS_MAX - 1, PENDING_REQUESTS_MAX, 3 * PENDING_REQUESTS_MAX + 1])
def test_no_request_is_lost_or_counted_twice_around_the_batch(calls: int) -> None:
    metrics = Metrics()
    for _ in range(calls):
        metrics.record(answered(1, a=[(Status.PRESENT, StaleReason.NONE)]))
    first, second = metrics.snapshot(), metrics.snapshot()

    assert first == second
    assert of(first, ROWS.name) == {("s", "a", "PRESENT", ""): calls}
    seconds = of(first, REQUEST_SECONDS.name)["GetOnlineFeatures", "s"]
    assert isinstance(seconds, Distribution)
    assert sum(seconds.counts) == calls


def test_verdicts_that_wait_are_bounded_by_rows() -> None:
    metrics = Metrics()
    verdicts = [(Status.PRESENT, StaleReason.NONE)] * (PENDING_ROWS_MAX // 4)
    waiting = []
    for _ in range(8):
        metrics.record(answered(len(verdicts), a=verdicts))
        waiting.append(sum(series._pending_rows for series in metrics._series.values()))

    assert max(waiting) < PENDING_ROWS_MAX
    assert of(metrics.snapshot(), ROWS.name) == {("s", "a", "PRESENT", ""): 8 * len(verdicts)}


def test_other_parts_count_and_show_gauges() -> None:
    metrics = Metrics()
    metrics.add(CACHE_ROWS, ("weather@1", "hit"), 90)
    metrics.add(CACHE_ROWS, ("weather@1", "hit"), 9)
    metrics.add(SHED, ("GetOnlineFeatures", "queue full"))
    state: dict[Labels, float] = {(): 2.0}
    metrics.watch(BREAKER, lambda: state)

    open_ = metrics.snapshot()
    state = {(): 0.0}

    assert of(open_, CACHE_ROWS.name) == {("weather@1", "hit"): 99}
    assert of(open_, SHED.name) == {("GetOnlineFeatures", "queue full"): 1}
    assert of(open_, BREAKER.name) == {(): 2.0}
    assert of(metrics.snapshot(), BREAKER.name) == {(): 0.0}


# ---------------------------------------------------------------- several workers


def test_workers_add_up_and_only_the_living_have_gauges() -> None:
    def worker(requests: int, breaker: float, in_flight: float) -> Snapshot:
        metrics = Metrics()
        for _ in range(requests):
            metrics.record(call())
        metrics.watch(BREAKER, lambda: {(): breaker})
        metrics.watch(IN_FLIGHT, lambda: {(): in_flight})
        return metrics.snapshot()

    total = merged([worker(3, 0, 2), worker(4, 2, 5)], [worker(10, 2, 100)])

    assert of(total, REQUESTS.name) == {("GetOnlineFeatures", "s", "OK"): 17}
    seconds = of(total, REQUEST_SECONDS.name)["GetOnlineFeatures", "s"]
    assert isinstance(seconds, Distribution)
    assert sum(seconds.counts) == 17
    assert math.isclose(seconds.sum_s, 0.017)
    assert of(total, BREAKER.name) == {(): 2}
    assert of(total, IN_FLIGHT.name) == {(): 7}
    assert of(total, WORKERS.name) == {(): 2}


class Worker:
    def __init__(self, folder: Path, requests: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=publish_until_told, args=(folder, requests, theirs))
        self.process.start()

    def wait(self) -> None:
        assert self._pipe.poll(30), "the worker did not start"
        assert self._pipe.recv() == "recorded"

    def end(self) -> None:
        self._pipe.send("end")
        self.process.join(20)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(20)


def test_killed_and_ended_workers_keep_their_counts_and_lose_their_gauges(tmp_path: Path) -> None:
    folder = MetricsFolder(tmp_path)

    def seen() -> tuple[object, object]:
        total = folder.collect()
        return of(total, REQUESTS.name).get(("GetOnlineFeatures", "s", "OK")), of(total, WORKERS.name).get(())

    killed, ended = workers = Worker(tmp_path, 3), Worker(tmp_path, 4)
    for worker in workers:
        worker.wait()
    until(lambda: seen() == (7, 2))
    killed.kill()
    assert seen() == (7, 1)
    ended.end()
    assert seen() == (7, None)
    replacement = Metrics()
    with MetricsFolder(tmp_path).publishing(replacement.snapshot, 0.02):
        replacement.record(call())
        until(lambda: seen() == (8, 1))
    assert seen() == (8, None)
    assert seen() == (8, None), "the dead are not counted again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folding", "retired.json"]


def test_a_worker_killed_while_it_wrote_leaves_no_file(tmp_path: Path) -> None:
    for suffix, content in ((".lock", ""), (".json", "{}"), (".draft", '{"half')):
        (tmp_path / f"7-ab{suffix}").write_text(content)

    assert MetricsFolder(tmp_path).collect() == Snapshot()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folding", "retired.json"]


def test_a_worker_that_ends_leaves_its_last_numbers(tmp_path: Path) -> None:
    metrics = Metrics()
    with MetricsFolder(tmp_path).publishing(metrics.snapshot, publish_s=3600):
        until(lambda: any(tmp_path.glob("*.json")))
        metrics.record(call())

    assert of(MetricsFolder(tmp_path).collect(), REQUESTS.name) == {("GetOnlineFeatures", "s", "OK"): 1}


def test_one_scrape_answers_for_all_workers_on_either_port(tmp_path: Path) -> None:
    """On the port of whoever started them, and in each of them (REST)."""
    with metrics_port("p", MetricsFolder(tmp_path).collect, "127.0.0.1", 0) as scraped:
        telemetries = [Telemetry(TelemetryOptions(metrics_folder=tmp_path)) for _ in range(2)]
        with telemetries[0].telling(), telemetries[1].telling():
            for telemetry in telemetries:
                telemetry.metrics.record(call())
            until(lambda: scrape(scraped).get(("featurestore_workers", ()), 0) == 2)
            key = ("featurestore_requests_total", (("code", "OK"), ("method", "GetOnlineFeatures"), ("service", "s")))
            until(lambda: scrape(scraped).get(key) == 2)
            assert of(telemetries[0].collect(), REQUESTS.name) == {("GetOnlineFeatures", "s", "OK"): 2}


def test_the_folder_of_the_workers_is_gone_with_whoever_started_them() -> None:
    with for_workers("p", ("127.0.0.1", 0)) as folder, Telemetry(TelemetryOptions(metrics_folder=folder)).telling():
        until(lambda: of(MetricsFolder(folder).collect(), WORKERS.name) == {(): 1})
    assert not folder.exists()


# ---------------------------------------------------------------- the text


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0", "*/*;q=x,,;"])
def test_the_text_has_the_project_on_every_metric_whatever_is_accepted(accept: str) -> None:
    metrics = Metrics()
    metrics.record(call())

    text, content_type = exposition("shop", metrics.snapshot, accept)

    assert ("openmetrics" in content_type) == ("openmetrics" in accept)
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert lines
    assert all('project="shop"' in line for line in lines)


def test_histograms_are_cumulative_and_end_at_infinity() -> None:
    metrics = Metrics()
    for took_ns in (1, 150_000, 10**12):
        metrics.record(call(took_ns=took_ns))

    seen = samples(exposition("p", metrics.snapshot)[0].decode())

    labels = (("method", "GetOnlineFeatures"), ("service", "s"))
    name = "featurestore_request_seconds"
    counts = [seen[f"{name}_bucket", tuple(sorted((*labels, ("le", str(le)))))] for le in BOUNDS_S]
    assert counts[0] == 1
    assert counts[1:] == [2] * (len(BOUNDS_S) - 1)
    assert seen[f"{name}_bucket", tuple(sorted((*labels, ("le", "+Inf"))))] == 3
    assert seen[f"{name}_count", labels] == 3
    assert seen[f"{name}_sum", labels] == pytest.approx(1000, rel=1e-3)


def test_a_taken_port_is_an_error_with_the_way_out() -> None:
    with (
        metrics_port("p", Snapshot, "127.0.0.1", 0) as address,
        pytest.raises(ConfigError, match=r"set another metrics\.port"),
        metrics_port("p", Snapshot, "127.0.0.1", int(address.rpartition(":")[2])),
    ):
        pass


def test_every_metric_is_explained_to_those_on_call() -> None:
    """docs/metrics.md names every metric with its labels, and no other."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for family in FAMILIES.values():
        suffix = "_total" if family.kind == "counter" else ""
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{family.name}{suffix}` ")]
        assert [label for label in family.labels if f"`{label}`" not in row] == []


# ---------------------------------------------------------------- a real server


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        return samples(reply.read().decode())


@pytest.fixture
def observed(backend: Backend) -> Iterator[tuple[str, str]]:
    """A server and its metrics port."""
    telemetry = Telemetry(TelemetryOptions(project="test", metrics=("127.0.0.1", 0)))
    engine = backend.engine()
    watch_views(telemetry.metrics, lambda: engine.catalog.views, backend.state, FixedClock(NOW))
    with telemetry.telling() as scraped, server(engine, telemetry=telemetry) as running:
        assert scraped is not None
        yield running.target, scraped


def test_a_scrape_tells_what_clients_got(backend: Backend, observed: tuple[str, str]) -> None:
    target, scraped = observed
    backend.publish("delays@2", NOW_US - 7 * HOUR_US)
    with FeatureClient(target) as client:
        keys = {"origin": ["JFK", "JFK", "ZZZ"], "number": [1, 2, 9]}
        until(lambda: client.get_online_features(["delays:delay"], keys).degraded_rows == 2)
        before = scrape(scraped)
        client.get_online_features(["delays:delay"], keys)
        client.get_online_features("airport_now", {"origin": ["JFK", "ZZZ"]}, max_age=timedelta(hours=1))
        with pytest.raises(RequestFailed):
            client.get_online_features("nobody", {"origin": ["JFK"]})
        with pytest.raises(RequestFailed):
            client.get_online_features("airport_now", {"orign": ["JFK"]})
    refused = ("code", "INVALID_ARGUMENT"), ("method", "GetOnlineFeatures"), ("service", "airport_now")
    until(lambda: ("featurestore_requests_total", refused) in scrape(scraped))  # a refusal is sent, then counted
    after = scrape(scraped)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    method = {"method": "GetOnlineFeatures"}
    requests = "featurestore_requests_total"
    assert grown(requests, **method, service="(features)", code="OK") == 1
    assert grown(requests, **method, service="airport_now", code="OK") == 1
    assert grown(requests, **method, service="(none)", code="NOT_FOUND") == 1
    assert grown(requests, **method, service="airport_now", code="INVALID_ARGUMENT") == 1
    assert grown("featurestore_request_rows_total", **method, service="(features)") == 3
    rows = {"service": "(features)", "view": "delays@2"}
    assert grown("featurestore_rows_total", **rows, status="STALE", reason="FRESHNESS") == 2
    assert grown("featurestore_rows_total", **rows, status="NOT_FOUND", reason="") == 1
    for stage in ("queue", "parse", "fetch", "decode", "encode"):
        count = "featurestore_request_stage_seconds_count"
        assert grown(count, **method, service="(features)", stage=stage) == 1, stage
    assert after["featurestore_requests_in_flight", ()] == 0
    assert after["featurestore_view_freshness_promise_seconds", (("view", "delays@2"),)] == 6 * 3600
    assert after["featurestore_workers", ()] == 1


def test_a_request_that_its_caller_gives_up_is_counted_so(backend: Backend) -> None:
    telemetry = Telemetry()
    with server(backend.engine(), telemetry=telemetry) as running, FeatureClient(running.target) as client:
        with pytest.raises(RequestFailed):
            client.get_online_features("airport_now", {"origin": ["JFK"] * 2_000}, timeout_s=0.001)
        client.get_online_features("airport_now", {"origin": ["JFK"]})

        def codes() -> set[str]:
            return {labels[2] for labels in of(telemetry.metrics.snapshot(), REQUESTS.name)}

        assert codes() <= {"OK", "DEADLINE_EXCEEDED", "CANCELLED"}
        until(lambda: of(telemetry.metrics.snapshot(), IN_FLIGHT.name) == {(): 0})
