"""The training set against the double loop: same rows, same values to the bit, same statuses, whatever the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.clock import TIMESTAMP_MAX_US
from featurestore.compiler import point_in_time_join
from featurestore.feature_view import FeatureView
from featurestore.offline.base import OfflineStore
from tests.fix_histories import SPAN_US, History, arrive_all, asked_keys, histories
from tests.fix_offline import (
    POSTGRES_PLANS,
    ask,
    assert_same_bits,
    key_columns,
    opened_engine,
    plan_of_postgres,
    select,
    times,
    value_columns,
)
from tests.fix_properties import by_database
from tests.oracle import Keys, Row, answer, status

Asks = Sequence[tuple[Keys, int]]


@pytest.fixture(scope="module", params=["duckdb", *(f"postgres {plan}" for plan in POSTGRES_PLANS)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfflineStore]:
    engine, _, plan = request.param.partition(" ")
    with (
        opened_engine(request, engine, tmp_path_factory.mktemp("properties")) as opened,
        pytest.MonkeyPatch.context() as patch,
    ):
        if plan:
            plan_of_postgres(patch, plan)
        yield opened


@st.composite
def questions(draw: st.DrawFn) -> tuple[History, list[tuple[Keys, int]], int, str]:
    """(history, spine, pinned position, knowledge); the spine asks before, at and after everything."""
    history = draw(histories())
    # Past the last instant only where the calendar goes on: an as_of of the year 10000 is refused.
    later = 0 if history.base + 2 * SPAN_US > TIMESTAMP_MAX_US else SPAN_US
    at = st.sampled_from(range(history.base, history.base + SPAN_US + later + 1))
    count = draw(st.sampled_from([0, 1, 12, 12]))
    asks = draw(st.lists(st.tuples(asked_keys(history), at), min_size=count, max_size=count))
    # Seventy rows take another plan than a few: the engine's as-of join changes it at 64.
    asks *= draw(st.sampled_from([1, 70 // max(len(asks), 1) + 1]))
    last = len(history.committed)
    position = draw(st.sampled_from([last, last, *range(last + 1)]))
    return history, asks, position, draw(st.sampled_from(["created", "created", "event"]))


@by_database
@given(question=questions(), few=st.booleans())
def test_the_join_gives_what_the_double_loop_gives(
    store: OfflineStore, question: tuple[History, list[tuple[Keys, int]], int, str], few: bool
) -> None:
    history, asks, position, knowledge = question
    arrive_all(store, history)
    with pytest.MonkeyPatch.context() as patch:
        # Histories are short here: the plan for few rows that ask on a long one is taken at will.
        patch.setattr(point_in_time_join, "FEW", 0 if few else point_in_time_join.FEW)
        got = ask(
            store,
            select(history.view),
            [history.view],
            _spine(history.view, asks),
            positions={history.view.ref: position},
            knowledge=knowledge,
            with_status=True,
        )
    assert_same_bits(got, _expected(history, asks, position, knowledge))


def _spine(view: FeatureView, asks: Asks) -> pa.Table:
    asked = {"row": pa.array(range(len(asks)), pa.int64()), "as_of": times([at for _, at in asks])}
    return pa.table({**asked, **key_columns(view, [keys for keys, _ in asks])})


def _expected(history: History, asks: Asks, position: int, knowledge: str) -> pa.Table:
    view, rows = history.view, history.committed
    ttl_us = None if view.ttl is None else view.ttl.microseconds
    found: list[Row | None] = [answer(rows, keys, at, position=position, knowledge=knowledge) for keys, at in asks]
    statuses = [status(row, at, ttl_us, _all_null) for row, (_, at) in zip(found, asks, strict=True)]
    alive = [row.value if row and s != "EXPIRED" else None for row, s in zip(found, statuses, strict=True)]
    ages = [row and at - row.event for row, (_, at) in zip(found, asks, strict=True)]
    return pa.table(
        {
            **{name: _spine(view, asks).column(name) for name in ("row", "as_of", *view.join_keys)},
            **value_columns(view, alive),
            f"{view.name}__status": pa.array(statuses, pa.string()),
            f"{view.name}__age_us": pa.array(ages, pa.int64()),
        }
    )


def _all_null(value: tuple[object, ...]) -> bool:
    return all(item is None for item in value)
