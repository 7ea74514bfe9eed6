"""The serving process: ready before it is reachable, answering until told to stop, finishing what it began.

The port is bound only after every plan is compiled and has answered a test request, so a load balancer never meets a
cold server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from featurestore.clock import Clock
from featurestore.errors import ConfigError, FeatureStoreError
from featurestore.online.base import OnlineStore
from featurestore.settings_access import AuthSettings, TlsSettings
from featurestore.trouble import Trouble
from serving.access.certificates import serving_files
from serving.access.door import Door
from serving.admission import Rooms
from serving.catalog import RegistryReader
from serving.door_interceptor import DoorInterceptor, warn_if_exposed
from serving.doorstep import Doorstep
from serving.engine import Engine
from serving.event_loop import kept_from_collection, loop_factory, stop_on_signals, unless_stopped
from serving.grpc_tls import port_credentials
from serving.metrics import BREAKER, CACHE_BYTES, CACHE_ROWS, QUEUE_DEPTH, SHED, SIDECAR_BREAKER, Labels, Metrics
from serving.own_threads import in_own_thread
from serving.predict import Predictor, predicting
from serving.push import PushDoor
from serving.readers_seen import NoteReaders, telling
from serving.served_log import ServedLogOptions, recording
from serving.servicer import SERVICE, FeatureServing
from serving.sidecar import SidecarAccess
from serving.status_codes import ErrorInterceptor
from serving.telemetry import ObservingInterceptor, Telemetry, TelemetryOptions, open_telemetry
from serving.view_gauges import JobStates, Totals, watch_quarantine, watch_views
from serving.vitals import Vitals
from serving.warm_up import NearCacheOptions, PreloadOptions
from serving.wire import Limits

log = logging.getLogger(__name__)

#: Threads for large requests; more than a few only compete for the interpreter.
THREADS_MAX = 4
#: Calls that gRPC keeps before we take them: from so many on it cancels some, at eight times as many all.
PENDING_MIN = 8
#: gRPC itself would hang up on who asks more often than every 5 minutes.
PING_INTERVAL_MS = 10_000


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where to listen, and the bounds of it all. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 6566
    #: One of several that share the port, under a supervisor that holds its stdin.
    worker: bool = False
    limits: Limits = field(default_factory=Limits)
    #: Requests at work at a time, and how many may wait; the next is turned away.
    in_flight_max: int = 8
    queue_max: int = 16
    #: How long the store may take for one answer.
    store_timeout_s: float = 1.0
    #: None: every row comes from the store.
    near_cache: NearCacheOptions | None = None
    preload: PreloadOptions = field(default_factory=PreloadOptions)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    #: How often applies and publishes are looked for; a service asks for a new one within this time.
    poll_s: float = 1.0
    #: How long running requests may take to finish after a stop was asked for.
    drain_s: float = 30.0
    #: Takes who was answered, every so often; None: nobody is noted.
    note_readers: NoteReaders | None = None
    note_readers_s: float = 60.0
    #: Counts the rows in quarantine by view; None: there is no metric of them.
    quarantined: Totals | None = None
    #: What is recorded of replies; None: nothing.
    served_log: ServedLogOptions | None = None
    telemetry: TelemetryOptions = field(default_factory=TelemetryOptions)
    #: Where the REST gateway listens; None: nowhere.
    rest: tuple[str, int] | None = None
    #: Who runs models for Predict; None: nobody does.
    sidecar: SidecarAccess | None = None


def run(
    registry: RegistryReader,
    states: JobStates,
    store: OnlineStore,
    clock: Clock,
    options: ServeOptions,
    ready: Callable[[str], None],
    push: PushDoor | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; `ready` is called with `host:port` once requests are answered.

    Raises what keeps it from getting ready: a definition that does not compile, a store away, a port taken.
    """
    engine = Engine(registry, states, store, clock, options.limits, options.near_cache, options.preload)
    engine.start()
    with (
        open_telemetry(options.telemetry) as telemetry,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        watch_views(telemetry.metrics, lambda: engine.catalog.views, states, clock)
        if options.quarantined is not None:
            watch_quarantine(telemetry.metrics, lambda: engine.catalog.views, options.quarantined)
        with telemetry.telling():
            runner.run(_serve_until_signal(engine, options, telemetry, push, ready))


async def _serve_until_signal(
    engine: Engine, options: ServeOptions, telemetry: Telemetry, push: PushDoor | None, ready: Callable[[str], None]
) -> None:
    stop = stop_on_signals()
    loop = asyncio.get_running_loop()
    if options.worker:
        loop.add_reader(sys.stdin.fileno(), stop.set)  # it ends with the supervisor
    async with contextlib.AsyncExitStack() as stack:
        async with unless_stopped(stop):
            running = serving(engine, options, telemetry, push, kept_from_collection())
            ready(await stack.enter_async_context(running))
            stack.callback(log.info, "stopping: no new requests, running ones have %g s", options.drain_s)
        await stop.wait()
        if options.worker:
            loop.remove_reader(sys.stdin.fileno())


@contextlib.asynccontextmanager
async def serving(
    engine: Engine,
    options: ServeOptions,
    telemetry: Telemetry | None = None,
    push: PushDoor | None = None,
    meanwhile: contextlib.AbstractContextManager[None] | None = None,
) -> AsyncIterator[str]:
    """A running server on a started engine; yields `host:port`, drains on the way out.

    `meanwhile` is entered when all is warm, before anybody can call.
    """
    telemetry = telemetry or Telemetry()
    warn_if_exposed(options.host, options.auth, options.tls, "serving.host")
    # Before anything is loaded: it shows how far a preload is.
    telemetry.metrics.watch(CACHE_BYTES, lambda: {} if engine.cache is None else {(): engine.cache.size_bytes})
    door = Door(options.auth)
    await door.start()
    async with contextlib.AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="lookup"))
        await stack.enter_async_context(engine.reading(options.store_timeout_s))
        engine.record = stack.enter_context(recording(options.served_log))
        noting = telling(options.note_readers, options.note_readers_s)
        engine.note_reader = await stack.enter_async_context(noting)
        rooms = Rooms.of(options.in_flight_max, THREADS_MAX, options.queue_max)
        within = [ObservingInterceptor(telemetry), ErrorInterceptor(), DoorInterceptor(door)]
        doorstep = Doorstep(within, {f"/{SERVICE}/GetOnlineFeatures": rooms.lookups}, telemetry)
        server = grpc.aio.server(interceptors=[doorstep], options=_channel_options(options))
        predictor = await stack.enter_async_context(predicting(engine, options.sidecar, options.limits))
        _watch(telemetry.metrics, rooms, engine, predictor)
        server.add_generic_rpc_handlers((FeatureServing(engine, threads, rooms, push, predictor).handlers(),))
        vitals = await _add_health_and_reflection(server)
        address = _bind(server, options)
        stack.enter_context(meanwhile or contextlib.nullcontext())
        await server.start()
        try:
            gateway = _gateway(engine, telemetry, options, door, rooms, push, predictor)
            async with _following(engine, options.poll_s), gateway:
                telemetry.ready = True
                yield address
        finally:
            telemetry.ready = False
            await vitals.enter_graceful_shutdown()
            await server.stop(options.drain_s)


