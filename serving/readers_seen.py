"""Which services this worker answered, told to the state store now and then: what keeps their views from removal.

A request costs one entry of a dictionary; writing is the work of a thread, once a minute and at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from featurestore.clock import SystemClock, to_us
from featurestore.errors import FeatureStoreError
from featurestore.registry.readers import Reader
from featurestore.trouble import Trouble
from serving.own_threads import in_own_thread
from serving.plan import ServicePlan

log = logging.getLogger(__name__)

#: Takes readers for good.
NoteReaders = Callable[[Sequence[Reader]], None]
#: Plans remembered between two writes; requests for features one by one may make any number of them.
PLANS_MAX = 1024
#: How long the end of a worker waits for a registry that does not answer.
LAST_S_MAX = 2.0


class ReadersSeen:
    """`note` belongs to the event loop and never waits; `tell` may run in a thread."""

    def __init__(self) -> None:
        self._plans: dict[int, ServicePlan] = {}
        self._trouble = Trouble(log, "readers are not noted in the registry", "readers are noted in the registry again")

    def note(self, plan: ServicePlan) -> None:
        """A request was answered by this plan."""
        if len(self._plans) < PLANS_MAX:
            self._plans[id(plan)] = plan

    def tell(self, take: NoteReaders) -> None:
        """Hand over what was noted; what cannot be taken is tried again with the next."""
        plans, self._plans = self._plans, {}
        if not plans:
            return
        now_us = to_us(SystemClock().now())
        readers = {(reader.kind, reader.name): reader for plan in plans.values() for reader in _readers(plan, now_us)}
        try:
            take(list(readers.values()))
        except FeatureStoreError as error:
            self._plans = plans | self._plans
            self._trouble.met(error)
        else:
            self._trouble.passed()


def _readers(plan: ServicePlan, now_us: int) -> list[Reader]:
    """A service is one reader; features named one by one are one for each view."""
    refs = [view.ref for view in plan.views]
    if not plan.name:
        return [Reader(kind="features", name=ref, views=(ref,), seen_at_us=now_us) for ref in refs]
    return [
        Reader(
            kind="service",
            name=plan.name,
            views=tuple(refs),
            seen_at_us=now_us,
            service=plan.name,
            signature=plan.signature,
        )
    ]


@contextlib.asynccontextmanager
async def telling(take: NoteReaders | None, every_s: float) -> AsyncIterator[Callable[[ServicePlan], None] | None]:
    """Yields what notes a plan; meanwhile, readers are told every so often, and at the end. None without a taker."""
    if take is None:
        yield None
        return
    seen = ReadersSeen()
    task = asyncio.create_task(_tell(seen, take, every_s))
    try:
        yield seen.note
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        try:
            await in_own_thread(partial(seen.tell, take), "readers", LAST_S_MAX)
        except TimeoutError:
            log.warning("the last readers are not noted: the registry did not answer within %g s", LAST_S_MAX)


async def _tell(seen: ReadersSeen, take: NoteReaders, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await in_own_thread(partial(seen.tell, take), "readers")
