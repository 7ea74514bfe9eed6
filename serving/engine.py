"""Request bytes in, reply bytes out, with the definitions of one moment. Knows neither sockets nor deadlines.

An apply made while serving is picked up by `refresh`: everything is compiled and tested beside the running plans and
then put in their place by one assignment, so a request sees the old definitions or the new ones, never half of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.online.base import OnlineStore
from featurestore.online.reading import AsyncReader, Fetched
from serving._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.catalog import Catalog, RegistryReader
from serving.lookup import Asked, OnlineLookup
from serving.watermarks import PublishedWatermarks, PublishStates, Watermarks
from serving.wire import (
    FeatureChoice,
    Limits,
    ReplyEncoder,
    decode_describe,
    decode_lookup,
    encode_description,
)

log = logging.getLogger(__name__)

#: Requests up to this size (some 1,000 keys) and replies of up to so many values are made on the event loop: a thread
#: costs each about 0.1 ms, and the interpreter runs one at a time anyway. Larger ones would keep all others waiting.
INLINE_BYTES_MAX, INLINE_VALUES_MAX = 16 << 10, 100_000

Result = TypeVar("Result")
#: Calls a function with arguments, here or in a thread.
Run = Callable[..., Awaitable[Any]]

#: Compiled plans of feature lists and full names that are kept beside the services; each request shape needs one.
AD_HOC_PLANS_MAX = 256


@dataclass(frozen=True)
class Served:
    """All that is made once for a choice of features."""

    lookup: OnlineLookup
    encoder: ReplyEncoder


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose rows are to be fetched, and what will answer it."""

    served: Served
    asked: Asked
    reply_format: int

    @property
    def values(self) -> int:
        """How many values the reply will have."""
        return self.asked.rows * len(self.served.lookup.plan.outputs)


class Moment:
    """What is served between two applies."""

    def __init__(self, catalog: Catalog, store: OnlineStore, clock: Clock, watermarks: Watermarks) -> None:
        self.catalog = catalog
        self._parts = (store, clock, watermarks)
        #: Choice -> what serves it; compiled when first asked for.
        self.served = lru_cache(maxsize=AD_HOC_PLANS_MAX + len(catalog.services))(self._served)

    def _served(self, choice: FeatureChoice) -> Served:
        catalog = self.catalog
        if choice.service:
            plan = catalog.plan(choice.service, full_feature_names=choice.full_names)
        else:
            plan = catalog.plan_of(choice.features, full_feature_names=choice.full_names)
        return Served(OnlineLookup(plan, *self._parts), ReplyEncoder(plan))

    def self_test(self) -> None:
        """Compile every service and send a made-up request through each; raises what would break real ones."""
        for name in self.catalog.services:
            served = self.served(FeatureChoice(service=name))
            served.encoder.encode(served.lookup.self_test(), pb.REPLY_FORMAT_COLUMNS)


class Engine:
    """Answers encoded requests. `start` it before the first; call `refresh` now and then, from any thread."""

    def __init__(
        self, registry: RegistryReader, states: PublishStates, store: OnlineStore, clock: Clock, limits: Limits
    ) -> None:
        self._registry, self._store, self._clock, self._limits = registry, store, clock, limits
        # `refresh` reads the watermarks, so that no request waits for the state store.
        self._watermarks = PublishedWatermarks(states, refresh_s=math.inf)
        self._lock = threading.Lock()
        self._moment: Moment | None = None
        self._refused_revision: int | None = None
        self._reader: AsyncReader

    def start(self) -> None:
        """Compile the plans of all services and test each; raises what would break real requests."""
        with self._lock:
            self._moment = self._next_moment()

    def refresh(self) -> bool:
        """Read the watermarks, and the definitions if they changed; returns whether they did.

        Definitions that fail their test are refused once, by the error they raise; the old ones go on serving.
        """
        with self._lock:
            moment = self._serving
            revision = self._registry.revision()
            if revision in (moment.catalog.revision, self._refused_revision):
                self._read_watermarks(moment.catalog)
                return False
            try:
                self._moment = self._next_moment()
            except FeatureStoreError as error:
                self._refused_revision = None if error.retryable else revision
                raise
        log.info("serving the definitions of revision %d", revision)
        return True

    @contextlib.asynccontextmanager
    async def reading(self, timeout_s: float) -> AsyncIterator[None]:
        """Connected to the store from this event loop, each service's path tested; `lookup` works meanwhile."""
        self._reader = reader = self._store.reader(timeout_s)
        try:
            await reader.connect()
            await self._test_path()
            yield
        finally:
            await reader.close()

    async def lookup(self, message: bytes, threads: Executor | None = None) -> bytes:
        """Answer a GetOnlineFeaturesRequest; a large one is worked on in `threads`."""
        run: Run = _here
        if threads is not None and len(message) > INLINE_BYTES_MAX:
            run = partial(_in_thread, threads)
        prepared = await run(self._prepare, message)
        if threads is not None and prepared.values > INLINE_VALUES_MAX:
            run = partial(_in_thread, threads)
        try:
            return await self._answer(prepared, run)
        except StoreError as error:
            # Perhaps a row of a schema that was applied after our plans were compiled: if so, compile and look again.
            if error.retryable or not await asyncio.to_thread(self.refresh):
                raise
        return await self._answer(await run(self._prepare, message), run)

    def describe(self, message: bytes) -> bytes:
        """Answer a DescribeServiceRequest."""
        moment = self._serving
        plan = moment.served(decode_describe(message, self._limits)).lookup.plan
        return encode_description(plan, moment.catalog.revision)

    def _prepare(self, message: bytes) -> Prepared:
        request = decode_lookup(message, self._limits)
        served = self._serving.served(request.choice)
        asked = served.lookup.prepare(request.keys, request.request, request.max_age)
        return Prepared(served, asked, request.reply_format)

    async def _test_path(self) -> None:
        """A made-up request through the whole path of each service."""
        for name in self._serving.catalog.services:
            served = self._serving.served(FeatureChoice(service=name))
            asked = served.lookup.probe()
            fetched = await self._reader.fetch(asked.wanted)
            served.encoder.encode(served.lookup.judged(asked, fetched.rows), pb.REPLY_FORMAT_COLUMNS)

    async def _answer(self, prepared: Prepared, run: Run) -> bytes:
        fetched = await self._reader.fetch(prepared.asked.wanted)
        return await run(_finished, prepared, fetched)

    @property
    def _serving(self) -> Moment:
        assert self._moment is not None, "start() comes first"
        return self._moment

    def _next_moment(self) -> Moment:
        catalog = Catalog(self._registry.snapshot())
        self._read_watermarks(catalog)
        moment = Moment(catalog, self._store, self._clock, self._watermarks)
        moment.self_test()
        return moment

    def _read_watermarks(self, catalog: Catalog) -> None:
        self._watermarks.refresh([ref for ref, view in catalog.views.items() if view.freshness is not None])


def _finished(prepared: Prepared, fetched: Fetched) -> bytes:
    response = prepared.served.lookup.finish(prepared.asked, fetched.rows, fetched.standings)
    return prepared.served.encoder.encode(response, prepared.reply_format)


async def _here(work: Callable[..., Result], *arguments: Any) -> Result:
    return work(*arguments)


async def _in_thread(threads: Executor, work: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
