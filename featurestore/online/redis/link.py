"""One connection to one Redis server, shared by all requests of an event loop: asked in order, answered in order.

Who gives up waiting leaves a place whose answer is dropped, so the order holds. A lost or silent connection is made
again, with growing pauses; once the first try has failed, questions fail at once until a try succeeds.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import hiredis
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

from featurestore.online.redis import faults

#: Pauses between tries to connect grow from here to there.
PAUSE_S, PAUSE_S_MAX = 0.05, 1.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server is, and what it is told first: whole commands, which it must take."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    greeting: Sequence[bytes] = field(repr=False)


@dataclass(slots=True)
class _Place:
    """A question under way."""

    future: asyncio.Future[list[Any]]
    count: int
    sent_at: float


class Link:
    """The connection, from `start` to `close`; `ask` may be called by any number of tasks."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._protocol: _Protocol | None = None
        self._fault: Exception = redis_errors.ConnectionError("not connected yet")
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and stay connected."""
        self._task = asyncio.create_task(self._stay_connected())
        self._task.add_done_callback(self._broke)

    async def ask(self, commands: bytes, count: int) -> list[Any]:
        """The answers to `count` commands, errors among them; raises a connection error when nobody answers."""
        protocol = self._protocol or await self.connected()
        return await protocol.ask(commands, count)

    async def connected(self) -> _Protocol:
        """What to ask through, once the try to connect that is under way has ended; raises why it failed."""
        await self._tried.wait()
        if self._protocol is None:
            raise self._fault.with_traceback(None)
        return self._protocol

    async def close(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _broke(self, task: asyncio.Task[None]) -> None:
        """A defect of ours must not leave anybody waiting."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault = RuntimeError(f"the connection's task failed: {error!r}")
            self._tried.set()

    async def _stay_connected(self) -> None:
        pause_s = PAUSE_S
        while True:
            try:
                self._protocol = await self._connected()
            except faults.REDIS_ERRORS as error:
                self._fault = error
            else:
                self._tried.set()
                pause_s = PAUSE_S
                self._fault = await self._lost(self._protocol)
                continue
            self._tried.set()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the load of many workers
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _connected(self) -> _Protocol:
        """A connection whose greeting was answered."""
        endpoint, loop = self._endpoint, asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_s):
            _, protocol = await loop.create_connection(
                self._new_protocol, endpoint.host, endpoint.port, ssl=endpoint.tls
            )
            try:
                answers = await protocol.ask(b"".join(endpoint.greeting), len(endpoint.greeting))
                for answer in answers:
                    # A node of a Cluster that sends us elsewhere answers well.
                    if isinstance(answer, Exception) and not isinstance(answer, redis_errors.AskError):
                        raise answer
            except BaseException:
                protocol.abort()
                raise
        return protocol

    def _new_protocol(self) -> _Protocol:
        return _Protocol(self._forget)

    def _forget(self) -> None:
        """At once when a connection ends, so that nobody is sent there any more; they wait for the next try."""
        if self._protocol is not None:
            self._protocol = None
            self._tried.clear()

    async def _lost(self, protocol: _Protocol) -> Exception:
        """Why the connection ended; a server that is silent for too long is hung up on."""
        try:
            while not protocol.lost.done():
                await asyncio.wait([protocol.lost], timeout=self._timeout_s / 4)
                if protocol.silent_s() > self._timeout_s:
                    protocol.abort(redis_errors.TimeoutError(f"no answer within {self._timeout_s:g} s"))
            return protocol.lost.result()
        finally:
            protocol.abort()


class _Protocol(asyncio.Protocol):
    """Bytes to answers, answers to who asked first."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(protocolError=redis_errors.InvalidResponse, replyError=BaseParser.parse_error)
        self._places: deque[_Place] = deque()
        self._answers: list[Any] = []
        self._transport: asyncio.Transport
        #: Done, with the reason, once the connection has ended.
        self.lost: asyncio.Future[Exception] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        places, answers = self._places, self._answers
        try:
            self._parser.feed(data)
            # `gets` gives False when it needs more bytes; no command of ours is answered with a number that equals it.
            answers.extend(iter(self._parser.gets, False))
        except redis_errors.InvalidResponse as error:
            self.abort(error)
            return
        first = 0
        while places and len(answers) - first >= places[0].count:
            place = places.popleft()
            last = first + place.count
            if not place.future.done():
                place.future.set_result(answers[first:last])
            first = last
        del answers[:first]

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(redis_errors.ConnectionError(str(exc) if exc else "Connection closed by server."))

    def ask(self, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send whole commands; the future has an answer each."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.lost.done():
            future.set_exception(self.lost.result())
            return future
        self._places.append(_Place(future, count, self._loop.time()))
        self._transport.write(commands)
        return future

    def silent_s(self) -> float:
        """For how long the oldest question has waited."""
        return self._loop.time() - self._places[0].sent_at if self._places else 0.0

    def abort(self, reason: Exception | None = None) -> None:
        """Hang up; questions under way fail with the reason."""
        self._end(reason or redis_errors.ConnectionError("the connection was closed"))
        self._transport.abort()

    def _end(self, reason: Exception) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._ended()
        places, self._places = self._places, deque()
        for place in places:
            if not place.future.done():
                place.future.set_exception(reason)
