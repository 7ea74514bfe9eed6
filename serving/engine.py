"""Request bytes in, reply bytes out, with the definitions of one moment. Knows neither sockets nor deadlines.

An apply made while serving is picked up by `refresh`: everything is compiled and tested beside the running plans and
then put in their place by one assignment, so a request sees the old definitions or the new ones, never half of each.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from functools import lru_cache

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.online.base import OnlineStore
from serving._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.access.principal import Principal
from serving.catalog import Catalog, RegistryReader
from serving.lookup import OnlineLookup
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

#: Compiled plans of feature lists and full names that are kept beside the services; each request shape needs one.
AD_HOC_PLANS_MAX = 256


@dataclass(frozen=True)
class Served:
    """All that is made once for a choice of features."""

    lookup: OnlineLookup
    encoder: ReplyEncoder


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

    def lookup(self, message: bytes, principal: Principal) -> bytes:
        """Answer a GetOnlineFeaturesRequest of this principal."""
        request = decode_lookup(message, self._limits)
        principal.require_read(request.choice.service, request.choice.features)
        try:
            return self._answer(request)
        except StoreError as error:
            # Perhaps a row of a schema that was applied after our plans were compiled: if so, compile and look again.
            if error.retryable or not self.refresh():
                raise
            return self._answer(request)

    def describe(self, message: bytes, principal: Principal) -> bytes:
        """Answer a DescribeServiceRequest of this principal."""
        moment = self._serving
        choice = decode_describe(message, self._limits)
        principal.require_read(choice.service, choice.features)
        plan = moment.served(choice).lookup.plan
        return encode_description(plan, moment.catalog.revision)

    def _answer(self, request: LookupRequest) -> bytes:
        served = self._serving.served(request.choice)
        response = served.lookup.lookup(request.keys, request.request, request.max_age)
        return served.encoder.encode(response, request.reply_format)

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
