"""What one request went through: its id, the time each stage took, the plan and the verdicts of its answer.

The request being answered is a context variable, so any module says `mark(Stage.FETCH)` in one line and need not know
who listens; without a request (the command line, a self-test) nothing happens. Knows no metric, span or log.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from enum import IntEnum
from itertools import count
from time import perf_counter_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.response import ViewVerdicts

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
#: A caller's request id longer than this is cut: it ends up in logs and headers.
REQUEST_ID_CHARS_MAX = 64

_process = os.urandom(8).hex()
_numbers = count(1)


def _name_process() -> None:
    """A forked worker is another process."""
    global _process
    _process = os.urandom(8).hex()


os.register_at_fork(after_in_child=_name_process)


class Stage(IntEnum):
    """Where the time of a request goes, in the order of the path."""

    #: Admission, and waiting for a thread.
    QUEUE = 0
    #: The request's bytes become checked columns.
    PARSE = 1
    #: Waiting for rows: the near cache and the online store.
    FETCH = 2
    #: Rows become columns and verdicts.
    DECODE = 3
    #: Columns become the reply's bytes.
    ENCODE = 4
    #: Waiting for a model, in Predict: between DECODE and ENCODE.
    MODEL = 5


class Call:
    """One request while it is answered; times are nanoseconds of `perf_counter_ns`."""

    __slots__ = (
        "code",
        "ended_ns",
        "last_ns",
        "method",
        "request_id",
        "rows",
        "service",
        "spans",
        "stages_ns",
        "started_ns",
        "traceparent",
        "views",
    )

    def __init__(self, method: str, request_id: str, traceparent: str = "") -> None:
        self.method, self.request_id, self.traceparent = method, request_id, traceparent
        self.started_ns = self.last_ns = perf_counter_ns()
        self.ended_ns = 0
        #: Time by Stage, added up; a request reads several views.
        self.stages_ns = [0, 0, 0, 0, 0, 0]
        #: (stage, from, to) of every mark, where the request is traced.
        self.spans: list[tuple[Stage, int, int]] | None = None
        #: Name of the service, once it is known to exist; empty for a list of features.
        self.service: str | None = None
        self.rows = 0
        self.views: Sequence[ViewVerdicts] = ()
        #: Name of the gRPC status code.
        self.code = "OK"

    def end(self, code: str) -> None:
        """The reply is made, or the refusal."""
        self.code, self.ended_ns = code, perf_counter_ns()


_current: ContextVar[Call | None] = ContextVar("call", default=None)

enter = _current.set
current = _current.get
"""The request being answered in this task or thread, or None."""


def mark(stage: Stage, until_ns: int = 0) -> None:
    """The time since the last mark of the current request, until then or now, was spent in `stage`."""
    call = _current.get()
    if call is not None:
        now_ns = until_ns or perf_counter_ns()
        call.stages_ns[stage] += now_ns - call.last_ns
        if call.spans is not None:
            call.spans.append((stage, call.last_ns, now_ns))
        call.last_ns = now_ns


def chose(service: str) -> None:
    """The current request asks for this service, which exists; empty for a list of features."""
    call = _current.get()
    if call is not None:
        call.service = service


def answered(rows: int, views: Sequence[ViewVerdicts]) -> None:
    """The current request is answered with these verdicts."""
    call = _current.get()
    if call is not None:
        call.rows, call.views = rows, views


def new_request_id() -> str:
    """An id that no other request has: the process, and a number."""
    return f"{_process}{next(_numbers):016x}"


def request_id_from(given: str | bytes | None) -> str:
    """The caller's id, cut, where it is plain text; otherwise a new one."""
    if isinstance(given, str) and given and given.isascii() and given.isprintable():
        return given[:REQUEST_ID_CHARS_MAX]
    return new_request_id()
