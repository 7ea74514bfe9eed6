"""Incremental loads read by arrival: every row that arrives is loaded once, however late, and nothing is read twice
that need not be.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from featurestore import FeatureView, FileSource, SqlSource
from featurestore.digest import content_digest
from featurestore.errors import ContractViolation, InputError, SourceError
from featurestore.ingest.load import LoadCounts
from featurestore.offline.quarantine import Chosen
from materialization.job import Request
from tests.fix_repository import NOON, Row, SmallRepository, created_table, hours, weather

MONTH = timedelta(days=30)


def sql_weather(**changes: Any) -> FeatureView:
    """The weather view over a query."""
    source = SqlSource(
        **{"query": "SELECT * FROM rows", "inputs": {"rows": "data/weather"}, "timestamp_field": "at", **changes}
    )
    return weather(source=source)


def created_sql_weather(**changes: Any) -> FeatureView:
    """The weather view over a query that says when its rows became known."""
    return sql_weather(created_timestamp_column="known", **changes)


def load(repository: SmallRepository, end: datetime | None = None) -> LoadCounts:
    """An incremental run's load; what is online is checked every time."""
    outcome = repository.done(Request(end=end))
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    assert outcome.loaded is not None
    return outcome.loaded


def temps(repository: SmallRepository) -> list[Any]:
    """The temperatures in history, sorted."""
    return sorted(repository.history().column("temp").to_pylist())


def rows_at(*offsets: float) -> list[Row]:
    """One airport, a row for every offset in hours from NOON; the temperature tells which."""
    return [("JFK", NOON + hours(offset), float(offset), None) for offset in offsets]


# ------------------------------------------------------------------ files


