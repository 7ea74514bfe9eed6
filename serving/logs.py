"""Log lines of the serving process: plain text or JSON, each with the id of the request it belongs to.

No line holds keys, values, tokens or metadata: what is logged about a request are names, counts, codes and times.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from serving.observing import Call, Stage, current

log = logging.getLogger(__name__)

#: Lines a second about single requests; a broken client, or a slow store, must not cost the others their time.
REQUEST_LINES_PER_S = 10


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """How lines look, and which are written; requests slower than `slow_s` get one (None: never)."""

    format: Literal["text", "json"] = "text"
    level: str = "info"
    slow_s: float | None = 1.0


def configure(options: LogOptions) -> None:
    """Write all log lines of this process to stderr so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if options.format == "json" else PlainLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(options.level.upper())


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message; request_id, facts and traceback where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := current():
            line["request_id"] = call.request_id
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """`time LEVEL logger [request id] message`, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        call = current()
        request = f" [{call.request_id}]" if call else ""
        text = f"{_time(record)} {record.levelname} {record.name}{request} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class LineBudget:
    """At most `per_s` lines a second; the others are counted, and the next line tells how many there were."""

    def __init__(self, per_s: int = REQUEST_LINES_PER_S, ticks: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._ticks = per_s, ticks
        self._lock = threading.Lock()
        self._second, self._written, self._suppressed = -1, 0, 0

    def take(self) -> str | None:
        """None when the line must not be written; otherwise what to say about those that were not."""
        with self._lock:
            second = int(self._ticks())
            if second != self._second:
                self._second, self._written = second, 0
            if self._written >= self._per_s:
                self._suppressed += 1
                return None
            self._written += 1
            suppressed, self._suppressed = self._suppressed, 0
            return f" ({suppressed} more like it were not logged)" if suppressed else ""


class SlowRequests:
    """Logs requests that took longer than a bound, with where their time went."""

    def __init__(self, slow_s: float) -> None:
        self._slow_ns = int(slow_s * 1e9)
        self._budget = LineBudget()

    def look_at(self, call: Call) -> None:
        """Log the request if it was slow."""
        took_ns = call.ended_ns - call.started_ns
        if took_ns <= self._slow_ns:
            return
        more = self._budget.take()
        if more is None:
            return
        stages = {stage.name.lower(): call.stages_ns[stage] / 1e9 for stage in Stage if call.stages_ns[stage]}
        facts = {
            "method": call.method,
            "service": call.service or "",
            "code": call.code,
            "rows": call.rows,
            "seconds": took_ns / 1e9,
            "stages": stages,
        }
        listed = ", ".join(f"{name} {seconds:.4f} s" for name, seconds in stages.items())
        log.warning(
            "slow request: %s of %r took %.4f s (%s), %d rows, %s%s",
            call.method,
            call.service or "",
            took_ns / 1e9,
            listed,
            call.rows,
            call.code,
            more,
            extra={"facts": facts},
        )
