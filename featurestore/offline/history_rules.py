"""Verdicts on the expectations of a history as a whole, computed in the store: volume, gaps, total order.

And which entities a history knows, for references.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from featurestore.compiler import compile, names
from featurestore.compiler.history_rules import HistoryStretch
from featurestore.feature_view import FeatureView
from featurestore.offline.base import Mask, OfflineStore, Question


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeVerdict:
    """Rows per window. `too_few` and `too_many` count windows that break the view's volume; the first of these begins
    at `first_broken_us`. `fewest` leaves out the first and the last window, which may be cut short.
    """

    rows: int
    windows: int
    too_few: int
    too_many: int
    fewest: int | None
    most: int | None
    first_broken_us: int | None

    @property
    def holds(self) -> bool:
        """Whether no window breaks the rule."""
        return self.too_few == 0 and self.too_many == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GapVerdict:
    """Time without any row of the view: `gaps` are longer than declared; the largest of all begins at `from_us`."""

    gaps: int
    largest_us: int | None
    from_us: int | None

    @property
    def holds(self) -> bool:
        """Whether no gap breaks the rule."""
        return self.gaps == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderVerdict:
    """`repeated` order keys are held by several rows of one entity; `corrected` rows were replaced, as they may be."""

    rows: int
    corrected: int
    repeated: int

    @property
    def holds(self) -> bool:
        """Whether the order of every entity's rows is total."""
        return self.repeated == 0


def volume_verdict(store: OfflineStore, stretch: HistoryStretch) -> VolumeVerdict:
    """Judge `view.volume` (which must be declared) over a stretch of its history."""
    rule = _asked(store, stretch, VolumeVerdict, compile.row_volume)
    return VolumeVerdict(**rule)


def gap_verdict(store: OfflineStore, stretch: HistoryStretch) -> GapVerdict:
    """Judge `view.largest_gap` (which must be declared) over a stretch of its history."""
    rule = _asked(store, stretch, GapVerdict, compile.event_gaps)
    return GapVerdict(**rule)


def order_verdict(store: OfflineStore, stretch: HistoryStretch) -> OrderVerdict:
    """Judge the uniqueness of the order key (entity, event, created, sequence), which every history promises."""
    rule = _asked(store, stretch, OrderVerdict, compile.order_keys)
    return OrderVerdict(**rule)


def _asked(store: OfflineStore, stretch: HistoryStretch, verdict: type, question: Question) -> dict[str, int]:
    answer = pa.schema([(name, pa.int64()) for name in verdict.__annotations__])
    (row,) = store.ask(stretch.view, partial(question, stretch=stretch), answer).to_pylist()
    return row


def entities_known(store: OfflineStore, view: FeatureView, keys: pa.Table) -> Mask:
    """Of rows of join keys of `view`, none null: which are entities of its history."""
    asked = keys.append_column(names.ROW, pa.array(np.arange(keys.num_rows)))
    found = store.ask(
        view,
        partial(compile.entities_among, view=view),
        pa.schema([(names.ROW, pa.int64())]),
        asked,
    )
    known = np.zeros(keys.num_rows, dtype=bool)
    known[found.column(names.ROW).to_numpy()] = True
    return known