def test_a_new_file_is_read_and_an_unchanged_one_is_not(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", rows_at(-3, -2))
    assert load(repository) == LoadCounts(read=2, added=2)
    assert load(repository) == LoadCounts()
    repository.write("weather/b.parquet", rows_at(-1))
    assert load(repository) == LoadCounts(read=1, added=1)
    assert temps(repository) == [-3, -2, -1]


def test_a_changed_file_is_read_again_and_only_its_new_rows_are_added(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", rows_at(-3, -2))
    load(repository)
    repository.write("weather/a.parquet", rows_at(-3, -2, -1))
    assert load(repository) == LoadCounts(read=3, added=1, duplicates=2)


def test_a_file_that_was_only_touched_is_not_read(repository: SmallRepository) -> None:
    repository.apply(weather())
    path = repository.write("weather/a.parquet", rows_at(-1))
    load(repository)
    path.touch()
    assert load(repository) == LoadCounts()


def test_a_file_that_went_away_takes_no_history_with_it(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", rows_at(-2))
    gone = repository.write("weather/b.parquet", rows_at(-1))
    load(repository)
    gone.unlink()
    assert load(repository) == LoadCounts()
    assert temps(repository) == [-2, -1]


SOURCES = {
    "file": weather(),
    "file with created": weather(created=True),
    "sql": sql_weather(),
    "sql with created": created_sql_weather(),
    "sql with lookback": sql_weather(lookback=timedelta(days=31)),
}


def write_rows(repository: SmallRepository, view: FeatureView, name: str, rows: Sequence[Row], known: datetime) -> None:
    if view.has_created:
        repository.write(name, created_table([(key, at, known, temp, seen) for key, at, temp, seen in rows]))
    else:
        repository.write(name, rows)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_row_30_days_late_in_a_loaded_source_arrives_with_the_next_run(
    kind: str, repository: SmallRepository
) -> None:
    view = SOURCES[kind]
    repository.apply(view)
    write_rows(repository, view, "weather/a.parquet", rows_at(-2, -1), known=NOON - hours(1))
    load(repository)
    repository.at(NOON + hours(1))
    write_rows(repository, view, "weather/b.parquet", rows_at(-30 * 24), known=NOON)
    assert load(repository).added == 1
    assert temps(repository) == [-720, -2, -1]


def test_reloading_the_same_source_gives_duplicates_and_no_correction(repository: SmallRepository) -> None:
    repository.apply(weather())
    rows = [(f"A{n % 5}", NOON - hours(n), None if n % 3 else float("nan"), n) for n in range(35)]
    repository.write("weather/a.parquet", rows)
    load(repository)
    before = content_digest(repository.history())
    for _ in range(2):
        outcome = repository.done(Request(start=NOON - MONTH, end=NOON + MONTH))
        assert outcome.loaded == LoadCounts(read=35, duplicates=35)
        assert outcome.published is not None
        assert outcome.published.rows_written == 0
    assert content_digest(repository.history()) == before


def test_replaying_an_old_file_does_not_undo_a_correction(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1)])
    load(repository)
    repository.write("weather/b.parquet", [("JFK", NOON - hours(1), 2.0, 1)])
    assert load(repository) == LoadCounts(read=1, added=1, corrections=1)
    corrected = repository.stored()
    repository.write("weather/c.parquet", [("JFK", NOON - hours(1), 1.0, 1)])
    assert load(repository) == LoadCounts(read=1, duplicates=1)
    assert repository.stored() == corrected


def test_twins_within_a_batch_and_across_batches_are_counted(repository: SmallRepository) -> None:
    repository.apply(weather())
    twin, other = ("JFK", NOON - hours(1), 1.0, 1), ("JFK", NOON - hours(1), 2.0, 1)
    repository.write("weather/a.parquet", [twin, twin, other])
    assert load(repository) == LoadCounts(read=3, added=2, duplicates=1, ambiguous=1)
    repository.write("weather/b.parquet", [other, twin, ("JFK", NOON - hours(1), 3.0, 1)])
    assert load(repository) == LoadCounts(read=3, added=1, corrections=1, duplicates=2, ambiguous=2)


# ------------------------------------------------------------------ up to an end


@pytest.mark.parametrize("kind", SOURCES)
def test_a_later_end_reads_what_an_earlier_one_left_out(kind: str, repository: SmallRepository) -> None:
    view = SOURCES[kind]
    repository.apply(view)
    write_rows(repository, view, "weather/a.parquet", rows_at(-4, -3, -2, -1), known=NOON - hours(5))
    first = load(repository, end=NOON - hours(3))
    assert (first.added, first.outside) == (1, 3)
    assert load(repository, end=NOON - hours(3)) == LoadCounts()
    assert load(repository, end=NOON - hours(4)) == LoadCounts()
    second = load(repository, end=NOON - hours(1))
    assert second.added == 2
    if isinstance(view.source, FileSource):
        assert second == LoadCounts(read=4, outside=2, added=2)
    assert load(repository).added == 1
    assert load(repository) == LoadCounts()
    assert temps(repository) == [-4, -3, -2, -1]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_row_that_arrived_between_two_ends_is_not_lost(kind: str, repository: SmallRepository) -> None:
    """Read to noon, then a late row arrives and a run reads to two hours earlier only, then to noon again."""
    view = SOURCES[kind]
    repository.apply(view)
    write_rows(repository, view, "weather/a.parquet", rows_at(-4, -1), known=NOON - hours(1))
    load(repository, end=NOON)
    write_rows(repository, view, "weather/b.parquet", rows_at(-5, -1.5), known=NOON - hours(0.5))
    assert load(repository, end=NOON - hours(2)).added == 1
    assert load(repository, end=NOON).added == 1
    assert temps(repository) == [-5, -4, -1.5, -1]


def test_materialize_takes_the_event_times_from_start_to_before_end(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", rows_at(-4, -3, -2, -1))
    outcome = repository.done(Request(start=NOON - hours(3), end=NOON - hours(1)))
    assert outcome.loaded == LoadCounts(read=4, outside=2, added=2)
    assert temps(repository) == [-3, -2]
    assert load(repository) == LoadCounts(read=4, added=2, duplicates=2)


def test_an_end_that_is_not_past_the_start_is_refused(repository: SmallRepository) -> None:
    for end in (NOON, NOON - hours(1)):
        with pytest.raises(InputError, match="nothing lies between"):
            Request(start=NOON, end=end)


# ------------------------------------------------------------------ queries


def test_a_query_over_unchanged_files_is_not_run_again(repository: SmallRepository) -> None:
    repository.apply(sql_weather())
    repository.write("weather/a.parquet", rows_at(-2, -1))
    assert load(repository) == LoadCounts(read=2, added=2)
    assert load(repository) == LoadCounts()


def test_a_query_without_created_or_lookback_is_read_whole(repository: SmallRepository) -> None:
    repository.apply(sql_weather())
    repository.write("weather/a.parquet", rows_at(-2, -1))
    load(repository)
    repository.write("weather/b.parquet", rows_at(-24 * 300))
    assert load(repository) == LoadCounts(read=3, added=1, duplicates=2)


@pytest.mark.parametrize(("late_by", "arrives"), [(hours(6), True), (hours(6) + timedelta(microseconds=1), False)])
def test_a_lookback_ends_where_it_says(late_by: timedelta, *, arrives: bool, repository: SmallRepository) -> None:
    repository.apply(sql_weather(lookback=hours(6)))
    repository.write("weather/a.parquet", rows_at(-1))
    load(repository)
    repository.write("weather/b.parquet", [("LGA", NOON - hours(1) - late_by, 5.0, None)])
    assert load(repository).added == int(arrives)


@pytest.mark.parametrize(("late_by", "arrives"), [(hours(6), True), (hours(6) + timedelta(microseconds=1), False)])
def test_an_overlap_ends_where_it_says(late_by: timedelta, *, arrives: bool, repository: SmallRepository) -> None:
    repository.apply(created_sql_weather(overlap=hours(6)))
    known = NOON - hours(1)
    repository.write("weather/a.parquet", created_table([("JFK", known, known, 1.0, 1)]))
    load(repository)
    repository.write("weather/b.parquet", created_table([("LGA", NOON - MONTH, known - late_by, 5.0, None)]))
    assert load(repository).added == int(arrives)


def test_rows_known_at_the_same_instant_as_the_newest_arrive_without_any_overlap(repository: SmallRepository) -> None:
    repository.apply(created_sql_weather(overlap=timedelta(0)))
    known = NOON - hours(1)
    repository.write("weather/a.parquet", created_table([("JFK", known, known, 1.0, 1)]))
    load(repository)
    repository.write("weather/b.parquet", created_table([("LGA", known, known, 2.0, 2)]))
    assert load(repository).added == 1


@pytest.mark.parametrize("kind", ["sql with created", "sql with lookback"])
def test_a_row_ahead_of_the_clock_does_not_hide_the_rows_of_the_coming_days(
    kind: str, repository: SmallRepository
) -> None:
    view = SOURCES[kind]
    repository.apply(view)
    write_rows(repository, view, "weather/a.parquet", rows_at(24 * 365), known=NOON + timedelta(days=365))
    load(repository)
    repository.at(NOON + timedelta(days=3))
    write_rows(repository, view, "weather/b.parquet", rows_at(24), known=NOON + timedelta(days=1))
    assert load(repository).added == 1


# ------------------------------------------------------------------ another source


@pytest.mark.parametrize("created", [False, True])
def test_a_source_that_is_declared_anew_is_read_from_its_beginning(
    created: bool,  # noqa: FBT001 - a case of the test
    repository: SmallRepository,
) -> None:
    def view(query: str) -> FeatureView:
        return (created_sql_weather if created else sql_weather)(query=query)

    repository.apply(view("SELECT * FROM rows WHERE temp > -10"))
    write_rows(repository, view(""), "weather/a.parquet", rows_at(-1), known=NOON - hours(1))
    write_rows(repository, view(""), "weather/b.parquet", rows_at(-24 * 40), known=NOON - timedelta(days=40))
    assert load(repository).added == 1
    repository.apply(view("SELECT * FROM rows WHERE temp < 0"))
    assert load(repository).added == 1
    write_rows(repository, view(""), "weather/c.parquet", rows_at(-24 * 39), known=NOON - timedelta(days=39))
    assert load(repository).added == (0 if created else 1)  # known 39 days ago: past the overlap of a day


def test_the_cursor_of_an_old_source_does_not_hide_rows_of_the_new_one(repository: SmallRepository) -> None:
    """The new source's rows are all older than what the old one had shown."""
    repository.apply(created_sql_weather(inputs={"rows": "data/old"}))
    repository.write("old/a.parquet", created_table([("JFK", NOON - hours(1), NOON - hours(1), 1.0, 1)]))
    load(repository)
    repository.apply(created_sql_weather(inputs={"rows": "data/new"}))
    long_ago = NOON - timedelta(days=90)
    repository.write("new/a.parquet", created_table([("JFK", long_ago, long_ago, 2.0, 2)]))
    assert load(repository).added == 1
    a_day_later = long_ago + timedelta(days=1)
    repository.write("new/b.parquet", created_table([("JFK", a_day_later, a_day_later, 3.0, 3)]))
    assert load(repository).added == 1


def test_a_field_added_later_is_read_from_the_beginning_of_the_source(repository: SmallRepository) -> None:
    old = weather(schema=weather().schema[:1])
    repository.apply(old)
    repository.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 7)])
    load(repository)
    repository.apply(weather())
    assert load(repository) == LoadCounts(read=1, added=1, corrections=1)
    assert repository.history().column("seen").to_pylist() == [None, 7]


