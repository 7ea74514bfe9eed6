"""The verdicts of a reply in protobuf's wire format: as with columns, what every reply has in common is made once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.plan import ServicePlan
from serving.response import OnlineResponse
from serving.wire_format import VARINT, before, tag, varint

#: Numbers of rows for which the bytes around verdicts are kept.
ROW_COUNTS_MAX = 256

_STATUS_BYTES, _EVENT_BYTES = 1, 8
_SERVED_AT = tag(pb.GetOnlineFeaturesResponse.SERVED_AT_US_FIELD_NUMBER, VARINT)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands before the verdicts of all views, before each one's statuses, and before its event times."""

    before_all: bytes
    before_statuses: list[bytes]
    before_events: bytes


class ReplyVerdicts:
    """Writes what a reply says of its rows: one plan's."""

    def __init__(self, plan: ServicePlan) -> None:
        self._refs = [view.ref for view in plan.views]
        self._frame = lru_cache(maxsize=ROW_COUNTS_MAX)(self._made_frame)
        # Replies that were made together were made at one time.
        self._served_at = lru_cache(maxsize=1)(lambda served_at_us: _SERVED_AT + varint(served_at_us))

    def pieces(self, response: OnlineResponse) -> list[bytes]:
        """The bytes of everything but the features, to be joined."""
        if response.degraded_rows:  # there are reasons to tell
            return [_whole(response)]
        frame = self._frame(response.rows)
        pieces = [frame.before_all, self._served_at(response.served_at_us)]
        for head, view in zip(frame.before_statuses, response.views, strict=True):
            pieces += (head, view.statuses.tobytes(), frame.before_events, view.event_us.tobytes())
        return pieces

    def _made_frame(self, rows: int) -> _Frame:
        kind = pb.ViewResult
        statuses = before(kind.STATUSES_FIELD_NUMBER, rows * _STATUS_BYTES)
        events = before(kind.EVENT_TIMESTAMPS_FIELD_NUMBER, rows * _EVENT_BYTES)
        heads = []
        for ref in self._refs:
            name = kind(view=ref).SerializeToString()
            size = len(name) + len(statuses) + len(events) + rows * (_STATUS_BYTES + _EVENT_BYTES)
            heads.append(before(pb.GetOnlineFeaturesResponse.VIEWS_FIELD_NUMBER, size) + name + statuses)
        return _Frame(pb.GetOnlineFeaturesResponse(rows=rows).SerializeToString(), heads, events)


def _whole(response: OnlineResponse) -> bytes:
    reply = pb.GetOnlineFeaturesResponse(
        rows=response.rows,
        served_at_us=response.served_at_us,
        degraded_rows=response.degraded_rows,
        views=view_results(response),
    )
    return reply.SerializeToString()


def view_results(response: OnlineResponse) -> list[pb.ViewResult]:
    """The verdicts, a view each."""
    return [
        pb.ViewResult(
            view=view.ref,
            statuses=view.statuses.tobytes(),
            stale_reasons=view.reasons.tobytes() if view.reasons.any() else b"",
            event_timestamps=view.event_us.tobytes(),
        )
        for view in response.views
    ]
