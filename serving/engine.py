"""Request bytes in, reply bytes out, with the definitions of one moment. Knows neither sockets nor deadlines.

An apply made while serving is picked up by `refresh`: everything is compiled and tested beside the running plans and
then put in their place by one assignment, so a request sees the old definitions or the new ones, never half of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from featurestore.clock import Clock, to_us
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.online.base import OnlineStore
from featurestore.online.reading import AsyncReader, Fetched, Wanted
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.access.principal import Principal
from serving.batches import Batches, Fetch, Run, here
from serving.breaker import Breaker
from serving.cached_reader import CachedReader
from serving.catalog import Catalog, RegistryReader
from serving.circuit import CircuitState
from serving.freshness import answer_freshness
from serving.hot_keys import HotKeys
from serving.lookup import OnlineLookup
from serving.near_cache import NearCache
from serving.observing import Stage, answered, chose, mark
from serving.plan import ServicePlan
from serving.request_shapes import RequestShapes
from serving.response import OnlineResponse
from serving.warm_up import NearCacheOptions, PreloadOptions, counting, hot_keys, preload
from serving.watermarks import PublishedWatermarks, PublishStates, Watermarks
from serving.wire import (
    FeatureChoice,
    Limits,
    LookupRequest,
    ReplyEncoder,
    decode_describe,
    decode_lookup,
    encode_description,
)

log = logging.getLogger(__name__)

#: Requests up to this size (some 1,000 keys) and replies of up to so many values are made on the event loop: a thread
#: costs each about 0.1 ms, and the interpreter runs one at a time anyway. Larger ones would keep all others waiting.
INLINE_BYTES_MAX, INLINE_VALUES_MAX = 16 << 10, 100_000

#: Takes what was answered, for the served log; never waits.
Record = Callable[[OnlineResponse], None]
#: Made-up requests to each service before a worker is ready: the first ones through new code take longer.
WARM_UP_REQUESTS = 20

#: Compiled plans of feature lists and full names that are kept beside the services; each request shape needs one.
AD_HOC_PLANS_MAX = 256


@dataclass(frozen=True)
class Served:
    """All that is made once for a choice of features."""

    lookup: OnlineLookup
    batches: Batches
    encoder: ReplyEncoder


class Moment:
    """What is served between two applies."""

    def __init__(
        self, catalog: Catalog, store: OnlineStore, clock: Clock, watermarks: Watermarks, fetch: Fetch
    ) -> None:
        self.catalog = catalog
        self._parts, self._fetch = (store, clock, watermarks), fetch
        #: Choice -> what serves it; compiled when first asked for.
        self.served = lru_cache(maxsize=AD_HOC_PLANS_MAX + len(catalog.services))(self._served)

    def _served(self, choice: FeatureChoice) -> Served:
        catalog = self.catalog
        if choice.service:
            plan = catalog.plan(choice.service, full_feature_names=choice.full_names)
        else:
            plan = catalog.plan_of(choice.features, full_feature_names=choice.full_names)
        lookup = OnlineLookup(plan, *self._parts)
        return Served(lookup, Batches(lookup, self._fetch), ReplyEncoder(plan))

    def self_test(self) -> None:
        """Compile every service and send a made-up request through each; raises what would break real ones."""
        for name in self.catalog.services:
            served = self.served(FeatureChoice(service=name))
            served.encoder.encode(served.lookup.self_test(), pb.REPLY_FORMAT_COLUMNS)


class Engine:
    """Answers encoded requests. `start` it before the first; call `refresh` now and then, from any thread."""

    def __init__(
        self,
        registry: RegistryReader,
        states: PublishStates,
        store: OnlineStore,
        clock: Clock,
        limits: Limits,
        near: NearCacheOptions | None = None,
        preload: PreloadOptions | None = None,
    ) -> None:
        self._registry, self._store, self._clock, self._limits = registry, store, clock, limits
        self._states = states
        self._requests = RequestShapes(partial(decode_lookup, limits=limits))
        #: Is given every reply that a client gets; must not wait, nor raise.
        self.record: Record | None = None
        #: Is told by which plan each reply was made; must not wait, nor raise.
        self.note_reader: Callable[[ServicePlan], None] | None = None
        # `refresh` reads the watermarks, so that no request waits for the state store.
        self._watermarks = PublishedWatermarks(states, refresh_s=math.inf)
        self._lock = threading.Lock()
        self._moment: Moment | None = None
        self._refused_revision: int | None = None
        self._reader: AsyncReader
        self._breaker: Breaker | None = None
        self._near, self._preload = near, preload or PreloadOptions()
        self._hot: HotKeys | None = None
        #: The near cache, once it is read through.
        self.cache: NearCache | None = None

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
        """Connected to the store from this event loop, warm, each service's path tested; `lookup` works meanwhile."""
        async with contextlib.AsyncExitStack() as stack:
            self._breaker = Breaker(self._store.reader(timeout_s))
            stack.push_async_callback(self._breaker.close)
            self._reader = self._breaker
            cached = None
            if self._near is not None:
                self._reader = cached = await self._cached(self._breaker, self._near, stack)
            await self._reader.connect()
            if cached is not None:
                await cached.confirm()
            for _ in range(WARM_UP_REQUESTS):
                await self._test_path()
            if cached is not None:
                cached.count_anew()  # the made-up requests are nobody's
            yield

    async def _cached(
        self, reader: AsyncReader, near: NearCacheOptions, stack: contextlib.AsyncExitStack
    ) -> CachedReader:
        """The reader behind a near cache, which is preloaded."""
        self.cache = NearCache(near.bytes_max, near.bound_s)
        self._hot = stack.enter_context(hot_keys(self._preload.folder))
        await preload(self.cache, self._store, self.catalog.served_views, self._preload, self._hot)
        await stack.enter_async_context(counting(self._hot))
        cached = CachedReader(reader, self.cache, near.unconfirmed_max_s)
        stack.push_async_callback(cached.stop)
        return cached

    async def lookup(self, message: bytes, principal: Principal, threads: Executor | None = None) -> bytes:
        """Answer a GetOnlineFeaturesRequest of this principal; a large one is worked on in `threads`."""
        mark(Stage.QUEUE)
        known = self._requests.known(message)
        run = _in_thread(threads) if threads is not None and len(message) > INLINE_BYTES_MAX else here
        request = known or await run(decode_lookup, message, self._limits)
        principal.require_read(request.choice.service, request.choice.features)
        served, response = await self.respond(request, threads)
        if known is None:
            self._requests.learn(message, request)
        run = _chosen(response.rows, response.plan, threads)
        reply = await run(served.encoder.encode, response, request.reply_format)
        mark(Stage.ENCODE)
        self.sent(response)
        return reply

    def sent(self, response: OnlineResponse) -> None:
        """This was answered: what the served log is to hold, and who reads."""
        if self.note_reader is not None:
            self.note_reader(response.plan)
        if self.record is not None:
            self.record(response)

    async def respond(self, request: LookupRequest, threads: Executor | None = None) -> tuple[Served, OnlineResponse]:
        """Answer a decoded request: the columns, and what encodes them."""
        moment = self._serving
        try:
            return await self._answered(request, threads)
        except StoreError as error:
            # Perhaps a row of a schema that was applied after our plans were compiled: if so, compile and look again.
            if error.retryable:
                raise
            await asyncio.to_thread(self.refresh)
            if self._serving is moment:  # else we, or whoever met such a row with us, compiled anew
                raise
        return await self._answered(request, threads)

    def describe(self, message: bytes, principal: Principal) -> bytes:
        """Answer a DescribeServiceRequest of this principal."""
        moment = self._serving
        choice = decode_describe(message, self._limits)
        principal.require_read(choice.service, choice.features)
        plan = moment.served(choice).lookup.plan
        return encode_description(plan, moment.catalog.revision)

    async def _test_path(self) -> None:
        """A made-up request through the whole path of each service."""
        for name in self._serving.catalog.services:
            served = self._serving.served(FeatureChoice(service=name))
            response = await served.batches.answer(served.lookup.probe())
            served.encoder.encode(response, pb.REPLY_FORMAT_COLUMNS)

    async def _answered(self, request: LookupRequest, threads: Executor | None) -> tuple[Served, OnlineResponse]:
        served = self._serving.served(request.choice)
        lookup = served.lookup
        chose(lookup.plan.name)
        run = _chosen(max(map(len, request.keys.values()), default=0), lookup.plan, threads)
        asked = await run(lookup.check, request.keys, request.request, request.max_age)
        mark(Stage.PARSE)
        # Arrow pads what it writes with the bytes that follow, which in a batch are another caller's.
        apart = run is not here or request.reply_format == pb.REPLY_FORMAT_ARROW_IPC
        response = await (served.batches.alone(asked, run) if apart else served.batches.answer(asked))
        answered(response.rows, response.views)
        lookup.require_fresh(response)
        return served, response

    async def _fetch(self, wanted: Sequence[Wanted]) -> Fetched:
        if self._hot is not None:
            self._hot.note(wanted)
        return await self._reader.fetch(wanted)

    def freshness(self, message: bytes, principal: Principal) -> bytes:
        """Answer a GetFreshnessRequest of this principal; reads the state store, so it may wait."""
        return answer_freshness(message, principal, self._serving.catalog, self._states, to_us(self._clock.now()))

    def plan(self, choice: FeatureChoice) -> ServicePlan:
        """What a choice of features takes and gives; NotFoundError lists what there is."""
        return self._serving.served(choice).lookup.plan

    @property
    def breaker_state(self) -> CircuitState:
        """Whether requests reach the store."""
        return CircuitState.CLOSED if self._breaker is None else self._breaker.state

    @property
    def catalog(self) -> Catalog:
        """The definitions that are served now."""
        return self._serving.catalog

    @property
    def _serving(self) -> Moment:
        assert self._moment is not None, "start() comes first"
        return self._moment

    def _next_moment(self) -> Moment:
        catalog = Catalog(self._registry.snapshot())
        self._read_watermarks(catalog)
        moment = Moment(catalog, self._store, self._clock, self._watermarks, self._fetch)
        moment.self_test()
        return moment

    def _read_watermarks(self, catalog: Catalog) -> None:
        self._watermarks.refresh([ref for ref, view in catalog.views.items() if view.freshness is not None])


def _chosen(rows: int, plan: ServicePlan, threads: Executor | None) -> Run:
    """Where to work on so many rows of a plan."""
    large = threads is not None and rows * len(plan.outputs) > INLINE_VALUES_MAX
    return _in_thread(threads) if large else here


def _in_thread(threads: Executor | None) -> Run:
    async def run(work: Callable[..., Any], *arguments: Any) -> Any:
        within = contextvars.copy_context().run  # the thread marks and logs for this request
        return await asyncio.get_running_loop().run_in_executor(threads, within, work, *arguments)

    return run
