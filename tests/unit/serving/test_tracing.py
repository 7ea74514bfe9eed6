"""Traces, as a real OTLP collector receives them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from featurestore.clock import SystemClock, to_us
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column
from serving.observing import Call, enter
from serving.telemetry import Telemetry, TelemetryOptions, TracingOptions, open_telemetry
from serving.tracing import Tracing
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import raw_call, server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.metadata: list[dict[str, Any]] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        for resource in request.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return otlp.ExportTraceServiceResponse()

    def roots(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector, and its address."""
    made = Collector()
    running = grpc.server(ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(made, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield made, f"http://127.0.0.1:{port}"
    running.stop(0).wait()


def message(service: str = "airport_now") -> bytes:
    return pb.GetOnlineFeaturesRequest(
        service=service, keys=[encode_column("origin", ["JFK", "EWR"])]
    ).SerializeToString()


def traced(
    backend: Backend, endpoint: str, ratio: float, *metadata: tuple[str, str], service: str = "airport_now"
) -> None:
    """One request to a server that traces; its spans are sent when it is over."""
    options = TelemetryOptions(
        project="shop", tracing=TracingOptions(endpoint=endpoint, ratio=ratio, authorization="Bearer hunter2")
    )
    with open_telemetry(options) as telemetry, server(backend.engine(), telemetry=telemetry) as running:
        try:
            raw_call(running.target, message(service), metadata)
        except grpc.RpcError:
            assert service == "nobody"


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_request_is_a_span_with_a_child_per_stage(backend: Backend, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    before_ns = to_us(SystemClock().now()) * 1000
    traced(backend, endpoint, 1.0, ("x-request-id", "mine"))

    (root,) = kept.roots()
    assert root.name == "GetOnlineFeatures"
    assert not root.parent_span_id
    seen = attributes(root)
    assert (seen["featurestore.service"], seen["featurestore.rows"], seen["featurestore.code"]) == (
        "airport_now",
        2,
        "OK",
    )
    assert seen["featurestore.request_id"] == "mine"
    assert root.status.code == Status.STATUS_CODE_UNSET
    children = [span for span in kept.spans if span.parent_span_id == root.span_id]
    assert [child.name for child in children] == ["queue", "parse", "fetch", "decode", "encode"]
    assert {child.trace_id for child in children} == {root.trace_id}
    edges = [root.start_time_unix_nano, *(child.end_time_unix_nano for child in children), root.end_time_unix_nano]
    assert edges == sorted(edges)
    assert root.start_time_unix_nano > before_ns
    assert kept.resources[0]["service.name"] == "featurestore"
    assert kept.resources[0]["featurestore.project"] == "shop"
    assert kept.metadata[0]["authorization"] == "Bearer hunter2"


def test_a_callers_trace_is_continued_even_at_ratio_zero(backend: Backend, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    traced(backend, endpoint, 0.0, ("traceparent", f"00-{TRACE}-{PARENT}-01"))

    (root,) = kept.roots()
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT


def test_a_caller_that_does_not_sample_is_not_traced(backend: Backend, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    traced(backend, endpoint, 1.0, ("traceparent", f"00-{TRACE}-{PARENT}-00"))
    assert kept.spans == []


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "rubbish",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
    ],
)
def test_a_malformed_traceparent_is_as_good_as_none(traceparent: str) -> None:
    sampled, skipped = Call("m", "id", traceparent), Call("m", "id", traceparent)
    for ratio, call in ((1.0, sampled), (0.0, skipped)):
        tracing = Tracing(TracingOptions(endpoint="http://127.0.0.1:1", ratio=ratio), "shop")
        tracing.begin(call)
        tracing.close()
    assert sampled.spans == []
    assert skipped.spans is None


def test_the_ratio_decides_by_chance(collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    chances = iter([0.0, 0.24, 0.25, 0.9])
    tracing = Tracing(TracingOptions(endpoint=endpoint, ratio=0.25), "shop", lambda: next(chances))
    for number in range(4):
        call = Call("GetOnlineFeatures", str(number))
        tracing.begin(call)
        call.end("OK")
        tracing.end(call)
    tracing.close()

    assert [attributes(span)["featurestore.request_id"] for span in kept.roots()] == ["0", "1"]


@pytest.mark.parametrize(("code", "is_error"), [("INTERNAL", True), ("UNAVAILABLE", True), ("NOT_FOUND", False)])
def test_only_the_servers_faults_are_errors(code: str, is_error: bool, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    tracing = Tracing(TracingOptions(endpoint=endpoint, ratio=1.0), "shop")
    telemetry = Telemetry(tracing=tracing)
    telemetry.end(telemetry.begin("GetOnlineFeatures", None, None), code)
    enter(None)
    tracing.close()

    (root,) = kept.roots()
    assert (root.status.code == Status.STATUS_CODE_ERROR) == is_error


def test_a_refused_request_is_traced_too(backend: Backend, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    traced(backend, endpoint, 1.0, service="nobody")
    assert attributes(kept.roots()[0])["featurestore.code"] == "NOT_FOUND"


def test_a_collector_that_is_away_costs_spans_and_nothing_else(backend: Backend) -> None:
    """Far more spans than the queue holds, then an end that does not wait for ever."""
    options = TelemetryOptions(tracing=TracingOptions(endpoint="http://127.0.0.1:1", ratio=1.0))
    began = time.monotonic()
    with open_telemetry(options) as telemetry:
        for _ in range(10_000):
            telemetry.end(telemetry.begin("GetOnlineFeatures", None, None), "OK")
        enter(None)
    assert time.monotonic() - began < 60, "it hangs"