# ------------------------------------------------------------------ any order of arrival


def arrivals(seed: int) -> list[list[Row]]:
    """Files with corrections, twins, late and future rows."""
    chosen = random.Random(seed)
    rows: list[Row] = [
        (f"A{n % 4}", NOON + hours(chosen.choice([-5, -4, -3, 2])), chosen.choice([None, 1.0, 2.0]), n)
        for n in range(40)
    ]
    return [rows[start : start + 8] for start in range(0, 40, 8)]


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_follows_history_in_any_order_of_arrival_and_replay(
    seed: int, repository: SmallRepository
) -> None:
    repository.apply(weather())
    files = arrivals(seed)
    order = random.Random(seed).sample(range(5), 5)
    for step, number in enumerate([*order, *order[:2]]):
        repository.write(f"weather/{step}.parquet", files[number])
        repository.at(NOON + timedelta(minutes=40 * step))
        load(repository)
    values = {repr(row) for row in repository.values()}
    assert len(values) == repository.history().num_rows == 40


def test_rows_with_distinct_times_end_in_the_same_online_state_in_any_order(tmp_path: Any) -> None:
    rows = [(f"A{n % 4}", NOON - hours(n), float(n), n) for n in range(30)]
    states = []
    for seed in range(3):
        small = SmallRepository(tmp_path / str(seed))
        small.apply(weather())
        shuffled = random.Random(seed).sample(rows, 30)
        for start in range(0, 30, 6):
            small.write(f"weather/{start}.parquet", shuffled[start : start + 6])
            load(small)
        # All but the sequence: it tells the order of arrival.
        states.append({key: (row[:16], row[24:]) for key, row in small.stored().items()})
        small.close()
    assert states[0] == states[1] == states[2]


