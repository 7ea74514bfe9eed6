"""The gRPC methods: deadlines, bytes to the engine and back. No rules live here.

Messages pass as bytes and are parsed by the engine, so that malformed ones are refused by our table of codes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import grpc
import grpc.aio

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.access.principal import Principal, caller
from serving.admission import Admission
from serving.engine import INLINE_BYTES_MAX, Engine
from serving.predict import Predictor
from serving.push import PushDoor
from serving.status_codes import Context

SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"].full_name


class FeatureServing:
    """The methods of featurestore.serving.v1.FeatureServing."""

    def __init__(
        self,
        engine: Engine,
        threads: Executor,
        admission: Admission,
        large: Admission,
        push: PushDoor | None,
        pushes: Admission,
        predictor: Predictor | None = None,
    ) -> None:
        self._engine, self._threads, self._push, self._predictor = engine, threads, push, predictor
        # Large requests have room of their own, so that they never take all of it.
        self._admission, self._large, self._pushes = admission, large, pushes

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods by name, for a server."""
        methods = {
            "GetOnlineFeatures": self.get_online_features,
            "DescribeService": self.describe_service,
            "GetFreshness": self.get_freshness,
        }
        if self._push is not None:
            methods["Push"] = self.push
        if self._predictor is not None:
            methods["Predict"] = self.predict
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        )

    async def get_online_features(self, message: bytes, context: Context) -> bytes:
        """GetOnlineFeatures."""
        admission = self._large if len(message) > INLINE_BYTES_MAX else self._admission
        async with asyncio.timeout(_remaining_s(context)):
            entered = await admission.enter()
            try:
                return await self._engine.lookup(message, caller(), self._threads)
            finally:
                admission.leave(entered)

    async def predict(self, message: bytes, context: Context) -> bytes:
        """Predict. What the lookup leaves of the deadline is the model's."""
        assert self._predictor is not None
        admission = self._large if len(message) > INLINE_BYTES_MAX else self._admission
        async with asyncio.timeout(_remaining_s(context)):
            entered = await admission.enter()
            try:
                return await self._predictor.predict(message, caller(), self._threads)
            finally:
                admission.leave(entered)

    async def describe_service(self, message: bytes, context: Context) -> bytes:
        """DescribeService."""
        async with asyncio.timeout(_remaining_s(context)):
            return await self._in_thread(self._engine.describe, message)

    async def get_freshness(self, message: bytes, context: Context) -> bytes:
        """GetFreshness."""
        async with asyncio.timeout(_remaining_s(context)):
            return await self._in_thread(self._engine.freshness, message)

    async def push(self, message: bytes, context: Context) -> bytes:
        """Push. It is finished even when the caller has given up: half of it may be durable by then."""
        assert self._push is not None
        async with asyncio.timeout(_remaining_s(context)):
            entered = await self._pushes.enter()
            try:
                # Not the threads of lookups: a push waits for disks.
                return await asyncio.to_thread(self._push.answer, message, caller())
            finally:
                self._pushes.leave(entered)

    async def _in_thread(self, answer: Callable[[bytes, Principal], bytes], message: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, answer, message, caller())


def _remaining_s(context: Context) -> float | None:
    """How long the caller will wait, None for ever; TimeoutError once it has given up."""
    remaining_s: float | None = context.time_remaining()
    if remaining_s is not None and remaining_s <= 0:
        raise TimeoutError
    return remaining_s
