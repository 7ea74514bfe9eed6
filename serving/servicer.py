"""The gRPC methods: deadline, thread or no thread, bytes to the engine and back. No rules live here.

Messages pass as bytes and are parsed by the engine, so that malformed ones are refused by our table of codes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import grpc
import grpc.aio

from serving._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.engine import Engine
from serving.push import PushDoor
from serving.status_codes import Context

SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"].full_name

#: Requests up to this size (some 1,000 keys) are answered on the event loop: a thread costs each about 0.1 ms, and
#: the interpreter runs one of them at a time anyway. Larger ones would keep health checks waiting.
INLINE_BYTES_MAX = 16 << 10


class FeatureServing:
    """The methods of featurestore.serving.v1.FeatureServing."""

    def __init__(self, engine: Engine, threads: Executor, push: PushDoor | None = None) -> None:
        self._engine, self._threads, self._push = engine, threads, push

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods by name, for a server."""
        methods = {"GetOnlineFeatures": self.get_online_features, "DescribeService": self.describe_service}
        if self._push is not None:
            methods["Push"] = self.push
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        )

    async def get_online_features(self, message: bytes, context: Context) -> bytes:
        """GetOnlineFeatures."""
        return await self._within_deadline(self._engine.lookup, message, context)

    async def describe_service(self, message: bytes, context: Context) -> bytes:
        """DescribeService."""
        return await self._within_deadline(self._engine.describe, message, context)

    async def push(self, message: bytes, context: Context) -> bytes:
        """Push. It is finished even when the caller has given up: half of it may be durable by then."""
        assert self._push is not None
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            raise TimeoutError
        async with asyncio.timeout(remaining_s):
            # Not the threads of lookups: a push waits for disks.
            return await asyncio.to_thread(self._push.answer, message)

    async def _within_deadline(self, answer: Callable[[bytes], bytes], message: bytes, context: Context) -> bytes:
        """The answer; TimeoutError once the caller has given up."""
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            raise TimeoutError
        if len(message) <= INLINE_BYTES_MAX:
            return answer(message)
        async with asyncio.timeout(remaining_s):
            return await asyncio.get_running_loop().run_in_executor(self._threads, answer, message)
