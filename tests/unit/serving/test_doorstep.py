"""Before a call is read: a full room refuses it by its name alone, and interceptors see each method once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from featurestore_client.errors import RETRY_AFTER_MS
from serving.admission import Admission
from serving.doorstep import Doorstep
from serving.metrics import REQUESTS, UNKNOWN
from serving.observing import REQUEST_ID
from serving.telemetry import Telemetry

LOOK, OTHER, NOBODYS = "/test.Shop/Look", "/test.Shop/Other", "/test.Shop/Nobodys"


class Counting(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC carries no types
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        self.asked.append(handler_call_details.method)
        return await continuation(handler_call_details)


class Shop(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC carries no types
    """Answers with what it was sent."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return None if details.method == NOBODYS else grpc.unary_unary_rpc_method_handler(self._echo)

    async def _echo(self, message: bytes, context: Any) -> bytes:
        return message


def at_the_door(
    room: Admission, within: Counting, telemetry: Telemetry, visit: Callable[[grpc.aio.Channel], Awaitable[None]]
) -> None:
    """Run `visit` on a channel to a server with this doorstep."""

    async def run() -> None:
        server = grpc.aio.server(interceptors=[Doorstep([within], {LOOK: room}, telemetry)])
        server.add_generic_rpc_handlers((Shop(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await visit(channel)
        await server.stop(1)

    asyncio.run(run())


def test_interceptors_see_a_method_once_and_names_that_nobody_serves_each_time() -> None:
    counting = Counting()

    async def visit(channel: grpc.aio.Channel) -> None:
        for message in (b"one", b"two", b"three"):
            assert await channel.unary_unary(LOOK)(message) == message
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(NOBODYS)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    at_the_door(Admission(1, 0), counting, Telemetry(), visit)
    assert counting.asked == [LOOK, NOBODYS, NOBODYS]


def test_a_full_room_refuses_a_call_whose_message_has_not_come() -> None:
    room, telemetry = Admission(1, 0), Telemetry()

    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b"too late"

    async def visit(channel: grpc.aio.Channel) -> None:
        entered = await room.enter()
        call = channel.stream_unary(LOOK)(never(), metadata=((REQUEST_ID, "mine"),), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "serving.queue_max" in (caught.value.details() or "")
        told = dict(caught.value.trailing_metadata())
        assert (told[REQUEST_ID], int(told[RETRY_AFTER_MS]) > 0) == ("mine", True)

        assert await channel.unary_unary(OTHER)(b"has no room to fill") == b"has no room to fill"
        room.leave(entered)
        assert await channel.unary_unary(LOOK)(b"welcome") == b"welcome"

    at_the_door(room, Counting(), telemetry, visit)
    assert room.shed == 1
    counted = telemetry.metrics.snapshot().values[REQUESTS.name]
    assert counted == {("Look", UNKNOWN, "RESOURCE_EXHAUSTED"): 1}
