"""How new the published data of each view is: the greatest event time published, kept for a moment.

Freshness promises are judged against it, so it must come from the publish state and not from when a job ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from featurestore.registry.state import PublishState

#: A watermark moves with a publish, at most every few seconds; a state older than this is read again.
REFRESH_S = 1.0


class Watermarks(Protocol):
    """Tells the watermark of a view."""

    def watermark_us(self, ref: str) -> int | None:
        """The greatest event time published for the view, or None when nothing was published."""
        ...


class PublishStates(Protocol):
    """The part of the state store that is read here."""

    def publish_state(self, ref: str) -> PublishState | None:
        """What the last publish of a view left."""
        ...


class PublishedWatermarks:
    """Watermarks from the publish state, read at most once in `refresh_s` for each view."""

    def __init__(
        self, states: PublishStates, refresh_s: float = REFRESH_S, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._states, self._refresh_s, self._ticks = states, refresh_s, ticks
        self._known: dict[str, tuple[float, int | None]] = {}

    def watermark_us(self, ref: str) -> int | None:
        """The watermark read at most `refresh_s` ago."""
        read_at, watermark = self._known.get(ref, (None, None))
        if read_at is None or self._ticks() - read_at >= self._refresh_s:
            return self._read(ref)
        return watermark

    def refresh(self, refs: Sequence[str]) -> None:
        """Read the watermarks of `refs` now, so that requests find them."""
        for ref in refs:
            self._read(ref)

    def _read(self, ref: str) -> int | None:
        read_at = self._ticks()
        state = self._states.publish_state(ref)
        watermark = None if state is None else state.watermark_us
        self._known[ref] = (read_at, watermark)
        return watermark
