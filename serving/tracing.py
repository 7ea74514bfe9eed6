"""OpenTelemetry traces: a span per sampled request with a child per stage, sent to an OTLP collector.

Spans are made after the reply, from the times that were measured anyway, so a request that is not sampled costs one
comparison. The exporter has a bounded queue and a thread of its own: a collector that is away costs spans, never time.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from featurestore.clock import SystemClock, to_us
from serving.observing import Call
from serving.telemetry import TracingOptions

#: Spans that wait for the collector; further ones are dropped. Some 1 KB each.
SPANS_MAX = 8_192
BATCH_SPANS_MAX = 512
EXPORT_EVERY_S = 1.0
#: Longest wait for the collector, and for the last spans when the process ends.
EXPORT_TIMEOUT_S = 3.0
#: Codes that are the server's fault; what a client did wrong is no error of this span.
FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNKNOWN", "DATA_LOSS"})

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Tracing:
    """Samples requests and exports their spans. `close` it to send the last ones."""

    def __init__(self, options: TracingOptions, project: str, chance: Callable[[], float] = random.random) -> None:
        self._ratio, self._chance, self._clock = options.ratio, chance, SystemClock()
        self._exporter = OTLPSpanExporter(
            endpoint=options.endpoint,
            insecure=not options.endpoint.startswith("https://"),
            headers={} if options.authorization is None else {"authorization": options.authorization},
            timeout=EXPORT_TIMEOUT_S,
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # who is not sampled never gets here
            resource=Resource.create({"service.name": "featurestore", "featurestore.project": project}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=SPANS_MAX,
                max_export_batch_size=BATCH_SPANS_MAX,
                schedule_delay_millis=EXPORT_EVERY_S * 1000,
                export_timeout_millis=EXPORT_TIMEOUT_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("featurestore.serving")

    def begin(self, call: Call) -> None:
        """Decide whether the request is traced: as its caller decided, or by chance."""
        found = _TRACEPARENT.fullmatch(call.traceparent) if call.traceparent else None
        sampled = bool(int(found[3], 16) & TraceFlags.SAMPLED) if found else self._chance() < self._ratio
        if sampled:
            call.spans = []

    def end(self, call: Call) -> None:
        """Hand over the spans of a traced request."""
        if call.spans is None:
            return
        # The clock is read once: what lies between two marks is measured, not read.
        offset_ns = to_us(self._clock.now()) * 1000 - call.ended_ns
        span = self._tracer.start_span(
            call.method,
            context=_parent(call.traceparent),
            kind=SpanKind.SERVER,
            start_time=call.started_ns + offset_ns,
            attributes={
                "rpc.system": "http" if call.method.startswith("/") else "grpc",
                "rpc.method": call.method,
                "featurestore.code": call.code,
                "featurestore.service": call.service or "",
                "featurestore.rows": call.rows,
                "featurestore.request_id": call.request_id,
            },
        )
        inside = set_span_in_context(span)
        for stage, from_ns, to_ns in call.spans:
            child = self._tracer.start_span(stage.name.lower(), context=inside, start_time=from_ns + offset_ns)
            child.end(to_ns + offset_ns)
        if call.code in FAULTS:
            span.set_status(Status(StatusCode.ERROR, call.code))
        span.end(call.ended_ns + offset_ns)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(EXPORT_TIMEOUT_S)
        if sending.is_alive():  # the library would wait for half a minute
            self._exporter.shutdown()
            sending.join(EXPORT_TIMEOUT_S)


def _parent(traceparent: str) -> Context | None:
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return None
    caller = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(1))
    return set_span_in_context(NonRecordingSpan(caller))
