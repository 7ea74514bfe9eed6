"""Errors as gRPC status codes: one table, one interceptor, which is the only place that catches everything.

A client gets the message of an error that is its own to mend, and never a traceback; defects are logged with the
request id that the client is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from featurestore.errors import (
    ContractViolation,
    FeatureStoreError,
    InputError,
    IssuerUnreachable,
    ModelFailed,
    ModelOutOfMemory,
    ModelUnavailable,
    NotFoundError,
    PermissionDenied,
    ServingError,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnreachable,
    Unauthenticated,
)
from featurestore_client.errors import RETRY_AFTER_MS
from serving.admission import Overloaded
from serving.logs import LineBudget
from serving.observing import REQUEST_ID, current, request_id_from

log = logging.getLogger(__name__)

#: gRPC sends messages in a header, percent-encoded; 8 KiB is all that peers accept of headers.
MESSAGE_CHARS_MAX = 1_000

CODES: dict[type[BaseException], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ContractViolation: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServingError: grpc.StatusCode.FAILED_PRECONDITION,
    StoreUnreachable: grpc.StatusCode.UNAVAILABLE,
    StoreBusy: grpc.StatusCode.UNAVAILABLE,
    StoreFull: grpc.StatusCode.UNAVAILABLE,
    StoreError: grpc.StatusCode.INTERNAL,
    FeatureStoreError: grpc.StatusCode.FAILED_PRECONDITION,
    TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    IssuerUnreachable: grpc.StatusCode.UNAVAILABLE,
    ModelUnavailable: grpc.StatusCode.UNAVAILABLE,
    ModelOutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelFailed: grpc.StatusCode.UNKNOWN,
}
"""Error class -> code; a class that does not stand here has the code of its nearest ancestor, or INTERNAL."""

HTTP_CODES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    # Elsewhere 500 too; here it is what a model does, and 500 is for defects of ours.
    grpc.StatusCode.UNKNOWN: 502,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""The same code over REST."""

#: Lines about refused requests: a broken client, or an overload, must not fill the log.
_refusals = LineBudget()

Context: TypeAlias = grpc.aio.ServicerContext
UnaryMethod = Callable[[Any, Context], Awaitable[Any]]


def status_code(error: BaseException) -> grpc.StatusCode:
    """The code a client gets for an error."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC carries no types
    """Turns every error of a unary method into its code and a message."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler with our error handling around it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            guarded(handler.unary_unary, handler_call_details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def guarded(method: UnaryMethod, name: str) -> UnaryMethod:
    """`method`, with errors reported by the table."""

    async def call(request: Any, context: Context) -> Any:
        try:
            return await method(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the one place; whatever it is, the client gets a code
            return await _report(error, name, context)

    return call


async def _report(error: Exception, method: str, context: Context) -> None:
    request_id = request_id_of(context)
    code, message = told(error, method, request_id)
    trailing = [(REQUEST_ID, request_id)]
    if isinstance(error, Overloaded):
        trailing.append((RETRY_AFTER_MS, str(error.retry_after_ms)))
    await context.abort(code, message[:MESSAGE_CHARS_MAX], tuple(trailing))


def told(error: Exception, method: str, request_id: str) -> tuple[grpc.StatusCode, str]:
    """The code and the words that the client gets for an error, which is logged here."""
    code = status_code(error)
    if code is grpc.StatusCode.INTERNAL:
        log.error("request %s: %s failed", request_id, method, exc_info=error)
        return code, f"a defect of the server; it is in its log under request id {request_id}"
    says = str(error) or "the deadline passed before the answer was there"
    if (more := _refusals.take()) is not None:
        log.info("request %s: %s refused with %s: %s%s", request_id, method, code.name, says, more)
    return code, says


def request_id_of(context: Context) -> str:
    """The id of the request being answered."""
    if call := current():
        return call.request_id
    return request_id_from(dict(context.invocation_metadata() or ()).get(REQUEST_ID))
