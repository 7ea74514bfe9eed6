"""The sidecar's process: its port is bound once every model that can be is warm; stopped, it finishes what it began."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from featurestore.errors import ConfigError, FeatureStoreError
from featurestore.loopback import is_loopback
from featurestore.trouble import Trouble
from serving.access.certificates import PemFiles
from serving.event_loop import loop_factory, stop_on_signals
from serving.exposition import metrics_port
from serving.grpc_tls import port_credentials
from serving.inference.batcher import THREAD_PREFIX
from serving.inference.repository import ModelRepository
from serving.inference.served_model import ServedModel
from serving.inference.servicer import SERVICE, GrpcInferenceService
from serving.inference.tally import DEVICE_BYTES, FAMILIES, READY, WAITING_ROWS
from serving.logs import LogOptions, configure
from serving.metrics import Snapshot

log = logging.getLogger(__name__)

UNIX = "unix:"


@dataclass(frozen=True, kw_only=True)
class SidecarOptions:
    """Which models, and where they answer: `host:port` (port 0 takes a free one) or `unix:///path`."""

    models: Path
    address: str = "127.0.0.1:8001"
    #: None: plaintext; with authorities only for clients that show a certificate.
    tls: PemFiles | None = None
    #: Host and port of /metrics; None: nowhere.
    metrics: tuple[str, int] | None = None
    message_bytes_max: int = 64 << 20
    #: How often the folder of models is looked at.
    poll_s: float = 1.0
    #: How long running requests may take to finish after a stop was asked for.
    drain_s: float = 10.0
    logs: LogOptions = field(default_factory=LogOptions)


def run(options: SidecarOptions, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; `ready` is called with the address once requests are answered.

    ConfigError for a folder or an address that cannot be used. A model that cannot be loaded keeps no other from it.
    """
    configure(options.logs)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve_until_signal(options, ready))
    if any(thread.daemon and thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        # A model still runs, and frameworks abort a process that ends around their threads.
        log.warning("a model did not finish; ending without it")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


async def _serve_until_signal(options: SidecarOptions, ready: Callable[[str], None]) -> None:
    stop = stop_on_signals()
    async with sidecar(options) as address:
        ready(address)
        await stop.wait()
        log.info("stopping: no new requests, running ones have %g s", options.drain_s)


@contextlib.asynccontextmanager
async def sidecar(options: SidecarOptions) -> AsyncIterator[str]:
    """A running sidecar; yields its address, drains on the way out."""
    _require_address(options)
    credentials = None if options.tls is None else port_credentials(options.tls)
    vitals = _Vitals()
    repository = ModelRepository(options.models, vitals.model_changed)
    service = GrpcInferenceService(repository)
    server = grpc.aio.server(options=_channel_options(options))
    server.add_generic_rpc_handlers((service.handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(vitals.servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await repository.refresh(settled=False)
    with _metrics(repository, options):
        address = _bind(server, options.address, credentials)
        await server.start()
        service.ready = True
        await vitals.server_ready()
        try:
            async with _following(repository, options.poll_s):
                yield address
        finally:
            service.ready = False
            await vitals.servicer.enter_graceful_shutdown()
            await server.stop(options.drain_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(options.drain_s):
                    await repository.close()
            service.close()


class _Vitals:
    """grpc.health.v1: the server, and each model by its name."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()
        self._telling: set[asyncio.Task[None]] = set()

    async def server_ready(self) -> None:
        """The server takes requests."""
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self.servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    def model_changed(self, model: ServedModel) -> None:
        """Tell whether the model takes requests."""
        status = health_pb2.HealthCheckResponse.SERVING if model.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        task = asyncio.create_task(self.servicer.set(model.name, status))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


@contextlib.asynccontextmanager
async def _following(repository: ModelRepository, poll_s: float) -> AsyncIterator[None]:
    """Keeps the models in line with their folder meanwhile."""
    task = asyncio.create_task(_follow(repository, poll_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _follow(repository: ModelRepository, poll_s: float) -> None:
    trouble = Trouble(
        log,
        "the folder of models cannot be followed, serving what was loaded",
        "the folder of models is followed again",
    )
    while True:
        await asyncio.sleep(poll_s)
        try:
            await repository.refresh()
            trouble.passed()
        except FeatureStoreError as error:
            trouble.met(error)


# ---------------------------------------------------------------- metrics


def _metrics(repository: ModelRepository, options: SidecarOptions) -> contextlib.AbstractContextManager[object]:
    if options.metrics is None:
        return contextlib.nullcontext()
    host, port = options.metrics
    return metrics_port("", lambda: snapshot(repository), host, port, FAMILIES)


def snapshot(repository: ModelRepository) -> Snapshot:
    """All numbers as they stand."""
    told = Snapshot()
    for model in list(repository.models.values()):
        for label, tally in list(model.tallies.items()):
            tally.put_into(told, model.name, label)
        for number in list(model.failures):
            told.put(READY, (model.name, str(number)), 0)
        for version in list(model.versions.values()):
            labels = (model.name, version.label)
            told.put(READY, labels, int(version.ready))
            told.put(WAITING_ROWS, labels, version.batcher.waiting_rows)
            taken = version.model.device_bytes()
            if taken is not None:
                told.put(DEVICE_BYTES, labels, taken)
    return told


# ---------------------------------------------------------------- the address


def _require_address(options: SidecarOptions) -> None:
    """ConfigError for what is no address, before models take their time to load; a warning for one that is exposed."""
    address, tls = options.address, options.tls
    if address.startswith(UNIX):
        if tls is not None:
            raise ConfigError(
                f"{address} is a unix socket, which is served without TLS: who may open its file may ask; remove "
                f"{' and '.join(tls.names[:2])}, or give host:port with --address"
            )
        return
    host, _, port = address.rpartition(":")
    # gRPC takes a port modulo 65536.
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(
            f"cannot listen on {address}: give host:port (0 for a free one, at most 65535) or unix:///path with "
            "--address"
        )
    if not is_loopback(host):
        _warn_exposed(address, tls)


def _warn_exposed(address: str, tls: PemFiles | None) -> None:
    if tls is None:
        log.warning(
            "listening on %s without TLS: whoever reaches it may use and load models, and features cross the network "
            "readable to all; set --tls-cert, --tls-key and --tls-client-ca, or prefer a unix socket",
            address,
        )
    elif tls.ca is None:
        log.warning(
            "listening on %s for clients without a certificate: whoever reaches it may use and load models; set "
            "--tls-client-ca",
            address,
        )


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Bind it; ConfigError when that cannot be."""
    if address.startswith(UNIX):
        _require_free(Path(address.removeprefix(UNIX).removeprefix("//")))
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error}; give host:port (0 for a free one) or unix:///path with --address"
        ) from error
    return address if address.startswith(UNIX) else f"{address.rpartition(':')[0]}:{port}"


def _require_free(path: Path) -> None:
    """gRPC takes the place of any socket; that of a living process it must not."""
    if not path.parent.is_dir():
        raise ConfigError(f"cannot listen on {path}: its folder is not there; make it, or choose another --address")
    if path.exists() and not path.is_socket():
        raise ConfigError(f"cannot listen on {path}: a file is there, and no socket; choose another --address")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return
    raise ConfigError(f"cannot listen on {path}: another process answers there; stop it, or choose another --address")


def _channel_options(options: SidecarOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.message_bytes_max),
        ("grpc.max_send_message_length", options.message_bytes_max),
        # Two servers on one port are a mistake.
        ("grpc.so_reuseport", 0),
    ]
