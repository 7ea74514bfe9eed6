"""Commands on their way: sent in windows of bounded size, to all servers at once, again where a fault passes.

Packing the next window and running the last one go on at the same time, since a window is sent before the one before
it is answered. Every call may be repeated: rows are kept by compare-and-set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis
from redis import exceptions as redis_errors
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from featurestore.online.redis import faults, protocol
from featurestore.online.redis.servers import RedisServers

#: Sent to one server before its answers are read; two such windows are on their way at most.
WINDOW_BYTES = 1 << 18

_ASKING = protocol.command(b"ASKING")


@dataclass(frozen=True, slots=True)
class Call:
    """A command as bytes, for the server that holds a bucket."""

    bucket: int
    command: tuple[bytes | memoryview, ...]

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(map(len, self.command))


def run(servers: RedisServers, calls: Sequence[Call]) -> list[Any]:
    """The answer to each call. A fault is raised as our error; calls before it may have taken effect."""
    answers: list[Any] = [None] * len(calls)
    waiting = list(range(len(calls)))
    fault: Exception | None = None

    def attempt() -> None:
        nonlocal waiting, fault
        if fault is not None:
            _mend(servers, fault)
            fault = None
        answered: set[int] = set()
        try:
            _exchange(servers, calls, waiting, answers, answered)
        except faults.REDIS_ERRORS as error:
            fault = error
            raise
        finally:
            waiting = [place for place in waiting if place not in answered]

    if calls:
        servers.bounded(attempt)
    return answers


def _mend(servers: RedisServers, fault: Exception) -> None:
    """What helps before another try."""
    if isinstance(fault, redis_errors.NoScriptError):
        servers.load_scripts()
    else:
        servers.find_again()


def _exchange(
    servers: RedisServers, calls: Sequence[Call], places: Sequence[int], answers: list[Any], answered: set[int]
) -> None:
    """Send the calls at `places` and note what comes back; raises the worst fault, after all answers are in."""
    lanes = _lanes(servers, calls, places)
    found: list[Exception] = []
    try:
        for lane in lanes:
            lane.connect()
        while any(lane.busy for lane in lanes):
            for lane in lanes:
                lane.send()
            for lane in lanes:
                for place, answer in lane.receive():
                    if isinstance(answer, redis_errors.AskError) and not isinstance(answer, redis_errors.MovedError):
                        answer = _ask_there(servers, answer, calls[place])
                    if isinstance(answer, Exception):
                        found.append(answer)
                        lane.stop()
                    else:
                        answers[place] = answer
                        answered.add(place)
    finally:
        for lane in lanes:
            lane.release()
    if found:
        raise min(found, key=faults.is_passing)


def _lanes(servers: RedisServers, calls: Sequence[Call], places: Sequence[int]) -> list[_Lane]:
    by_pool: dict[redis.ConnectionPool, list[int]] = {}
    for place in places:
        by_pool.setdefault(servers.pool(calls[place].bucket), []).append(place)
    return [_Lane(pool, calls, own) for pool, own in by_pool.items()]


def _ask_there(servers: RedisServers, ask: redis_errors.AskError, call: Call) -> Any:
    """The answer of the server that a moving slot goes to."""
    pool = servers.pool_at(ask.node_addr)
    connection: Any = pool.get_connection()
    try:
        connection.send_packed_command([_ASKING, *call.command])
        connection.read_response()
        return connection.read_response()
    except redis_errors.ResponseError as error:
        return error
    finally:
        connection.disconnect()  # an answer may be unread
        pool.release(connection)


def received(connection: Any, count: int) -> Iterator[Any]:
    """The next answers, errors among them, each as soon as it is read. One is waited for as redis-py does it, which
    takes some 3 us; what came with it is taken out of the parser at once.
    """
    read = 0
    while read < count:
        try:
            answer = connection.read_response()
        except redis_errors.ResponseError as error:
            answer = error
        read += 1
        yield answer
        for answer in islice(iter(connection._parser._reader.gets, NOT_ENOUGH_DATA), count - read):
            if isinstance(answer, redis_errors.ConnectionError):
                connection.disconnect()
                raise answer
            read += 1
            yield answer


class _Lane:
    """The calls for one server, over one connection."""

    def __init__(self, pool: redis.ConnectionPool, calls: Sequence[Call], places: Sequence[int]) -> None:
        self._pool, self._calls = pool, calls
        self._to_send = deque(_windows(calls, places))
        self._sent: deque[list[int]] = deque()
        self._connection: Any = None

    @property
    def busy(self) -> bool:
        """Whether something is still to be sent or answered."""
        return bool(self._to_send or self._sent)

    def connect(self) -> None:
        """Take a connection."""
        self._connection = self._pool.get_connection()

    def send(self) -> None:
        """Send one window, if there is one."""
        if self._to_send:
            window = self._to_send.popleft()
            self._sent.append(window)
            self._connection.send_packed_command([b"".join(p for place in window for p in self._calls[place].command)])

    def receive(self) -> Iterator[tuple[int, Any]]:
        """(place, answer or error) of the oldest window, once another is on its way or none is left."""
        if not self._sent or (len(self._sent) == 1 and self._to_send):
            return
        window = self._sent[0]
        yield from zip(window, received(self._connection, len(window)), strict=True)
        self._sent.popleft()

    def stop(self) -> None:
        """Send nothing more."""
        self._to_send.clear()

    def release(self) -> None:
        """Give the connection back, closed when answers are still to come."""
        if self._connection is not None:
            if self._sent:
                self._connection.disconnect()
            self._pool.release(self._connection)


def _windows(calls: Sequence[Call], places: Sequence[int]) -> Iterator[list[int]]:
    window: list[int] = []
    size = 0
    for place in places:
        if window and size + calls[place].size > WINDOW_BYTES:
            yield window
            window, size = [], 0
        window.append(place)
        size += calls[place].size
    if window:
        yield window
