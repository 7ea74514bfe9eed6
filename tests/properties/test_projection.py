"""The projection against the double loop: what publish reads, at once or in any increments, is the state at (P, T)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import CREATED, EVENT, SCHEMA_ID, SEQUENCE
from featurestore.offline.base import OfflineStore, Pending, history_schema
from tests.fix_histories import History, arrive_all, histories, instants
from tests.fix_offline import ENGINES, PROJECT, bits, opened_engine
from tests.fix_properties import by_database
from tests.oracle import Keys, Row, answer, projection, visible_from

State = dict[Keys, tuple[Any, ...]]


@pytest.fixture(scope="module", params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path_factory.mktemp("projection")) as opened:
        yield opened


@st.composite
def publishes(draw: st.DrawFn) -> tuple[History, list[tuple[int, int]]]:
    """A history and the (position, horizon) of a few publishes; neither ever goes back, one may stand still."""
    history = draw(histories())
    last = len(history.committed)
    positions = sorted(draw(st.lists(st.integers(0, last), min_size=1, max_size=3)))
    horizons = sorted(draw(st.lists(instants(history.base), min_size=len(positions), max_size=len(positions))))
    return history, list(zip(positions, horizons, strict=True))


@by_database
@given(made=publishes(), knowledge=st.sampled_from(["created", "event"]))
def test_increments_merge_to_the_state_whatever_the_split(
    store: OfflineStore, made: tuple[History, list[tuple[int, int]]], knowledge: str
) -> None:
    history, steps = made
    arrive_all(store, history)
    rows, state = history.committed, State()
    before: tuple[int, int] | None = None

    for position, horizon in steps:
        for keys, row in _read(store, _query(history, position, horizon, since=before)).items():
            if keys not in state or row[:3] > state[keys][:3]:
                state[keys] = row
        before = position, horizon
        assert state == _as_state(projection(rows, position, horizon))

    if len(steps) == 1:
        _check_at_once(store, history, *steps[-1], knowledge)


def _check_at_once(store: OfflineStore, history: History, position: int, horizon: int, knowledge: str) -> None:
    query = _query(history, position, horizon, knowledge=knowledge)
    due = [row for row in history.committed if row.position <= position and visible_from(row, knowledge) <= horizon]
    newest = {row.keys: answer(due, row.keys, horizon, position=position, knowledge=knowledge) for row in due}

    assert _read(store, query) == _as_state({keys: row for keys, row in newest.items() if row})
    assert store.pending(query) == Pending(
        rows=len(due),
        newest_us=max((row.event for row in due), default=None),
        oldest_visible_us=min((visible_from(row, knowledge) for row in due), default=None),
    )
    entities = store.entities(query)
    assert entities.num_rows == len(newest)
    assert set(_keys(entities, history)) == set(newest)


def _query(
    history: History, position: int, horizon: int, since: tuple[int, int] | None = None, knowledge: str = "created"
) -> LatestRows:
    return LatestRows(
        project=PROJECT,
        view=history.view,
        position_to=position,
        horizon_to_us=horizon,
        position_from=since[0] if since else None,
        horizon_from_us=since[1] if since else None,
        knowledge=knowledge,
    )


def _read(store: OfflineStore, query: LatestRows) -> State:
    with store.latest(query, 3) as reader:
        table = reader.read_all()
    assert table.schema == history_schema(query.view)
    assert table.column(SCHEMA_ID).to_pylist() == [1] * table.num_rows
    times = [table.column(name).cast(pa.int64()).to_pylist() for name in (EVENT, CREATED, SEQUENCE)]
    values = [bits(table.column(name).to_pylist()) for name in query.view.fields]
    keys = [table.column(name).to_pylist() for name in query.view.join_keys]
    state = {
        tuple(column[place] for column in keys): (
            *(column[place] for column in times),
            tuple(column[place] for column in values),
        )
        for place in range(table.num_rows)
    }
    assert len(state) == table.num_rows, "an entity came twice"
    return state


def _as_state(rows: dict[Keys, Row]) -> State:
    return {
        keys: (row.event, row.created, row.sequence, tuple(bits(_stored(item)) for item in row.value))
        for keys, row in rows.items()
    }


def _stored(item: Any) -> Any:
    """A drawn value as Arrow gives it back: the elements of a list of floats are floats."""
    return [float(part) if isinstance(part, int) else part for part in item] if isinstance(item, list) else item


def _keys(table: pa.Table, history: History) -> list[Keys]:
    columns = [table.column(name).to_pylist() for name in history.view.join_keys]
    return list(zip(*columns, strict=True)) if table.num_rows else []