def _watch(metrics: Metrics, rooms: Rooms, engine: Engine, predictor: Predictor | None) -> None:
    metrics.watch(QUEUE_DEPTH, lambda: {(): rooms.waiting})
    metrics.watch(SHED, lambda: {(label, "queue full"): shed for label, shed in rooms.shed.items()})
    metrics.watch(BREAKER, lambda: {(): engine.breaker_state})
    metrics.watch(CACHE_ROWS, lambda: _cache_rows(engine))
    if predictor is not None:
        metrics.watch(SIDECAR_BREAKER, lambda: {(): predictor.sidecar_state})


def _cache_rows(engine: Engine) -> dict[Labels, float]:
    rows: dict[Labels, float] = {}
    if engine.cache is not None:
        for ref, counts in engine.cache.counts.copy().items():
            rows[ref, "hit"], rows[ref, "miss"] = counts.hits, counts.misses
    return rows


@contextlib.asynccontextmanager
async def _gateway(
    engine: Engine,
    telemetry: Telemetry,
    options: ServeOptions,
    door: Door,
    rooms: Rooms,
    push: PushDoor | None,
    predictor: Predictor | None,
) -> AsyncIterator[None]:
    """The REST gateway meanwhile, where one is asked for; its framework is an extra."""
    if options.rest is None:
        yield
        return
    try:
        from serving.rest_server import RestOptions, rest_serving
    except ModuleNotFoundError as error:
        raise ConfigError('the REST gateway needs FastAPI and uvicorn: pip install "featurestore[rest]"') from error
    host, port = options.rest
    warn_if_exposed(host, options.auth, options.tls, "rest.host")
    shared = options.telemetry.metrics_folder is not None
    rest = RestOptions(
        host=host, port=port, limits=options.limits, drain_s=options.drain_s, reuse_port=shared, tls=options.tls
    )
    async with rest_serving(engine, telemetry, rest, door.authenticate, rooms, push, predictor) as address:
        log.info("REST on %s", address)
        yield


@contextlib.asynccontextmanager
async def _following(engine: Engine, poll_s: float) -> AsyncIterator[None]:
    """Keeps the engine current meanwhile."""
    task = asyncio.create_task(_follow(engine, poll_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _follow(engine: Engine, poll_s: float) -> None:
    trouble = Trouble(
        log, "the registry cannot be followed, serving what was read before", "the registry is followed again"
    )
    while True:
        await asyncio.sleep(poll_s)
        try:
            await in_own_thread(engine.refresh, "refresh")
            trouble.passed()
        except FeatureStoreError as error:
            trouble.met(error)


async def _add_health_and_reflection(server: grpc.aio.Server) -> Vitals:
    vitals = Vitals()
    for name in (health.OVERALL_HEALTH, SERVICE):
        await vitals.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(vitals, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return vitals


def _bind(server: grpc.aio.Server, options: ServeOptions) -> str:
    """Bind the port; ConfigError when it is taken."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    files = serving_files(options.tls)
    credentials = None if files is None else port_credentials(files)
    try:
        if credentials is None:
            port = server.add_insecure_port(f"{host}:{options.port}")
        else:
            port = server.add_secure_port(f"{host}:{options.port}", credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {host}:{options.port}: {error}; choose another port, or 0 for a free one"
        ) from error
    return f"{host}:{port}"


def _channel_options(options: ServeOptions) -> list[tuple[str, int]]:
    pending = max(PENDING_MIN, options.in_flight_max)
    return [
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", 8 * pending),
        ("grpc.max_receive_message_length", options.limits.message_bytes_max),
        ("grpc.max_send_message_length", options.limits.message_bytes_max),
        # Clients ask now and then whether a silent server lives (ours each 20 s); more often is a fault of theirs.
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two servers on one port are a mistake, unless they are workers.
        ("grpc.so_reuseport", int(options.worker)),
    ]
