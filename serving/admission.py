"""How many requests are worked on, how many may wait, and who is turned away: at once, before any work is done.

An event loop that takes all that comes serves everybody late. A bounded one serves those it takes in time, and tells
the others when to come back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from featurestore.errors import ServingError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Of the event loop, some 3 us each when nothing else is to do. A call that comes to gRPC is heard of some four later.
ROUNDS = 10
#: Lets other threads run, where the system can: gRPC hears of calls in one of its own.
_give_way = getattr(os, "sched_yield", lambda: None)
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
    """At most `in_flight_max` tasks are inside, and `queue_max` wait until there is room, first come first.

    `enter` raises Overloaded when the queue is full. Who is cancelled while waiting leaves the queue.

    With `rounds`, those who come together go in together: all who wait, once nobody has come, nor anybody of a group
    gone, for so many rounds of the event loop; or, when nobody else could wait, in the next one. gRPC takes one call in
    some four rounds out of a queue of its own, which nobody can see: work in every round would keep callers waiting
    there, where they are neither served together, nor turned away. Who comes alone, after one who came alone, does not
    wait.
    """

    def __init__(self, in_flight_max: int, queue_max: int, rounds: int = 0) -> None:
        self._in_flight_max, self._queue_max, self._rounds = in_flight_max, queue_max, rounds
        self.in_flight = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._mean_s = 0.001
        #: Until the door opens; 0 when it is open.
        self._rounds_left = 0
        #: Whether the last who came in found, or brought, others.
        self._company = False
        #: How many were turned away.
        self.shed = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether `enter` would turn the next one away."""
        return len(self._queue) >= self._queue_max + self._room and not self._stands_open

    def turned_away(self) -> Overloaded:
        """Count one who does not come in; what he is to be told."""
        self.shed += 1
        return Overloaded(self.in_flight, len(self._queue), self._retry_after_ms())

    async def enter(self) -> float:
        """Come in, now or when it is one's turn; returns what `leave` is to be given."""
        loop = asyncio.get_running_loop()
        if self._stands_open:
            self._let_in(1, loop)
            return loop.time()
        if self.full:
            raise self.turned_away()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        if self.full:
            self._hurry(loop)
        else:
            self._gather(loop)
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
        """Go; who waits comes in instead."""
        loop = asyncio.get_running_loop()
        self._mean_s += _NEWEST * (loop.time() - entered - self._mean_s)
        self._gone(loop)

    @property
    def _stands_open(self) -> bool:
        return self._room > 0 and not self._rounds_left and not self._company

    @property
    def _room(self) -> int:
        return self._in_flight_max - self.in_flight

    def _gone(self, loop: asyncio.AbstractEventLoop) -> None:
        self.in_flight -= 1
        if self._company:
            self._gather(loop)
        if not self._rounds_left:
            self._open(loop)

    def _let_in(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.in_flight += count
        self._company = self.in_flight > 1 and self._rounds > 0
        self._gather(loop)

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the door for `rounds`, beginning anew if it is closed."""
        if self._rounds and not self._rounds_left:
            loop.call_soon(self._round, loop)
        self._rounds_left = self._rounds

    def _hurry(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the door in the next round: all who may wait are here."""
        if self._rounds_left:
            self._rounds_left = 1
        else:
            self._open(loop)

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rounds_left -= 1
        _give_way()
        if self._rounds_left:
            loop.call_soon(self._round, loop)
        else:
            self._open(loop)

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let in all who wait, as far as there is room."""
        count = 0
        while self._queue and count < self._room:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                count += 1
        if count:
            self._let_in(count, loop)

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[Place]:
        """Come in, and go at the end of the block, or of what was begun there and cannot be broken off."""
        place = Place(self, await self.enter())
        try:
            yield place
        finally:
            place.give_back()

    def _retry_after_ms(self) -> int:
        """When those who are here will have gone, at the pace of late."""
        ahead = self.in_flight + len(self._queue)
        return max(1, round(1e3 * self._mean_s * ahead / self._in_flight_max))


class Place:
    """That of one who is inside."""

    def __init__(self, room: Admission, entered: float) -> None:
        self._room, self._entered = room, entered
        self._work: asyncio.Task[Any] | None = None

    async def finish(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, done in a thread. It is finished, and keeps the place, whoever gives up waiting."""
        task = self._work = asyncio.create_task(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell_of_failure)
            raise

    def give_back(self) -> None:
        """Go; with work that is not done yet, go then."""
        if self._work is None or self._work.done():
            self._room.leave(self._entered)
        else:
            self._work.add_done_callback(lambda _: self._room.leave(self._entered))


def _tell_of_failure(work: asyncio.Task[Any]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("what was finished for a caller who had gone failed: %s", error)


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """The rooms of a server: no kind of request takes the place of another, whichever protocol it comes by."""

    lookups: Admission
    #: Lookups that are worked on in threads.
    large: Admission
    #: Descriptions and freshness.
    questions: Admission
    pushes: Admission
    #: Lookups that a model waits for; they are away for as long as it computes.
    predictions: Admission
    #: Lookups over REST, whose JSON costs many times as much.
    rest: Admission

    @staticmethod
    def of(in_flight_max: int, threads: int, queue_max: int) -> Rooms:
        """Rooms for `in_flight_max` lookups, and of everything that needs a thread for `threads`."""
        return Rooms(
            lookups=Admission(in_flight_max, queue_max, ROUNDS),
            # Most of a prediction is waiting for the model.
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
