"""The serving process: ready before it is reachable, answering until told to stop, finishing what it began.

The port is bound only after every plan is compiled and has answered a test request, so a load balancer never meets a
cold server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from featurestore.clock import Clock
from featurestore.errors import ConfigError, FeatureStoreError
from featurestore.online.base import OnlineStore
from serving.catalog import RegistryReader
from serving.engine import Engine
from serving.push import PushDoor
from serving.servicer import SERVICE, FeatureServing
from serving.status_codes import ErrorInterceptor
from serving.watermarks import PublishStates
from serving.wire import Limits

log = logging.getLogger(__name__)

#: Threads for large requests; more than a few only compete for the interpreter.
THREADS_MAX = 4


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where to listen, and the bounds of it all. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 6566
    limits: Limits = field(default_factory=Limits)
    #: How often applies and publishes are looked for; a service asks for a new one within this time.
    poll_s: float = 1.0
    #: How long running requests may take to finish after a stop was asked for.
    drain_s: float = 30.0


def run(
    registry: RegistryReader,
    states: PublishStates,
    store: OnlineStore,
    clock: Clock,
    options: ServeOptions,
    ready: Callable[[str], None],
    push: PushDoor | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; `ready` is called with `host:port` once requests are answered.

    Raises what keeps it from getting ready: a definition that does not compile, a store away, a port taken.
    """
    engine = Engine(registry, states, store, clock, options.limits)
    engine.start()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve_until_signal(engine, options, ready, push))


async def _serve_until_signal(
    engine: Engine, options: ServeOptions, ready: Callable[[str], None], push: PushDoor | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(engine, options, push) as address:
        ready(address)
        await stop.wait()
        log.info("stopping: no new requests, running ones have %g s", options.drain_s)


@contextlib.asynccontextmanager
async def serving(engine: Engine, options: ServeOptions, push: PushDoor | None = None) -> AsyncIterator[str]:
    """A running server on a started engine; yields `host:port`, drains on the way out."""
    with ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="lookup") as threads:
        server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_channel_options(options.limits))
        server.add_generic_rpc_handlers((FeatureServing(engine, threads, push).handlers(),))
        vitals = await _add_health_and_reflection(server)
        address = _bind(server, options)
        await server.start()
        try:
            async with _following(engine, options.poll_s):
                yield address
        finally:
            await vitals.enter_graceful_shutdown()
            await server.stop(options.drain_s)


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
    failing = ""
    while True:
        await asyncio.sleep(poll_s)
        try:
            await asyncio.to_thread(engine.refresh)
            failing = ""
        except FeatureStoreError as error:
            # Requests go on with what is known; the same trouble is told once, not every second.
            if failing != str(error):
                log.warning("the registry cannot be followed, serving what was read before: %s", error)
            failing = str(error)


async def _add_health_and_reflection(server: grpc.aio.Server) -> health_aio.HealthServicer:
    vitals = health_aio.HealthServicer()
    for name in (health.OVERALL_HEALTH, SERVICE):
        await vitals.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(vitals, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return vitals


def _bind(server: grpc.aio.Server, options: ServeOptions) -> str:
    """Bind the port; ConfigError when it is taken."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        port = server.add_insecure_port(f"{host}:{options.port}")
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {host}:{options.port}: {error}; choose another port, or 0 for a free one"
        ) from error
    return f"{host}:{port}"


def _channel_options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        # Two servers on one port must be a mistake until one process starts several workers on purpose.
        ("grpc.so_reuseport", 0),
    ]


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
