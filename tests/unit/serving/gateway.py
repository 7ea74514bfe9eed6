"""A REST gateway on its own thread and event loop, as tests start and end it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from featurestore.settings_access import TlsSettings
from serving.admission import Rooms
from serving.engine import Engine
from serving.predict import predicting
from serving.push import PushDoor
from serving.rest import Authenticate, anyone
from serving.rest_server import RestOptions, rest_serving
from serving.sidecar import SidecarAccess
from serving.telemetry import Telemetry
from serving.wire import Limits
from tests.waiting import WAIT_S


@contextmanager
def gateway(
    engine: Engine,
    telemetry: Telemetry,
    limits: Limits,
    authenticate: Authenticate = anyone,
    *,
    push: PushDoor | None = None,
    rooms: Rooms | None = None,
    tls: TlsSettings | None = None,
    sidecar: SidecarAccess | None = None,
) -> Iterator[str]:
    """A running gateway on a free port; yields its base address."""
    rooms = rooms or Rooms.of(in_flight_max=8, threads=4, queue_max=8)
    address: Future[str] = Future()
    stopping: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        stopping.set_result((asyncio.get_running_loop(), stop))
        options = RestOptions(limits=limits, drain_s=5, tls=tls or TlsSettings())
        async with (
            engine.reading(5.0),
            predicting(engine, sidecar, limits) as predictor,
            rest_serving(engine, telemetry, options, authenticate, rooms, push, predictor) as served_at,
        ):
            address.set_result(served_at)
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield address.result(timeout=WAIT_S)
    finally:
        loop, stop = stopping.result(timeout=WAIT_S)
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=WAIT_S)
        assert not thread.is_alive()
