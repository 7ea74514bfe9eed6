"""The door in front of gRPC: an interceptor that knows the caller before any method runs.

Which service a request names is known only once it is parsed, so methods ask the principal themselves. A method that
is not listed here as asking is denied to everybody once [auth] is on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from featurestore.errors import AccessError, NotFoundError, PermissionDenied
from featurestore.loopback import is_loopback
from featurestore.settings_access import AuthSettings, TlsSettings
from serving.access.door import Door
from serving.access.principal import ANYONE, Principal, answering
from serving.status_codes import Context, status_code

log = logging.getLogger(__name__)

#: Methods that ask `caller()` before they tell or do anything.
ASKING = frozenset({"GetOnlineFeatures", "DescribeService", "GetFreshness", "Predict", "Push"})
_SERVICE = "featurestore.serving.v1.FeatureServing"


class DoorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC carries no types
    """Lets nobody pass whom the door does not know. Health is open to all; reflection is for operators.

    Stands inside the ErrorInterceptor, which gives its errors their codes.
    """

    def __init__(self, door: Door) -> None:
        self._door = door

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler behind the door."""
        handler = await continuation(handler_call_details)
        _, service, method = handler_call_details.method.split("/", 2)
        if handler is None or service == health.SERVICE_NAME:
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler.unary_unary, service, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler.stream_stream, service, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        # No other kinds of methods are served; None makes one that comes unknown, rather than unguarded.
        return None

    def _unary(self, answer: Callable[[Any, Context], Awaitable[Any]], service: str, method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            principal = await self._admitted(context, service, method)
            with answering(principal):
                try:
                    return await answer(request, context)
                except NotFoundError as error:
                    raise principal.discreet(error) from None

        return call

    def _stream(self, answer: Callable[[Any, Context], AsyncIterator[Any]], service: str, method: str) -> Any:
        async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
            try:
                await self._admitted(context, service, method)
            except AccessError as error:
                # The ErrorInterceptor knows unary methods only.
                await context.abort(status_code(error), str(error))
            async for reply in answer(requests, context):
                yield reply

        return call

    async def _admitted(self, context: Context, service: str, method: str) -> Principal:
        if not self._door.locked:
            return ANYONE
        headers = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        principal = await self._door.authenticate(headers, _names(context))
        if service == _SERVICE and method in ASKING:
            return principal
        if service == reflection.SERVICE_NAME:
            principal.require_operate()
            return principal
        raise PermissionDenied(f"nobody may call {service}/{method} while [auth] is on; serve it without [auth]")


def _names(context: Context) -> list[str]:
    """The names in the client's certificate, which gRPC has verified: those of its subject only if it has no others."""
    told = context.auth_context()
    names = told.get("x509_subject_alternative_name") or told.get("x509_common_name") or []
    decoded = (name.decode("utf-8", "replace") for name in names)
    return [name for name in decoded if name.isprintable()]


def warn_if_exposed(host: str, auth: AuthSettings, tls: TlsSettings, setting: str) -> None:
    """Say what strangers can do at an address that other machines may reach; `setting` names it."""
    if is_loopback(host):
        return
    if auth.grants is None:
        log.warning(
            "listening on %s without [auth]: whoever reaches this port may read everything and push rows%s; set "
            "auth.grants, or %s to 127.0.0.1",
            host,
            " (it must show a certificate)" if tls.client_ca else "",
            setting,
        )
    if tls.cert is None:
        log.warning(
            "listening on %s without [tls]: features%s cross the network readable to all; set tls.cert and tls.key, "
            "unless something in front of this port speaks TLS",
            host,
            " and bearer tokens" if auth.grants is not None else "",
        )
