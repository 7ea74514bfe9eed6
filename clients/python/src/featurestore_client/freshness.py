"""How old the published data is against what is promised, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb

Verdict = Literal["holds", "broken", "no promise", "never published"]

_VERDICTS: dict[int, Verdict] = {
    pb.FRESHNESS_VERDICT_HOLDS: "holds",
    pb.FRESHNESS_VERDICT_BROKEN: "broken",
    pb.FRESHNESS_VERDICT_NO_PROMISE: "no promise",
    pb.FRESHNESS_VERDICT_NEVER_PUBLISHED: "never published",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class ViewFreshness:
    """One view (name@version): its promise, and how far its newest published event lags behind the clock.

    `position` and `horizon` say how far history is published. None: nothing is promised, or nothing was published.
    """

    view: str
    verdict: Verdict
    broken: bool
    freshness: timedelta | None
    age: timedelta | None
    watermark: datetime | None
    horizon: datetime | None
    position: int | None


@dataclass(frozen=True, kw_only=True)
class FreshnessReport:
    """The views asked for, judged at one instant; `broken` counts the promises that are not kept."""

    views: tuple[ViewFreshness, ...]
    judged_at: datetime
    broken: int

    @classmethod
    def from_message(cls, message: pb.GetFreshnessResponse) -> FreshnessReport:
        """The report in a reply."""
        return cls(
            views=tuple(map(_view, message.views)), judged_at=_instant(message.judged_at_us), broken=message.broken
        )


def _view(message: pb.ViewFreshness) -> ViewFreshness:
    def given(name: str) -> int | None:
        return getattr(message, name) if message.HasField(name) else None

    spans = [None if (us := given(name)) is None else timedelta(microseconds=us) for name in ("freshness_us", "age_us")]
    times = [None if (us := given(name)) is None else _instant(us) for name in ("watermark_us", "horizon_us")]
    return ViewFreshness(
        view=message.view,
        verdict=_VERDICTS[message.verdict],
        broken=message.broken,
        freshness=spans[0],
        age=spans[1],
        watermark=times[0],
        horizon=times[1],
        position=given("position"),
    )


def _instant(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)
