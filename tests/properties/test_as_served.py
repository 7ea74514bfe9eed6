"""As-served knowledge against a replay: what each publish left online, kept in a dictionary, is what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.offline.base import OfflineStore
from featurestore.offline.served import PublishLog
from tests.fix_histories import SPAN_US, History, arrive_all, asked_keys, histories
from tests.fix_offline import ENGINES, ask, assert_same_bits, key_columns, opened_engine, select, times, value_columns
from tests.fix_properties import by_replay
from tests.oracle import Keys, projection, status

#: (position, horizon, started, acknowledged)
Publish = tuple[int, int, int, int]


@pytest.fixture(scope="module", params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path_factory.mktemp("served")) as opened:
        yield opened


@st.composite
def replays(draw: st.DrawFn) -> tuple[History, list[Publish], list[tuple[Keys, int]]]:
    """A history, its publishes (a repair may set the horizon back), and who asks when."""
    history = draw(histories())
    instant = st.integers(history.base, history.base + SPAN_US)
    count = draw(st.integers(0, 5))
    positions = sorted(draw(st.lists(st.integers(0, len(history.committed)), min_size=count, max_size=count)))
    horizons = draw(st.lists(instant, min_size=count, max_size=count))
    if draw(st.sampled_from([True, True, False])):
        horizons.sort()
    moments = sorted(draw(st.lists(instant, min_size=2 * count, max_size=2 * count)))
    log = list(zip(positions, horizons, moments[::2], moments[1::2], strict=True))
    asks = draw(st.lists(st.tuples(asked_keys(history), instant), max_size=8))
    return history, log, asks * draw(st.sampled_from([1, 70]))


@by_replay
@given(replay=replays())
def test_what_was_online_is_what_is_answered(
    store: OfflineStore, replay: tuple[History, list[Publish], list[tuple[Keys, int]]]
) -> None:
    history, log, asks = replay
    arrive_all(store, history)
    view = history.view
    spine = {"row": pa.array(range(len(asks)), pa.int64()), "as_of": times([at for _, at in asks])}

    got = ask(
        store,
        select(view),
        [view],
        pa.table({**spine, **key_columns(view, [keys for keys, _ in asks])}),
        knowledge="as_served",
        publishes={view.ref: PublishLog.of(log)},
        with_status=True,
    )

    assert_same_bits(got, _replayed(history, log, asks, got))
    assert got.column("leg__uncertain").to_pylist() == [
        any(started <= at <= acknowledged for _, _, started, acknowledged in log) for _, at in asks
    ]


def _replayed(history: History, log: list[Publish], asks: list[tuple[Keys, int]], got: pa.Table) -> pa.Table:
    """`got` with the answers of the replay in place of its own."""
    view = history.view
    ttl_us = None if view.ttl is None else view.ttl.microseconds
    rows, statuses = [], []
    for keys, at in asks:
        done = [publish for publish in log if publish[3] <= at]
        online = projection(history.committed, done[-1][0], done[-1][1]) if done else {}
        rows.append(online.get(keys))
        statuses.append(status(rows[-1], at, ttl_us, lambda value: all(item is None for item in value)))
    alive = [row.value if row and found != "EXPIRED" else None for row, found in zip(rows, statuses, strict=True)]
    expected: dict[str, Any] = dict(zip(got.column_names, got.columns, strict=True))
    expected |= value_columns(view, alive) | {"leg__status": pa.array(statuses, pa.string())}
    return pa.table(expected)
