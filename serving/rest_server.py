"""The REST gateway's listener: uvicorn on the event loop of gRPC, started and drained by whoever runs both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import uvicorn

from featurestore.errors import ConfigError
from featurestore.settings_access import TlsSettings
from serving.access.certificates import PemFiles, refill, server_context, serving_files, watch_certificates
from serving.access.watched import LOOK_S
from serving.admission import Rooms
from serving.engine import Engine
from serving.predict import Predictor
from serving.push import PushDoor
from serving.rest import Authenticate, rest_app
from serving.telemetry import Telemetry
from serving.wire import Limits

log = logging.getLogger(__name__)

#: Threads for requests; writing JSON holds the interpreter, so more would only take turns.
THREADS_MAX = 2


@dataclass(frozen=True, kw_only=True)
class RestOptions:
    """Where to listen, and the bounds. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 0
    limits: Limits = field(default_factory=Limits)
    drain_s: float = 10.0
    #: Let other workers listen at the same port.
    reuse_port: bool = False
    #: With a certificate HTTPS, renewed with its files; with a client_ca only for clients that have one of its own.
    tls: TlsSettings = field(default_factory=TlsSettings)


class _Server(uvicorn.Server):
    """Without hands on the process's signals: whoever runs the process tells it when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def rest_serving(
    engine: Engine,
    telemetry: Telemetry,
    options: RestOptions,
    authenticate: Authenticate,
    rooms: Rooms,
    push: PushDoor | None = None,
    predictor: Predictor | None = None,
) -> AsyncIterator[str]:
    """A running gateway on a started engine; yields its base address, drains on the way out."""
    listener = _bind(options)
    with contextlib.closing(listener), ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="rest") as threads:
        app = rest_app(
            engine,
            telemetry,
            options.limits,
            threads,
            lambda: not server.should_exit,
            authenticate,
            rooms,
            push,
            predictor,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
        )
        config.load()
        server = _Server(config)
        async with _certified(config, serving_files(options.tls)):
            running = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                scheme = "http" if options.tls.cert is None else "https"
                yield f"{scheme}://{options.host}:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await running


@contextlib.asynccontextmanager
async def _certified(config: uvicorn.Config, files: PemFiles | None) -> AsyncIterator[None]:
    """HTTPS by the files of the moment, where there are any."""
    if files is None:
        yield
        return
    watched = watch_certificates(files)
    served = watched.current()
    config.ssl = context = server_context(files)

    async def renew() -> None:
        nonlocal served
        while True:
            await asyncio.sleep(LOOK_S)
            if (pem := watched.current()) is served:
                continue
            try:
                refill(context, files)
                served = pem
            except ConfigError as error:  # changed once more, just now
                log.warning("the certificate of REST is not renewed yet: %s", error)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _bind(options: RestOptions) -> socket.socket:
    """A listening socket; ConfigError when the port is taken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (options.host, options.port), family=family, reuse_port=options.reuse_port, backlog=1024
        )
        # asyncio sets it only on sockets that name their protocol; without it, every second reply waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise ConfigError(
            f"cannot serve REST on {options.host}:{options.port}: {error.strerror}; set another rest.port, or 0 for "
            "a free one"
        ) from error
