"""The join gives the same bytes whatever the threads, the size of the spine, the order on disk, and the day."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from featurestore import Float64, Int64, String
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import CREATED, EVENT, SEQUENCE
from featurestore.digest import content_digest
from featurestore.offline.base import ArrivedRows
from featurestore.offline.duckdb import DuckDBOfflineStore
from tests.fix_offline import ask, make_view, select, shuffled, times

#: More rows than one row group of DuckDB (122,880), so that two threads have something to share.
ROWS, KEYS, INSTANTS, ASKS = 150_000, 200, 40, 3_000
VIEWS = [
    make_view({"key": Int64}, {"value": Float64, "note": String}, name="known"),
    make_view({"key": Int64}, {"value": Float64, "note": String}, name="told", created=False),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 19 rows tie for each key and event time, about as many for equal created times; sequences are shuffled."""
    file = tmp_path_factory.mktemp("determinism") / "offline.duckdb"
    store = DuckDBOfflineStore(file, "loaded")
    draw = np.random.default_rng(7)
    for view in VIEWS:
        store.ensure_history(view)
        event = draw.integers(0, INSTANTS, ROWS)
        rows = pa.table(
            {
                "key": draw.integers(0, KEYS, ROWS),
                EVENT: times(event.tolist()),
                CREATED: times((draw.integers(0, INSTANTS, ROWS) if view.has_created else event).tolist()),
                SEQUENCE: draw.permutation(ROWS),
                "value": draw.normal(size=ROWS),
                "note": pa.array(np.arange(ROWS)).cast(pa.string()),
            }
        )
        store.append(view, ArrivedRows(rows=rows, schema_id=1))
    return file


@pytest.fixture(scope="module")
def spine() -> pa.Table:
    draw = np.random.default_rng(8)
    return pa.table(
        {
            "row": np.arange(ASKS),
            "key": draw.integers(0, KEYS + 20, ASKS),
            "as_of": times(draw.integers(-2, INSTANTS + 2, ASKS).tolist()),
        }
    )


@pytest.fixture(scope="module")
def answer(path: Path, spine: pa.Table) -> pa.Table:
    return training_set(path, spine)


def training_set(path: Path, spine: pa.Table, *, threads: int = 2, project: str = "loaded") -> pa.Table:
    store = DuckDBOfflineStore(path, project, threads=threads)
    return ask(store, select(*VIEWS), VIEWS, spine, project=project, full_feature_names=True, with_status=True)


def test_the_answers_are_worth_comparing(answer: pa.Table) -> None:
    statuses = answer.column("known__status").value_counts().to_pylist()

    counts = {count["values"]: count["counts"] for count in statuses}
    assert counts["PRESENT"] > ASKS // 2
    assert counts["NOT_FOUND"] > ASKS // 50


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_repetition_change_nothing(path: Path, spine: pa.Table, answer: pa.Table, threads: int) -> None:
    for _ in range(2):
        assert content_digest(training_set(path, spine, threads=threads)) == content_digest(answer)


@pytest.mark.parametrize(("start", "rows"), [(0, 1), (5, 64), (5, 65), (1000, 1), (2935, 65)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_answered_alike_in_a_small_spine_and_in_a_large_one(
    path: Path, spine: pa.Table, answer: pa.Table, start: int, rows: int, threads: int
) -> None:
    got = training_set(path, spine.slice(start, rows), threads=threads)

    assert content_digest(got) == content_digest(answer.slice(start, rows))


@pytest.fixture(scope="module")
def other_order(path: Path, answer: pa.Table) -> str:
    """A project in the same file with the same rows, sequences and positions, stored in another physical order."""
    assert answer.num_rows
    store = DuckDBOfflineStore(path, "shuffled")
    for view in VIEWS:
        store.ensure_history(view)
    with duckdb.connect(str(path)) as connection:
        for view in VIEWS:
            name = f"{view.name}__v1"
            connection.execute(
                f"INSERT INTO shuffled.{name} SELECT * FROM loaded.{name} ORDER BY hash(_position * 7919), _position"
            )
        connection.execute("INSERT INTO shuffled._positions FROM loaded._positions")
        moved = connection.execute(
            "SELECT count(*) FROM loaded.known__v1 AS a JOIN shuffled.known__v1 AS b ON a.rowid = b.rowid"
            " WHERE a._position <> b._position"
        ).fetchall()
    assert moved[0][0] > ROWS * 0.99
    return "shuffled"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 64, 65, ASKS])
def test_the_order_of_rows_on_disk_changes_nothing(
    path: Path, spine: pa.Table, answer: pa.Table, other_order: str, threads: int, rows: int
) -> None:
    got = training_set(path, spine.slice(0, rows), threads=threads, project=other_order)

    assert content_digest(got) == content_digest(answer.slice(0, rows))


def test_the_order_of_the_spine_is_the_order_of_the_answer(path: Path, spine: pa.Table, answer: pa.Table) -> None:
    mixed = training_set(path, shuffled(spine, 3))

    assert mixed.column("row").to_pylist() == shuffled(spine, 3).column("row").to_pylist()
    assert content_digest(mixed.sort_by("row")) == content_digest(answer)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_the_projection_has_the_same_rows_in_any_plan(path: Path, other_order: str, view: object) -> None:
    digests = set()
    for project in ("loaded", other_order):
        for threads in (1, 2):
            store = DuckDBOfflineStore(path, project, threads=threads)
            query = LatestRows(project=project, view=view, position_to=ROWS, horizon_to_us=INSTANTS // 2)  # type: ignore[arg-type]
            with store.latest(query, 64) as reader:
                digests.add(content_digest(reader.read_all().sort_by("key")))

    assert len(digests) == 1
