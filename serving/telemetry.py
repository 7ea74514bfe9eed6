"""What a request leaves behind: numbers, a span, a line in the log. Begins and ends every observed call.

`ObservingInterceptor` does so for gRPC; `rest.py` for HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from featurestore.errors import ConfigError
from serving.exposition import Collect, metrics_port
from serving.logs import LogOptions, SlowRequests, configure
from serving.metrics import IN_FLIGHT, READY, Metrics
from serving.observing import REQUEST_ID, TRACEPARENT, Call, enter, request_id_from
from serving.status_codes import Context, UnaryMethod

if TYPE_CHECKING:
    from serving.tracing import Tracing


@dataclass(frozen=True, kw_only=True)
class TracingOptions:
    """Where spans go, and of which share of the requests that bring no trace of their own."""

    #: A collector that takes OTLP over gRPC: http://host:4317, or https:// for TLS.
    endpoint: str
    ratio: float = 0.01
    #: Sent as `authorization` with every export.
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class TelemetryOptions:
    """What is told to whom. Nothing leaves the process that is not asked for."""

    #: A label of every metric.
    project: str = ""
    #: None leaves logging as the caller has set it up.
    logs: LogOptions | None = None
    tracing: TracingOptions | None = None
    #: Host and port of /metrics; None: no port of its own.
    metrics: tuple[str, int] | None = None
    #: Where this process is one of several workers: the folder they share (`metrics_folder.for_workers`), which whoever
    #: started them answers scrapes from.
    metrics_folder: Path | None = None


class Telemetry:
    """Where observed calls go. `collect` gives the numbers that a scrape of this process shows."""

    def __init__(self, options: TelemetryOptions = TelemetryOptions(), tracing: Tracing | None = None) -> None:
        self.project = options.project
        slow_s = options.logs.slow_s if options.logs else None
        self._options = options
        self.metrics = Metrics()
        self.collect: Collect = self.metrics.snapshot
        self._tracing = tracing
        self._slow = None if slow_s is None else SlowRequests(slow_s)
        self._in_flight = 0
        self.metrics.watch(IN_FLIGHT, lambda: {(): self._in_flight})
        #: Whether requests are taken: neither before all is warm, nor while the process drains.
        self.ready = False
        self.metrics.watch(READY, lambda: {(): int(self.ready)})

    def begin(self, method: str, request_id: str | bytes | None, traceparent: str | bytes | None) -> Call:
        """A call that is the current one from here on; on the event loop's thread, as `end` is."""
        call = Call(method, request_id_from(request_id), traceparent if isinstance(traceparent, str) else "")
        enter(call)
        self._in_flight += 1
        if self._tracing is not None:
            self._tracing.begin(call)
        return call

    def end(self, call: Call, code: str) -> None:
        """The call ended with this gRPC status code."""
        call.end(code)
        self._in_flight -= 1
        self.metrics.record(call)
        if self._tracing is not None:
            self._tracing.end(call)
        if self._slow is not None:
            self._slow.look_at(call)

    @contextlib.contextmanager
    def telling(self) -> Iterator[str | None]:
        """Share the numbers meanwhile, as the options say; yields `host:port` of /metrics where it is served here."""
        if self._options.metrics_folder is not None:
            from serving.metrics_folder import MetricsFolder  # not where one process is all there is: POSIX only

            folder = MetricsFolder(self._options.metrics_folder)
            self.collect = folder.collect
            with folder.publishing(self.metrics.snapshot):
                yield None
        elif self._options.metrics is not None:
            with metrics_port(self.project, self.collect, *self._options.metrics) as address:
                yield address
        else:
            yield None


@contextlib.contextmanager
def open_telemetry(options: TelemetryOptions) -> Iterator[Telemetry]:
    """Set up logging and tracing for this process; the last spans are sent at the end."""
    if options.logs is not None:
        configure(options.logs)
    tracing = None if options.tracing is None else _open_tracing(options.tracing, options.project)
    try:
        yield Telemetry(options, tracing)
    finally:
        if tracing is not None:
            tracing.close()


def _open_tracing(options: TracingOptions, project: str) -> Tracing:
    try:
        from serving.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError('[tracing] needs OpenTelemetry: pip install "featurestore[tracing]"') from error
    return Tracing(options, project)


class ObservingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC carries no types
    """Observes our methods, whatever happens to them; the outermost interceptor. Health checks are nobody's news."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler, observed."""
        handler = await continuation(handler_call_details)
        ours = handler_call_details.method.startswith("/featurestore.")
        if not ours or handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            observed(handler.unary_unary, handler_call_details.method.rpartition("/")[2], self._telemetry),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def observed(method: UnaryMethod, name: str, telemetry: Telemetry) -> UnaryMethod:
    """`method`, observed; its request id is in the trailing metadata of every answer."""

    async def call(request: Any, context: Context) -> Any:
        request_id = traceparent = None
        for key, value in context.invocation_metadata() or ():
            if key == REQUEST_ID:
                request_id = value
            elif key == TRACEPARENT:
                traceparent = value
        begun = telemetry.begin(name, request_id, traceparent)
        context.set_trailing_metadata(((REQUEST_ID, begun.request_id),))
        code = "UNKNOWN"
        try:
            reply = await method(request, context)
            code = "OK"
            return reply
        except grpc.aio.AbortError:
            code = context.code().name
            raise
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if _is_late(context) else "CANCELLED"
            raise
        finally:
            if code == "UNKNOWN" and _is_late(context):
                code = "DEADLINE_EXCEEDED"  # gRPC takes no status any more
            telemetry.end(begun, code)

    return call


def _is_late(context: Context) -> bool:
    remaining_s = context.time_remaining()
    return remaining_s is not None and remaining_s <= 0
