"""Lookups of one choice of features that came in the same moment share one exchange with the store.

Most of what a lookup costs is calls, not rows: eight requests of 100 rows take little more than one does. What came
while the event loop did other work is there at once, so nobody is kept waiting for company.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from featurestore.errors import FeatureStoreError
from featurestore.online.reading import Fetched, Wanted
from serving.lookup import Request, ServiceLookup
from serving.observing import Stage, mark
from serving.response import OnlineResponse

#: A reader asks the store for no more than this in one go; more would only keep the first of them waiting.
ROWS_MAX = 1_000
#: Values that are decoded in one go on the event loop: some 2 ms.
VALUES_MAX = 100_000

Fetch = Callable[[Sequence[Wanted]], Awaitable[Fetched]]
#: Calls a function with arguments, here or in a thread.
Run = Callable[..., Awaitable[Any]]


async def here(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call it here and now: a Run."""
    return work(*arguments)


@dataclass(slots=True)
class _Batch:
    """Requests with one `max_age`; open until its task begins to work on them."""

    requests: list[Request] = field(default_factory=list)
    rows: int = 0
    fetched_ns: int = 0
    task: asyncio.Task[list[OnlineResponse]] | None = None
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def join(self, request: Request) -> int:
        """The place of the request in it."""
        self.requests.append(request)
        self.rows += request.rows
        return len(self.requests) - 1

    async def ended(self) -> None:
        """When the task is done. Who gives up leaves the others' work alone."""
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    def wake(self, task: asyncio.Task[list[OnlineResponse]]) -> None:
        """The task is done."""
        if not task.cancelled():
            task.exception()  # looked at here, since all who asked may have given up
        for turn in self.waiting:
            if not turn.done():
                turn.set_result(None)


class Batches:
    """Answers requests for one choice of features, all on one event loop."""

    def __init__(self, lookup: ServiceLookup, fetch: Fetch) -> None:
        self._lookup, self._fetch = lookup, fetch
        self._rows_max = min(ROWS_MAX, VALUES_MAX // max(1, len(lookup.plan.outputs)))
        self._open: dict[int | None, _Batch] = {}

    async def answer(self, request: Request) -> OnlineResponse:
        """The answer, made together with those to others who ask now; StoreError as reader and decoder raise it."""
        if request.rows >= self._rows_max:
            return await self.alone(request, here)
        batch = self._open_for(request)
        place = batch.join(request)
        await batch.ended()
        assert batch.task is not None
        mark(Stage.FETCH, batch.fetched_ns)
        mark(Stage.DECODE)
        fault = batch.task.exception()
        if fault is None:
            return batch.task.result()[place]
        if len(batch.requests) > 1 and not (isinstance(fault, FeatureStoreError) and fault.retryable):
            return await self.alone(request, here)  # the fault may be that of another's rows
        raise fault

    async def alone(self, request: Request, run: Run) -> OnlineResponse:
        """The answer to one request in an exchange of its own, worked on by `run`."""
        asked = await run(self._lookup.ask, [request])
        mark(Stage.PARSE)
        fetched = await self._fetch(asked.wanted)
        mark(Stage.FETCH)
        (response,) = await run(self._lookup.judged, asked, fetched.rows, fetched.standings)
        mark(Stage.DECODE)
        return response

    def _open_for(self, request: Request) -> _Batch:
        """The batch that is open for such a request, with room for it."""
        batch = self._open.get(request.max_age_us)
        if batch is None or batch.rows + request.rows > self._rows_max:
            batch = self._open[request.max_age_us] = _Batch()
            # It begins in the next round of the loop, and belongs to no one request.
            batch.task = asyncio.get_running_loop().create_task(self._answers(batch), context=Context())
            batch.task.add_done_callback(batch.wake)
        return batch

    async def _answers(self, batch: _Batch) -> list[OnlineResponse]:
        max_age_us = batch.requests[0].max_age_us
        if self._open.get(max_age_us) is batch:
            del self._open[max_age_us]
        asked = self._lookup.ask(batch.requests)
        fetched = await self._fetch(asked.wanted)
        batch.fetched_ns = perf_counter_ns()
        return self._lookup.judged(asked, fetched.rows, fetched.standings)
