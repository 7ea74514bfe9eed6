"""History in every engine: append-only, positions in order, rule 6 to the bit, everything of a batch in one commit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal as Number
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import (
    Bool,
    Bytes,
    Date,
    Decimal,
    FeatureView,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, from_us
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import SCHEMA_ID, SEQUENCE
from featurestore.dtypes import DType
from featurestore.errors import NotFoundError, StoreError
from featurestore.offline.base import AppendCounts, ArrivedRows, OfflineStore, Pending
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.offline.quarantine import QUARANTINE_SCHEMA, Chosen
from tests.fix_offline import (
    ENGINES,
    PROJECT,
    VALUES,
    append,
    assert_same_bits,
    bits,
    history_table,
    make_view,
    opened_engine,
)
from tests.oracle import Row

DELAY = {"delay": Int64}


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path) as opened:
        yield opened


def leg(key: str, event: int, sequence: int, value: Any, created: int | None = None) -> Row:
    return Row(
        keys=(key,), event=event, created=event if created is None else created, sequence=sequence, value=(value,)
    )


def latest(store: OfflineStore, view: FeatureView, at: int = 1000) -> pa.Table:
    query = LatestRows(project=PROJECT, view=view, position_to=store.position(view.ref), horizon_to_us=at)
    with store.latest(query, 1000) as reader:
        return reader.read_all().sort_by([(name, "ascending") for name in view.join_keys])


def test_history_streams_all_its_rows_up_to_a_position(store: OfflineStore) -> None:
    view = make_view("text")
    store.ensure_history(view)
    rows = [Row(keys=("a",), event=5, created=6, sequence=number, value=value) for number, value in enumerate(VALUES)]
    append(store, view, rows[:-1])
    position = store.position(view.ref)
    append(store, view, rows[-1:])

    with store.rows_up_to(view, position, 3) as reader:
        streamed = reader.read_all().sort_by("_sequence")
    assert_same_bits(streamed.drop_columns("_schema"), history_table(view, rows[:-1]))


# ------------------------------------------------------------------ rule 6


def test_a_row_sent_again_is_a_duplicate_for_every_value_to_the_bit(store: OfflineStore) -> None:
    view = make_view("text")
    store.ensure_history(view)
    for number, value in enumerate(VALUES, start=1):
        first = append(store, view, [Row(keys=("a",), event=5, created=6, sequence=number, value=value)])
        assert first == AppendCounts(added=1, corrections=int(number > 1)), value

    for number, value in enumerate(VALUES, start=100):
        again = append(store, view, [Row(keys=("a",), event=5, created=6, sequence=number, value=value)])
        assert again == AppendCounts(duplicates=1), value


def test_other_times_or_keys_are_other_rows(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 5, 1, 1, created=6)])

    others = [leg("a", 5, 2, 1, created=7), leg("a", 4, 3, 1, created=6), leg("b", 5, 4, 1, created=6)]

    assert append(store, view, others) == AppendCounts(added=3)


def test_replaying_an_old_file_never_undoes_a_correction(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 5, 1, 10), leg("b", 5, 2, 20)])
    assert append(store, view, [leg("a", 5, 3, 11)]) == AppendCounts(added=1, corrections=1)

    assert append(store, view, [leg("a", 5, 4, 10), leg("b", 5, 5, 20)]) == AppendCounts(duplicates=2)

    assert latest(store, view).column("delay").to_pylist() == [11, 20]


def test_differing_twins_of_a_batch_are_kept_and_the_later_sequence_wins(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)

    assert append(store, view, [leg("a", 5, 1, 10), leg("a", 5, 2, 11)]) == AppendCounts(added=2)

    assert latest(store, view).column("delay").to_pylist() == [11]


def test_a_batch_of_known_rows_only_leaves_the_position_where_it_was(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 5, 1, 10)])

    append(store, view, [leg("a", 5, 2, 10)])
    append(store, view, [])

    assert (store.position(view.ref), store.history_rows(view.ref)) == (1, 1)


# ------------------------------------------------------------------ positions, sequences, schemas


def test_positions_are_contiguous_and_follow_commits_not_sequences(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 1, 50, 1), leg("a", 2, 51, 2)])
    append(store, view, [leg("a", 1, 50, 1), leg("b", 1, 7, 3)])  # an inbox drained late keeps its sequence

    placed = [
        sequence for position in (1, 2, 3) for sequence in _sequences_between(store, view, position - 1, position)
    ]

    assert placed == [50, 51, 7]
    assert store.position(view.ref) == store.history_rows(view.ref) == 3


def _sequences_between(store: OfflineStore, view: FeatureView, low: int, high: int) -> list[int]:
    query = LatestRows(
        project=PROJECT, view=view, position_to=high, horizon_to_us=1000, position_from=low, horizon_from_us=1000
    )
    with store.latest(query, 10) as reader:
        return reader.read_all().column(SEQUENCE).to_pylist()


def test_a_late_row_with_an_old_sequence_loses_a_tie_and_wins_an_instant(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 5, 50, 1), leg("b", 5, 51, 2)])

    append(store, view, [leg("a", 5, 7, 10), leg("b", 6, 8, 20)])

    assert latest(store, view).column("delay").to_pylist() == [1, 20]


def test_views_and_versions_have_histories_and_positions_of_their_own(store: OfflineStore) -> None:
    one, two, other = (make_view("text", DELAY, version=1), make_view("text", DELAY, version=2), make_view(name="gate"))
    for view in (one, two, other):
        store.ensure_history(view)
    append(store, one, [leg("a", 1, 1, 1), leg("a", 2, 2, 2)])
    append(store, two, [leg("a", 1, 1, 1)])

    assert [store.position(view.ref) for view in (one, two, other)] == [2, 1, 0]


def test_projects_share_a_file_and_nothing_else(tmp_path: Path) -> None:
    view = make_view("text", DELAY)
    ours, theirs = (DuckDBOfflineStore(tmp_path / "x.duckdb", name) for name in ("ours", "theirs"))
    for store in (ours, theirs):
        store.ensure_history(view)
    append(ours, view, [leg("a", 1, 1, 1)])

    assert (ours.history_rows(view.ref), theirs.history_rows(view.ref)) == (1, 0)


def test_rows_keep_the_schema_they_were_written_with(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 1, 1, 1)], schema_id=1)
    append(store, view, [leg("b", 1, 2, 1)], schema_id=2)

    assert latest(store, view).column(SCHEMA_ID).to_pylist() == [1, 2]


@pytest.mark.parametrize("edge", [TIMESTAMP_MIN_US, -1, 0, TIMESTAMP_MAX_US])
def test_times_at_the_edges_of_the_calendar_are_exact(store: OfflineStore, edge: int) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", edge, 1, 1)])

    assert append(store, view, [leg("a", edge, 2, 1)]) == AppendCounts(duplicates=1)
    query = LatestRows(project=PROJECT, view=view, position_to=1, horizon_to_us=edge)
    assert store.pending(query) == Pending(rows=1, newest_us=edge, oldest_visible_us=edge)


# ------------------------------------------------------------------ one commit


def test_load_progress_comes_with_the_rows(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    assert store.rows_done("load-1") == 0

    append(store, view, [leg("a", 1, 1, 1)], load_id="load-1", rows_done=64)
    append(store, view, [], load_id="load-1", rows_done=128)
    assert store.rows_done("load-1") == 128
    append(store, view, [], load_id="load-2", rows_done=1)

    # A view has one load at a time: what the next one begins, the last one has ended.
    assert [store.rows_done(load) for load in ("load-1", "load-2", "load-3")] == [0, 1, 0]


def test_a_batch_that_fails_leaves_no_row_no_position_no_progress(store: OfflineStore) -> None:
    import duckdb

    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 1, 1, 1)], load_id="load", rows_done=1)
    rows = history_table(view, [leg("b", 1, 2, 2)])
    broken = refused("{1}").drop_columns(["rule"])

    with pytest.raises((duckdb.Error, StoreError), match="rule"):
        store.append(view, ArrivedRows(rows=rows, schema_id=1, refused=broken, load_id="load", rows_done=2))

    assert (store.history_rows(view.ref), store.position(view.ref), store.rows_done("load")) == (1, 1, 1)
    assert append(store, view, [leg("b", 1, 2, 2)]) == AppendCounts(added=1)
    assert store.position(view.ref) == 2


def refused(*raws: str, view: str = "leg@1", rule: str = "not_null", source: str = "a.csv") -> pa.Table:
    rows = [
        {
            "view": view,
            "id": f"id of {raw}",
            "sequence": number + 1,
            "definition": "d",
            "run": "run",
            "rule": rule,
            "field": "delay",
            "reason": "delay is null",
            "source": source,
            "source_row": number,
            "raw": raw,
            "raw_form": "form",
            "quarantined_at": from_us(0),
        }
        for number, raw in enumerate(raws)
    ]
    return pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)


def test_a_refused_row_is_kept_once_however_often_it_comes(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [], refused=refused("{1}", "{2}"))

    append(store, view, [], refused=refused("{2}", "{3}", source="again.csv"))
    append(store, view, [], refused=refused("{2}", rule="range"))

    kept = store.quarantine.rows(Chosen(view=view.ref), limit=10)
    assert kept.schema == QUARANTINE_SCHEMA
    told = [(row["raw"], row["rule"], row["source"]) for row in kept.to_pylist()]
    # One row a raw row: where it was first seen, and the reason of its last judgement.
    assert sorted(told) == [("{1}", "not_null", "a.csv"), ("{2}", "range", "a.csv"), ("{3}", "not_null", "again.csv")]
    assert store.quarantine.rows(Chosen(view="other@1"), limit=10).num_rows == 0
    assert store.quarantine.rows(Chosen(view=view.ref), limit=2).num_rows == 2


def test_a_refused_row_that_stands_twice_in_a_batch_is_kept_once_too(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)

    append(store, view, [], refused=refused("{1}", "{1}", "{2}"))

    assert sorted(store.quarantine.rows(Chosen(view=view.ref), limit=10).column("raw").to_pylist()) == ["{1}", "{2}"]


# ------------------------------------------------------------------ tables


def test_ensure_history_twice_changes_nothing(store: OfflineStore) -> None:
    view = make_view("text", DELAY)
    store.ensure_history(view)
    append(store, view, [leg("a", 1, 1, 1)])

    store.ensure_history(view)

    assert latest(store, view).column("delay").to_pylist() == [1]


DEFAULTS: dict[str, tuple[DType, Any]] = {
    "a_bool": (Bool, True),
    "an_int32": (Int32, -(2**31)),
    "an_int64": (Int64, 2**53 + 1),
    "a_float32": (Float32, -0.0),
    "a_float64": (Float64, float("nan")),
    "infinite": (Float64, float("-inf")),
    "precise": (Float64, 0.1),
    "a_string": (String, 'it\'s \\ "é"'),
    "empty": (String, ""),
    "some_bytes": (Bytes, b"\x00\xff'"),
    "a_timestamp": (Timestamp, datetime(2013, 12, 1, 5, 0, 0, 1, tzinfo=UTC)),
    "first": (Timestamp, datetime(1, 1, 1, tzinfo=UTC)),
    "a_date": (Date, date(9999, 12, 31)),
    "a_decimal": (Decimal(38, 4), Number("-1234567890123456789012345678901234.5678")),
    "some_floats": (List(Float64), [0.1, -0.0]),
    "none": (List(String), []),
    "some_strings": (List(String), ["a'b", ""]),
    "a_vector": (Vector(Float32, 2), [1.5, -0.0]),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_fills_the_rows_before_the_field_for_good_and_no_later_one(store: OfflineStore, name: str) -> None:
    dtype, default = DEFAULTS[name]
    before = make_view("text", DELAY)
    store.ensure_history(before)
    append(store, before, [leg("a", 1, 1, 1)])

    store.ensure_history(_with(before, Field(name="added", dtype=dtype, default=default)))
    today = _with(before, Field(name="added", dtype=dtype, default=None))
    store.ensure_history(today)
    append(store, today, [Row(keys=("b",), event=1, created=1, sequence=2, value=(2, None))])

    assert bits(latest(store, today).column("added").to_pylist()) == bits([default, None])


def test_a_field_without_default_is_null_in_the_rows_before_it(store: OfflineStore) -> None:
    before = make_view("text", DELAY)
    store.ensure_history(before)
    append(store, before, [leg("a", 1, 1, 1)])

    after = _with(before, *(Field(name=name, dtype=dtype) for name, (dtype, _) in DEFAULTS.items()))
    store.ensure_history(after)

    rows = latest(store, after)
    assert [rows.column(name).to_pylist() for name in DEFAULTS] == [[None]] * len(DEFAULTS)


def _with(view: FeatureView, *fields: Field) -> FeatureView:
    from dataclasses import replace

    return replace(view, schema=[*view.schema, *fields])


def test_drop_removes_the_view_and_its_book_keeping_and_nothing_else(store: OfflineStore) -> None:
    gone, stays = make_view("text", DELAY, version=1), make_view("text", DELAY, version=2)
    for view in (gone, stays):
        store.ensure_history(view)
        append(store, view, [leg("a", 1, 1, 1)], load_id=view.ref, rows_done=1, refused=refused("{}", view=view.ref))

    store.drop_history(gone.ref)
    store.drop_history(gone.ref)

    assert [store.history_rows(view.ref) for view in (gone, stays)] == [0, 1]
    assert [store.position(view.ref) for view in (gone, stays)] == [0, 1]
    assert [store.rows_done(view.ref) for view in (gone, stays)] == [0, 1]
    assert [store.quarantine.rows(Chosen(view=view.ref), limit=9).num_rows for view in (gone, stays)] == [0, 1]
    store.ensure_history(gone)
    assert append(store, gone, [leg("a", 1, 1, 1)]) == AppendCounts(added=1)


def test_a_store_that_was_never_made_is_empty_and_reading_does_not_make_it(tmp_path: Path) -> None:
    path = tmp_path / "none.duckdb"
    store = DuckDBOfflineStore(path, PROJECT)

    assert (store.history_rows("leg@1"), store.position("leg@1"), store.rows_done("x")) == (0, 0, 0)
    assert store.quarantine.rows(Chosen(view="leg@1"), limit=10).num_rows == 0
    store.drop_history("leg@1")
    assert not path.exists()


def test_asking_a_view_without_history_names_those_that_have_one(store: OfflineStore) -> None:
    store.ensure_history(make_view("text", DELAY, name="weather", version=3))
    unknown = make_view("text", DELAY)

    with pytest.raises(NotFoundError, match="'leg@1'.*weather@3"):
        append(store, unknown, [leg("a", 1, 1, 1)])
    with pytest.raises(NotFoundError, match="'leg@1'.*weather@3"):
        latest(store, unknown)