# ------------------------------------------------------------------ bad rows


def test_a_batch_that_is_rejected_leaves_the_earlier_ones_and_is_tried_again(repository: SmallRepository) -> None:
    from featurestore import Field, Float64, Int64

    schema = (Field(name="temp", dtype=Float64, ge=-100), Field(name="seen", dtype=Int64))
    repository.apply(weather(schema=schema))
    rows = rows_at(*(-1 - n / 10 for n in range(25)))
    rows[17] = ("JFK", NOON - hours(9), -200.0, None)
    repository.write("weather/a.parquet", rows)
    with pytest.raises(ContractViolation, match=r"weather/a.parquet, row 17"):
        load(repository)
    assert repository.history().num_rows == 10
    with pytest.raises(ContractViolation, match=r"weather/a.parquet, row 17"):
        load(repository)
    assert repository.history().num_rows == 10
    rows[17] = ("JFK", NOON - hours(9), -20.0, None)
    repository.write("weather/a.parquet", rows)
    assert load(repository) == LoadCounts(read=25, added=15, duplicates=10)


def test_quarantined_rows_are_kept_once_with_their_place(repository: SmallRepository) -> None:
    from featurestore import Field, Float64, Int64

    schema = (Field(name="temp", dtype=Float64, ge=-100), Field(name="seen", dtype=Int64))
    repository.apply(weather(schema=schema, on_violation="quarantine"))
    repository.write("weather/a.parquet", [*rows_at(-1), ("JFK", NOON - hours(2), -200.0, None)])
    assert load(repository) == LoadCounts(read=2, added=1, quarantined=1)
    assert repository.done(Request(start=NOON - MONTH)).loaded == LoadCounts(read=2, duplicates=1, quarantined=1)
    (row,) = repository.offline.quarantine.rows(Chosen(view="weather@1"), limit=10).to_pylist()
    assert (row["field"], row["rule"], row["source"], row["source_row"]) == (
        "temp",
        "ge",
        "data/weather/a.parquet",
        1,
    )


@pytest.mark.parametrize("kind", ["file", "sql"])
def test_a_source_without_a_declared_column_is_refused_by_its_name(kind: str, repository: SmallRepository) -> None:
    repository.apply(SOURCES[kind])
    table = created_table([("JFK", NOON, NOON, 1.0, 1)]).drop_columns(["seen"])
    repository.write("weather/a.parquet", table)
    with pytest.raises(SourceError, match="lacks the column 'seen'; it has: origin, at, known, temp"):
        load(repository)
    assert repository.history().num_rows == 0
