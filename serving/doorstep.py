"""Where calls meet the server first: full rooms turn them away before they are read, handlers are made once a method.

gRPC asks its interceptors for a handler call by call, and reads the message of a unary call before it runs the handler.
A handler of streams is run at once, so a refusal is one: it costs the loop two thirds of what it costs further in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio

from serving.admission import Admission
from serving.status_codes import Context, guarded
from serving.telemetry import Telemetry, observed


class Doorstep(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC carries no types
    """The only interceptor that gRPC knows; those `within` see each method once, not each call.

    `rooms` are the admissions by the path of the method that asks there. One that is full answers by itself.
    """

    def __init__(
        self, within: Sequence[grpc.aio.ServerInterceptor], rooms: Mapping[str, Admission], telemetry: Telemetry
    ) -> None:
        self._within = within
        self._rooms = {path: (room, _refusal(path, room, telemetry)) for path, room in rooms.items()}
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler behind the interceptors, or the refusal of its room."""
        path = handler_call_details.method
        room, refusal = self._rooms.get(path, (None, None))
        if room is not None and room.full:
            return refusal
        handler = self._handlers.get(path)
        if handler is None:
            for interceptor in reversed(self._within):
                continuation = partial(interceptor.intercept_service, continuation)
            handler = await continuation(handler_call_details)
            if handler is not None:  # names that nobody serves are without number
                self._handlers[path] = handler
        return handler


def _refusal(path: str, room: Admission, telemetry: Telemetry) -> grpc.RpcMethodHandler:
    async def refuse(_: Any, context: Context) -> None:
        raise room.turned_away()

    return grpc.stream_stream_rpc_method_handler(observed(guarded(refuse, path), path.rpartition("/")[2], telemetry))
