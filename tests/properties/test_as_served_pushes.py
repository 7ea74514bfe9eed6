"""As-served knowledge of pushes against a replay: a dictionary that publishes replace and pushes write into.

A push takes a block of sequences; its rows become history at any later position, as those of an inbox do.
"""

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
from tests.oracle import Keys, Row, order, projection, status, visible_from

#: (position, horizon, started, acknowledged), of a push with its first and last sequence.
Entry = tuple[int, ...]
Asks = list[tuple[Keys, int]]


@pytest.fixture(scope="module", params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path_factory.mktemp("pushed")) as opened:
        yield opened


@st.composite
def replays(draw: st.DrawFn) -> tuple[History, list[Entry], Asks]:
    """A history, a log of publishes and pushes of blocks of its sequences, and who asks when."""
    history = draw(histories())
    instant = st.integers(history.base, history.base + SPAN_US)
    last = max((row.sequence for row in history.committed), default=1)
    cuts = sorted(draw(st.sets(st.integers(1, last + 1), min_size=2, max_size=6)) | {1, last + 1})
    blocks = draw(st.permutations(list(zip(cuts[:-1], (cut - 1 for cut in cuts[1:]), strict=True))))
    kinds = draw(st.lists(st.sampled_from(["publish", "push", "push", "cut short"]), max_size=7))
    moments = sorted(draw(st.lists(instant, min_size=2 * len(kinds), max_size=2 * len(kinds))))
    position, log = 0, list[Entry]()
    for number, kind in enumerate(kinds):
        started, acknowledged = moments[2 * number], moments[2 * number + 1]
        if kind == "publish":
            position = draw(st.integers(position, len(history.committed)))
            log.append((position, started, started, acknowledged))
        elif blocks:
            first, end = blocks.pop()
            log.append((0, started, started, acknowledged, first, end if kind == "push" else first - 1))
    asks = draw(st.lists(st.tuples(asked_keys(history), instant), max_size=8))
    return history, log, asks * draw(st.sampled_from([1, 70]))


@by_replay
@given(replay=replays())
def test_what_pushes_and_publishes_brought_online_is_what_is_answered(
    store: OfflineStore, replay: tuple[History, list[Entry], Asks]
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
        publishes={view.ref: PublishLog.of(PublishLog.of(log).document())},
        with_status=True,
    )

    assert_same_bits(got, _replayed(history, log, asks, got))
    assert got.column("leg__uncertain").to_pylist() == [
        any(entry[2] <= at <= entry[3] for entry in log) for _, at in asks
    ]


def _online(history: History, log: list[Entry], at: int) -> dict[Keys, Row]:
    """What is online at an instant: every entry acknowledged by then, one after the other, the greater row stays."""
    online: dict[Keys, Row] = {}
    done = max((number for number, entry in enumerate(log, 1) if entry[3] <= at), default=0)
    for entry in log[:done]:
        if len(entry) == 4:
            brought = list(projection(history.committed, entry[0], entry[1]).values())
        else:
            pushed = [row for row in history.committed if entry[4] <= row.sequence <= entry[5]]
            brought = [row for row in pushed if visible_from(row, "created") <= entry[1]]
        for row in brought:
            if None not in row.keys and (row.keys not in online or order(row) > order(online[row.keys])):
                online[row.keys] = row
    return online


def _replayed(history: History, log: list[Entry], asks: Asks, got: pa.Table) -> pa.Table:
    """`got` with the answers of the replay in place of its own."""
    view = history.view
    ttl_us = None if view.ttl is None else view.ttl.microseconds
    rows = [_online(history, log, at).get(keys) for keys, at in asks]
    statuses = [
        status(row, at, ttl_us, lambda value: all(item is None for item in value))
        for row, (_, at) in zip(rows, asks, strict=True)
    ]
    alive = [row.value if row and found != "EXPIRED" else None for row, found in zip(rows, statuses, strict=True)]
    expected: dict[str, Any] = dict(zip(got.column_names, got.columns, strict=True))
    expected |= value_columns(view, alive) | {"leg__status": pa.array(statuses, pa.string())}
    return pa.table(expected)
