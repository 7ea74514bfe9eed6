"""How new the published data of each view is, against what the view promises: one rule for command, server and webhook.

Judged from data (the greatest event time published and visible), never from when a job ran: a job that runs on time
and finds nothing new breaks the promise all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from featurestore.clock import iso_text, timedelta_us
from featurestore.feature_view import FeatureView

if TYPE_CHECKING:
    from featurestore.registry.state import PublishState

Verdict = Literal["holds", "broken", "no promise", "never published"]


class PublishStates(Protocol):
    """The part of the state store that is read here."""

    def publish_state(self, ref: str) -> PublishState | None:
        """What the last publish of a view left."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewFreshness:
    """One view at one instant; times in microseconds, since the epoch or long."""

    view: str
    #: What the view declares as `freshness`; None: nothing.
    promise_us: int | None
    #: Greatest event time published and visible; None before the first row.
    watermark_us: int | None
    #: How far the watermark lies behind the clock; 0 where a clock that was set back lies behind it.
    age_us: int | None
    #: The projection of the last publish; None before it, and the position also while a repair is unfinished.
    position: int | None
    horizon_us: int | None

    @property
    def broken(self) -> bool:
        """Whether a promise is not kept; a promise about data that was never published is none that is kept."""
        return self.promise_us is not None and (self.age_us is None or self.age_us > self.promise_us)

    @property
    def verdict(self) -> Verdict:
        """The state in words."""
        if self.age_us is None:
            return "never published"
        if self.promise_us is None:
            return "no promise"
        return "broken" if self.broken else "holds"

    def document(self) -> dict[str, Any]:
        """As JSON: instants as ISO text, lengths in seconds."""
        return {
            "view": self.view,
            "verdict": self.verdict,
            "broken": self.broken,
            "freshness_s": _seconds(self.promise_us),
            "age_s": _seconds(self.age_us),
            "watermark": _instant(self.watermark_us),
            "horizon": _instant(self.horizon_us),
            "position": self.position,
        }


def view_freshness(view: FeatureView, state: PublishState | None, now_us: int) -> ViewFreshness:
    """The freshness of `view` at `now_us`, from what its last publish left."""
    watermark_us = None if state is None else state.watermark_us
    return ViewFreshness(
        view=view.ref,
        promise_us=None if view.freshness is None else timedelta_us(view.freshness),
        watermark_us=watermark_us,
        age_us=None if watermark_us is None else max(now_us - watermark_us, 0),
        position=None if state is None or state.repairing else state.position,
        horizon_us=None if state is None else state.horizon_us,
    )


def freshness_of(views: Iterable[FeatureView], states: PublishStates, now_us: int) -> list[ViewFreshness]:
    """The freshness of each view, in their order; one small read of the state store each."""
    return [view_freshness(view, states.publish_state(view.ref), now_us) for view in views]


def _seconds(us: int | None) -> float | None:
    return None if us is None else us / 1_000_000


def _instant(us: int | None) -> str | None:
    return None if us is None else iso_text(us)
