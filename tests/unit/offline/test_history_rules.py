"""What is expected of a history as a whole: every engine gives the verdict that counting by hand gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import FeatureView, Int64, Volume
from featurestore.compiler.history_rules import HistoryStretch
from featurestore.offline.base import OfflineStore
from featurestore.offline.history_rules import (
    GapVerdict,
    OrderVerdict,
    VolumeVerdict,
    entities_known,
    gap_verdict,
    order_verdict,
    volume_verdict,
)
from tests.fix_offline import ENGINES, append, make_view, opened_engine
from tests.fix_properties import SHARED_FIXTURES
from tests.oracle import Row

WINDOW_US = 10


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path) as opened:
        yield opened


def filled(store: OfflineStore, events: list[int], **rules: object) -> FeatureView:
    """A fresh history with a row at each event time, each of an entity of its own."""
    view = replace(make_view("text", {"delay": Int64}), **rules)  # type: ignore[arg-type]
    store.drop_history(view.ref)
    store.ensure_history(view)
    rows = [
        Row(keys=(f"k{n}",), event=event, created=event, sequence=n, value=(n,)) for n, event in enumerate(events, 1)
    ]
    if rows:
        append(store, view, rows)
    return view


def whole(view: FeatureView, position: int = 1000) -> HistoryStretch:
    return HistoryStretch(view=view, position=position)


def test_windows_with_too_few_and_too_many_rows_are_counted_and_the_first_is_named(store: OfflineStore) -> None:
    # Windows of 10 us: [0] 1 row, [10] 2, [20] none, [30] 3, [40] 1.
    volume = Volume(at_least=2, at_most=2, per=timedelta(microseconds=WINDOW_US))
    view = filled(store, [0, 10, 11, 30, 31, 39, 40], volume=volume)
    assert volume_verdict(store, whole(view)) == VolumeVerdict(
        rows=7, windows=5, too_few=1, too_many=1, fewest=0, most=3, first_broken_us=20
    )
    upper = replace(view, volume=replace(volume, at_least=None))
    assert volume_verdict(store, whole(upper)).first_broken_us == 30
    early = HistoryStretch(view=view, position=1000, start_us=0, end_us=30)
    assert volume_verdict(store, early) == VolumeVerdict(
        rows=3, windows=2, too_few=0, too_many=0, fewest=None, most=2, first_broken_us=None
    )
    assert volume_verdict(store, whole(view, position=3)).rows == 3


def test_an_empty_history_breaks_no_expectation(store: OfflineStore) -> None:
    view = filled(store, [], volume=Volume(at_least=9, per=timedelta(days=1)), largest_gap=timedelta(1))
    assert volume_verdict(store, whole(view)) == VolumeVerdict(
        rows=0, windows=0, too_few=0, too_many=0, fewest=None, most=None, first_broken_us=None
    )
    assert gap_verdict(store, whole(view)) == GapVerdict(gaps=0, largest_us=None, from_us=None)
    assert order_verdict(store, whole(view)) == OrderVerdict(rows=0, corrected=0, repeated=0)


def test_gaps_longer_than_declared_are_counted_and_the_first_of_the_largest_is_named(store: OfflineStore) -> None:
    view = filled(store, [-20, 0, 5, 5, 12, 32], largest_gap=timedelta(microseconds=7))
    assert gap_verdict(store, whole(view)) == GapVerdict(gaps=2, largest_us=20, from_us=-20)
    exact = replace(view, largest_gap=timedelta(microseconds=20))
    assert gap_verdict(store, whole(exact)).holds


def test_corrections_are_told_apart_from_repeated_order_keys(store: OfflineStore) -> None:
    view = filled(store, [1, 2])
    append(store, view, [Row(keys=("k1",), event=1, created=1, sequence=9, value=(5,))])
    assert order_verdict(store, whole(view)) == OrderVerdict(rows=3, corrected=1, repeated=0)
    # A sequence given twice, which no writer of ours does.
    append(store, view, [Row(keys=("k2",), event=2, created=2, sequence=2, value=(6,))])
    assert order_verdict(store, whole(view)) == OrderVerdict(rows=4, corrected=2, repeated=1)


def test_entities_of_a_history_are_known_whenever_their_rows_are(store: OfflineStore) -> None:
    view = filled(store, [1, 10**12])
    (key,) = view.join_keys
    asked = pa.table({key: pa.array(["k2", "nobody", "k1", "k2", ""])})
    assert entities_known(store, view, asked).tolist() == [True, False, True, True, False]


@given(
    events=st.lists(st.integers(-60, 60), max_size=25),
    least=st.none() | st.integers(0, 3),
    most=st.integers(0, 3),
    per=st.integers(1, 40),
)
@settings(max_examples=30, suppress_health_check=SHARED_FIXTURES)
def test_volume_and_gaps_agree_with_counting_by_hand(
    store: OfflineStore, events: list[int], least: int | None, most: int, per: int
) -> None:
    volume = Volume(at_least=least, at_most=most, per=timedelta(microseconds=per))
    view = filled(store, events, volume=volume, largest_gap=timedelta(microseconds=per))
    counts = Counter(event // per for event in events)
    windows = range(min(counts), max(counts) + 1) if counts else range(0)
    few = [w for w in windows[1:-1] if counts[w] < (least or 0)]
    many = [w for w in windows if counts[w] > most]
    verdict = volume_verdict(store, whole(view))
    assert (verdict.rows, verdict.windows) == (len(events), len(windows))
    assert (verdict.too_few, verdict.too_many) == (len(few), len(many))
    assert verdict.fewest == min((counts[w] for w in windows[1:-1]), default=None)
    assert verdict.first_broken_us == (min(few + many) * per if few or many else None)
    times = sorted(set(events))
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    found = gap_verdict(store, whole(view))
    assert (found.gaps, found.largest_us) == (sum(gap > per for gap in gaps), max(gaps, default=None))
