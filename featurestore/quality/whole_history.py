"""Rules of a history as a whole, which the store computes: order keys, rows per window of time, gaps."""

from __future__ import annotations

from collections.abc import Iterator

from featurestore.clock import duration_text, from_us
from featurestore.compiler.history_rules import HistoryStretch
from featurestore.offline.base import OfflineStore
from featurestore.offline.history_rules import gap_verdict, order_verdict, volume_verdict
from featurestore.quality.forms import LARGEST_GAP, ORDER, VOLUME, history_expected
from featurestore.quality.tally import Example, Tally


def tally_history(offline: OfflineStore, stretch: HistoryStretch) -> Iterator[Tally]:
    """The rules that the view declares, and its order, over a stretch of its history."""
    view = stretch.view
    order = order_verdict(offline, stretch)
    yield Tally(
        expected=history_expected(view, ORDER, "several rows of one entity have the same times and sequence"),
        rows=order.rows,
        breaches=order.repeated,
    )
    if view.volume is not None:
        volume = volume_verdict(offline, stretch)
        limits = f"at least {view.volume.at_least}" if view.volume.at_most is None else f"at most {view.volume.at_most}"
        if view.volume.at_least is not None and view.volume.at_most is not None:
            limits = f"{view.volume.at_least} to {view.volume.at_most}"
        yield Tally(
            expected=history_expected(
                view, VOLUME, f"a window of {duration_text(view.volume.per)} has not {limits} rows"
            ),
            rows=volume.windows,
            breaches=volume.too_few + volume.too_many,
            examples=_at(volume.first_broken_us, fewest=volume.fewest, most=volume.most),
        )
    if view.largest_gap is not None:
        gap = gap_verdict(offline, stretch)
        yield Tally(
            expected=history_expected(
                view, LARGEST_GAP, f"no row comes for longer than {duration_text(view.largest_gap)}"
            ),
            rows=order.rows,
            breaches=gap.gaps,
            examples=[] if gap.holds else _at(gap.from_us, largest_s=(gap.largest_us or 0) / 1_000_000),
        )


def _at(us: int | None, **figures: float | None) -> list[Example]:
    return [] if us is None else [Example(key={}, event_timestamp=from_us(us), values=figures)]
