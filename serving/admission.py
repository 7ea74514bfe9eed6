"""How many requests are worked on, how many may wait, and who is turned away: at once, before any work is done.

An event loop that takes all that comes serves everybody late. A bounded one serves those it takes in time, and tells
the others when to come back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from featurestore.errors import ServingError

#: Between two lookups of a server; some 3 us each when nothing else is to do. Three calls can arrive in 12.
ROUNDS = 12
#: Weight of the newest request in the mean time that one takes.
_NEWEST = 0.05


class Overloaded(ServingError):
    """Too many requests are under way; the same one may succeed `retry_after_ms` later."""

    retryable = True

    def __init__(self, at_work: int, waiting: int, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"the server has {at_work} requests at work and {waiting} waiting; try again in {retry_after_ms} ms, ask "
            "another worker, or give this one more room (serving.in_flight_max, serving.queue_max)"
        )


class Admission:
    """At most `in_flight_max` tasks are inside, and `queue_max` wait to come in, first come first.

    `enter` raises Overloaded when the queue is full. Who is cancelled while waiting leaves the queue.

    `rounds` of the event loop pass between two who come in. gRPC takes one call in some four rounds out of a queue of
    its own, which nobody can see or bound: work in every round would keep callers waiting there, where they are neither
    served nor turned away. (Rounds that begin anew with each caller empty it sooner, and serve a fifth less.)
    """

    def __init__(self, in_flight_max: int, queue_max: int, rounds: int = 0) -> None:
        self._in_flight_max, self._queue_max, self._rounds = in_flight_max, queue_max, rounds
        self.in_flight = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._mean_s = 0.001
        self._rounds_left = 0
        #: How many were turned away.
        self.shed = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether `enter` would turn the next one away."""
        return len(self._queue) >= self._queue_max and not self._open

    def turned_away(self) -> Overloaded:
        """Count one who does not come in; what he is to be told."""
        self.shed += 1
        return Overloaded(self.in_flight, len(self._queue), self._retry_after_ms())

    async def enter(self) -> float:
        """Come in, now or when it is one's turn; returns what `leave` is to be given."""
        loop = asyncio.get_running_loop()
        if self._open:
            self._let_in(loop)
            return loop.time()
        if self.full:
            raise self.turned_away()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                if turn in self._queue:
                    self._queue.remove(turn)
            else:
                self._gone(loop)  # it was our turn already
            raise
        return loop.time()

    def leave(self, entered: float) -> None:
        """Go; the first who waits comes in instead."""
        loop = asyncio.get_running_loop()
        self._mean_s += _NEWEST * (loop.time() - entered - self._mean_s)
        self._gone(loop)

    @property
    def _open(self) -> bool:
        return self.in_flight < self._in_flight_max and not self._rounds_left

    def _let_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self.in_flight += 1
        if self._rounds:
            self._rounds_left = self._rounds
            loop.call_soon(self._round, loop)

    def _gone(self, loop: asyncio.AbstractEventLoop) -> None:
        self.in_flight -= 1
        if not self._rounds_left:
            self._next(loop)

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rounds_left -= 1
        if self._rounds_left:
            loop.call_soon(self._round, loop)
        else:
            self._next(loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let in who waits, as far as there is room."""
        while self._queue and self.in_flight < self._in_flight_max and not self._rounds_left:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                self._let_in(loop)

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """Come in, and go at the end of the block."""
        entered = await self.enter()
        try:
            yield
        finally:
            self.leave(entered)

    def _retry_after_ms(self) -> int:
        """When those who are here will have gone, at the pace of late."""
        ahead = self.in_flight + len(self._queue)
        return max(1, round(1e3 * self._mean_s * ahead / self._in_flight_max))


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """The rooms of a server: no kind of request takes the place of another, whichever protocol it comes by."""

    lookups: Admission
    #: Lookups that are worked on in threads.
    large: Admission
    #: Descriptions and freshness.
    questions: Admission
    pushes: Admission
    #: Lookups that a model waits for; they are away for as long as it computes, so there may be twice as many.
    predictions: Admission
    #: Lookups over REST, whose JSON costs many times as much.
    rest: Admission

    @staticmethod
    def of(in_flight_max: int, threads: int, queue_max: int) -> Rooms:
        """Rooms for `in_flight_max` lookups, and of everything that needs a thread for `threads`."""
        return Rooms(
            lookups=Admission(in_flight_max, queue_max, ROUNDS),
            predictions=Admission(2 * in_flight_max, 2 * queue_max),
            **{name: Admission(threads, queue_max) for name in ("large", "questions", "pushes", "rest")},
        )

    @property
    def waiting(self) -> int:
        """How many wait, in all rooms."""
        return sum(getattr(self, name).waiting for name in _LABELS)

    @property
    def shed(self) -> Mapping[str, int]:
        """How many were turned away, by what they asked for."""
        return {label: getattr(self, name).shed for name, label in _LABELS.items()}


_LABELS = {
    "lookups": "GetOnlineFeatures",
    "large": "GetOnlineFeatures, large",
    "questions": "DescribeService, GetFreshness",
    "pushes": "Push",
    "predictions": "Predict",
    "rest": "/get-online-features",
}
