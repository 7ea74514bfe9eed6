"""A server on its own thread and event loop, as tests start, drain and end it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import grpc

from featurestore.errors import FeatureStoreError
from featurestore_client import AsyncFeatureClient
from serving.engine import Engine
from serving.metrics import Family
from serving.push import PushDoor
from serving.server import ServeOptions, serving
from serving.servicer import SERVICE
from serving.telemetry import Telemetry
from tests.waiting import WAIT_S


class Running:
    """A server on a free port; raises what keeps it from starting."""

    def __init__(
        self, engine: Engine, options: ServeOptions, telemetry: Telemetry | None = None, push: PushDoor | None = None
    ) -> None:
        self._address: Future[str] = Future()
        self._telemetry, self._push = telemetry, push
        self._thread = threading.Thread(target=self._run, args=(engine, options))
        self._thread.start()
        self.target = self._address.result(timeout=WAIT_S)

    def stop(self) -> None:
        """Begin to drain."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
            self._loop.call_soon_threadsafe(self._stopping.set)

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """The event loop does nothing else for the block, as during long work."""
        begun, over = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            over.wait(WAIT_S)

        self._loop.call_soon_threadsafe(work)
        assert begun.wait(WAIT_S)
        try:
            yield
        finally:
            over.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(timeout=WAIT_S)
        assert not self._thread.is_alive()

    def _run(self, engine: Engine, options: ServeOptions) -> None:
        asyncio.run(self._serve(engine, options))

    async def _serve(self, engine: Engine, options: ServeOptions) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with serving(engine, options, self._telemetry, self._push) as address:
                self._address.set_result(address)
                await self._stopping.wait()
        except FeatureStoreError as error:
            self._address.set_exception(error)


@contextlib.contextmanager
def server(
    engine: Engine,
    options: ServeOptions | None = None,
    telemetry: Telemetry | None = None,
    push: PushDoor | None = None,
) -> Iterator[Running]:
    """A running server that looks for applies often; drained at the end."""
    running = Running(engine, options or ServeOptions(port=0, poll_s=0.05, drain_s=5.0), telemetry, push)
    try:
        yield running
    finally:
        running.stop()
        running.join()


def raw_call(target: str, message: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    """GetOnlineFeatures with any bytes, without retries."""
    with grpc.insecure_channel(target) as channel:
        return channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")(message, timeout=WAIT_S, metadata=metadata)


def gauge(telemetry: Telemetry, family: Family) -> float:
    """A gauge without labels, as a scrape would find it."""
    (value,) = telemetry.metrics.snapshot().values[family.name].values()
    assert isinstance(value, int | float)
    return value


class Awaited:
    """The async client with the methods of the sync one, so that both pass the same tests."""

    def __init__(self, target: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(self._made(target, options))
        except BaseException:
            self._runner.close()
            raise

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *raised: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    @staticmethod
    async def _made(target: str, options: dict[str, Any]) -> AsyncFeatureClient:
        return AsyncFeatureClient(target, **options)
