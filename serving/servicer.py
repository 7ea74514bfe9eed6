"""The gRPC methods: deadlines, bytes to the engine and back. No rules live here.

Messages pass as bytes and are parsed by the engine, so that malformed ones are refused by our table of codes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

import grpc
import grpc.aio

from featurestore.errors import ServingError
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.access.principal import caller
from serving.admission import Rooms
from serving.engine import INLINE_BYTES_MAX, Engine
from serving.own_threads import OwnThreads
from serving.predict import Predictor
from serving.push import PushDoor
from serving.status_codes import Context

#: Questions for freshness at a time: each is a few short reads of the state store.
FRESHNESS_MAX = 4

SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"].full_name


class FeatureServing:
    """The methods of featurestore.serving.v1.FeatureServing."""

    def __init__(
        self,
        engine: Engine,
        threads: Executor,
        rooms: Rooms,
        push: PushDoor | None,
        predictor: Predictor | None = None,
    ) -> None:
        self._engine, self._threads, self._rooms = engine, threads, rooms
        self._push, self._predictor = push, predictor
        self._states = OwnThreads("the registry", FRESHNESS_MAX)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods by name, for a server."""
        methods = {
            "GetOnlineFeatures": self.get_online_features,
            "DescribeService": self.describe_service,
            "GetFreshness": self.get_freshness,
            "Predict": self.predict,
        }
        if self._push is not None:
            methods["Push"] = self.push
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        )

    async def get_online_features(self, message: bytes, context: Context) -> bytes:
        """GetOnlineFeatures."""
        admission = self._rooms.large if len(message) > INLINE_BYTES_MAX else self._rooms.lookups
        async with _in_time(context):
            entered = await admission.enter()
            try:
                return await self._engine.lookup(message, caller(), self._threads)
            finally:
                admission.leave(entered)

    async def predict(self, message: bytes, context: Context) -> bytes:
        """Predict. What the lookup leaves of the deadline is the model's."""
        if self._predictor is None:
            raise ServingError(
                "this server asks no model; set inference.address to that of a sidecar, or ask a server that has one"
            )
        async with _in_time(context), self._rooms.predictions.inside():
            return await self._predictor.predict(message, caller(), self._threads)

    async def describe_service(self, message: bytes, context: Context) -> bytes:
        """DescribeService."""
        async with _in_time(context), self._rooms.questions.inside():
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._engine.describe, message, caller()
            )

    async def get_freshness(self, message: bytes, context: Context) -> bytes:
        """GetFreshness."""
        async with _in_time(context), self._rooms.questions.inside():
            # Not the threads of lookups: the state store may be silent.
            return await self._states.run(partial(self._engine.freshness, message, caller()))

    async def push(self, message: bytes, context: Context) -> bytes:
        """Push. It is finished even when the caller has given up: half of it may be durable by then."""
        assert self._push is not None
        async with _in_time(context), self._rooms.pushes.inside() as place:
            # Not the threads of lookups: a push waits for disks.
            return await place.finish(partial(self._push.answer, message, caller()))


def _in_time(context: Context) -> AbstractAsyncContextManager[object]:
    """For as long as the caller will wait; TimeoutError once it has given up."""
    remaining_s: float | None = context.time_remaining()
    if remaining_s is None:
        return _FOR_EVER
    if remaining_s <= 0:
        raise TimeoutError
    return asyncio.timeout(remaining_s)


_FOR_EVER = nullcontext()
