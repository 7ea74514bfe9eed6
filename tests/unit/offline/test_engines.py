"""Same history, same questions: the engines give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import FeatureView, Float64, Int64, String
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import CREATED, EVENT, SEQUENCE
from featurestore.digest import content_digest
from featurestore.offline.base import ArrivedRows, OfflineStore
from tests.fix_offline import (
    ENGINES,
    KEYS,
    POSTGRES_PLANS,
    PROJECT,
    VALUES,
    append,
    ask,
    history_table,
    key_columns,
    make_view,
    opened_engine,
    plan_of_postgres,
    select,
    times,
    values_of,
)
from tests.oracle import Row

ROWS, ENTITIES, INSTANTS, ASKS = 20_000, 60, 40, 2_000
EVERY_TYPE = [make_view(kind, name=kind.replace(" ", "_"), ttl_us=20) for kind in KEYS]
MANY = [
    make_view({"key": Int64}, {"value": Float64, "note": String}, name="known"),
    make_view({"key": Int64}, {"value": Float64, "note": String}, name="told", created=False),
]

Stores = dict[str, OfflineStore]


@pytest.fixture(scope="module")
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Every engine with the same histories: every type and key, and many rows with many ties."""
    with ExitStack() as stack:
        folder: Path = tmp_path_factory.mktemp("engines")
        opened = {engine: stack.enter_context(opened_engine(request, engine, folder)) for engine in ENGINES}
        for store in opened.values():
            for view in EVERY_TYPE:
                store.ensure_history(view)
                append(store, view, every_value(view))
            for view in MANY:
                store.ensure_history(view)
                for batch in many_rows(view):
                    store.append(view, ArrivedRows(rows=batch, schema_id=1))
        yield opened


def every_value(view: FeatureView) -> list[Row]:
    pool = next(keys for types, keys in KEYS.values() if types == view.join_keys)
    places = [(key, value) for key in pool for value in VALUES]
    return [
        Row(keys=key, event=n % 7, created=n % 11, sequence=n, value=values_of(view, value))
        for n, (key, value) in enumerate(places, start=1)
    ]


def many_rows(view: FeatureView) -> list[pa.Table]:
    draw = np.random.default_rng(7)
    event = draw.integers(0, INSTANTS, ROWS)
    created = draw.integers(0, INSTANTS, ROWS) if view.has_created else event
    rows = pa.table(
        {
            "key": draw.integers(0, ENTITIES, ROWS),
            EVENT: times(event.tolist()),
            CREATED: times(created.tolist()),
            SEQUENCE: draw.permutation(ROWS),
            "value": draw.normal(size=ROWS),
            "note": pa.array(np.arange(ROWS)).cast(pa.string()),
        }
    )
    return [rows.slice(0, 5_000), rows.slice(3_000, 12_000), rows.slice(15_000)]


def same_from_all(answers: dict[str, pa.Table]) -> pa.Table:
    """The answer, once it is the same from every engine."""
    first = answers["duckdb"]
    assert {engine: table.schema for engine, table in answers.items()} == dict.fromkeys(answers, first.schema)
    digests = {engine: content_digest(table) for engine, table in answers.items()}
    assert len(set(digests.values())) == 1, digests
    return first


@pytest.mark.parametrize("knowledge", ["created", "event"])
@pytest.mark.parametrize("view", EVERY_TYPE, ids=lambda view: view.name)
def test_training_sets_of_every_type_and_key_are_the_same(stores: Stores, view: FeatureView, knowledge: str) -> None:
    rows = every_value(view)
    asked = [(row.keys, at) for row in rows[::5] for at in (-1, 3, 6, 10, 27)]
    keys = key_columns(view, [keys for keys, _ in asked])
    spine = pa.table({**keys, "as_of": times([at for _, at in asked])})

    got = same_from_all(
        {
            engine: ask(store, select(view), [view], spine, knowledge=knowledge, with_status=True)
            for engine, store in stores.items()
        }
    )

    assert set(got.column(f"{view.name}__status").to_pylist()) >= {"PRESENT", "NOT_FOUND", "EXPIRED"}


@pytest.mark.parametrize("plan", POSTGRES_PLANS)
@pytest.mark.parametrize("part", [1.0, 0.3])
def test_training_sets_of_many_tied_rows_are_the_same(
    stores: Stores, plan: str, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the newest position and at an older one, in every way that Postgres answers."""
    plan_of_postgres(monkeypatch, plan)
    draw = np.random.default_rng(8)
    spine = pa.table(
        {
            "row": np.arange(ASKS),
            "key": draw.integers(0, ENTITIES + 10, ASKS),
            "as_of": times(draw.integers(-2, INSTANTS + 2, ASKS).tolist()),
        }
    )
    positions = {view.ref: int(part * stores["duckdb"].position(view.ref)) for view in MANY}
    more: dict[str, Any] = {"positions": positions, "full_feature_names": True, "with_status": True}

    same_from_all({engine: ask(store, select(*MANY), MANY, spine, **more) for engine, store in stores.items()})


@pytest.mark.parametrize("view", [*EVERY_TYPE, *MANY], ids=lambda view: view.name)
def test_projections_and_their_increments_are_the_same(stores: Stores, view: FeatureView) -> None:
    last = stores["duckdb"].position(view.ref)
    whole = LatestRows(project=PROJECT, view=view, position_to=last, horizon_to_us=5)
    since = LatestRows(
        project=PROJECT, view=view, position_to=last, horizon_to_us=9, position_from=last // 2, horizon_from_us=5
    )
    order = [(name, "ascending") for name in view.join_keys]

    for query in (whole, since):
        streamed = {}
        for engine, store in stores.items():
            with store.latest(query, 7) as reader:
                streamed[engine] = reader.read_all().sort_by(order)
        assert same_from_all(streamed).num_rows > 0
        assert len({store.pending(query) for store in stores.values()}) == 1
        same_from_all({engine: store.entities(query).sort_by(order) for engine, store in stores.items()})


@pytest.mark.parametrize("view", EVERY_TYPE, ids=lambda view: view.name)
def test_rows_come_back_by_their_sequences(stores: Stores, view: FeatureView) -> None:
    wanted = history_table(view, every_value(view)).column(SEQUENCE).combine_chunks()[3::4]

    same_from_all({engine: store.rows_of(view, wanted).sort_by(SEQUENCE) for engine, store in stores.items()})
