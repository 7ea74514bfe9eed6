"""What a call can fail with: a class per situation, each with the server's own words.

RequestFailed
├── BadRequest          the request is wrong: a type, a length, a value, a limit
├── NotFound            no such service, view or feature
├── Refused             understood, and not served as things stand (stale rows of a service that refuses them)
├── Unauthenticated     no token, or one that is not valid
├── PermissionDenied    the caller may not read this
├── Overloaded          the server sheds load; retried when it says after what time
├── Unavailable         nobody answers, or the server stops, or the store behind it is away; retried
├── DeadlineExceeded    the time was up
└── MalformedReply      a reply came whose parts do not fit together, or that this client is too old for
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import grpc

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

REQUEST_ID = "x-request-id"
#: Trailing metadata: milliseconds after which the same call is welcome; below zero: it is not. The name is gRPC's own
#: (A6), so clients in other languages obey it by themselves once their service config allows retries.
RETRY_AFTER_MS = "grpc-retry-pushback-ms"


class RequestFailed(Exception):
    """The server refused or could not answer.

    `code` is the gRPC code, `message` says what is wrong and the way out, `request_id` is what the server's log calls
    the request, `retry_after_s` is when the server wants to see it again (negative: never; None: it did not say).
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, request_id: str = "", retry_after_s: float | None = None
    ) -> None:
        self.code, self.message, self.request_id, self.retry_after_s = code, message, request_id, retry_after_s
        super().__init__(f"{code.name}: {message}")

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return False


class BadRequest(RequestFailed):
    """The request is wrong; the message names the column or value."""


class NotFound(RequestFailed):
    """No such service, view or feature."""


class Refused(RequestFailed):
    """Understood, and not served as things stand."""


class Unauthenticated(RequestFailed):
    """No token came with the call, or one that is not valid."""


class PermissionDenied(RequestFailed):
    """The caller may not read this."""


class Overloaded(RequestFailed):
    """Too much was asked: of the server at this moment, if it says when to come back, or of one message."""

    @property
    def retryable(self) -> bool:
        """Only where the server said when; a message past a limit will not fit later either."""
        return self.retry_after_s is not None and self.retry_after_s >= 0


class Unavailable(RequestFailed):
    """Nobody answers, or the server cannot reach its store."""

    @property
    def retryable(self) -> bool:
        """Unless the server said no."""
        return self.retry_after_s is None or self.retry_after_s >= 0


class DeadlineExceeded(RequestFailed):
    """The time was up before an answer came."""


class MalformedReply(RequestFailed):
    """A reply came whose parts do not fit together; asking again will not help."""

    def __init__(self, what: str) -> None:
        message = f"the server's reply cannot be read ({what}); see that it is a featurestore, or update this client"
        super().__init__(grpc.StatusCode.INTERNAL, message)


def understood(read: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """What reads a reply, with MalformedReply for all that comes of bytes, numbers and names that do not fit."""

    @wraps(read)
    def reading(*arguments: Given.args, **options: Given.kwargs) -> Answer:
        try:
            return read(*arguments, **options)
        except (ValueError, LookupError, ArithmeticError) as error:
            raise MalformedReply(f"{type(error).__name__}: {error}") from error

    return reading


_CLASSES: dict[grpc.StatusCode, type[RequestFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.OUT_OF_RANGE: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def request_failed(error: grpc.RpcError) -> RequestFailed:
    """The failed call as an exception of ours, for both transports.

    A server that stops, or has far too many calls, cancels those that it has received and not begun; their status says
    no more than its name, where a call that is cancelled on this side says by whom.
    """
    metadata = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    code = error.code()
    not_begun = code is grpc.StatusCode.CANCELLED and error.details() == code.name
    kind = Unavailable if not_begun else _CLASSES.get(code, RequestFailed)
    return kind(code, error.details() or "", metadata.get(REQUEST_ID, ""), _seconds(metadata.get(RETRY_AFTER_MS)))


def _seconds(milliseconds: str | None) -> float | None:
    """A hint that cannot be read counts as `never`, as gRPC has it."""
    if milliseconds is None:
        return None
    try:
        return int(milliseconds) / 1000
    except ValueError:
        return -1.0
