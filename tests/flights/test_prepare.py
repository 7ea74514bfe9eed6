"""The prepared sources keep what their comments say: counts, instants, and when each fact became known.

The year is fixed, so every count is exact. Instants are compared as text of UTC times, the session's time zone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from definitions.flights import _prepare
from definitions.flights._prepare import PreparedSources, prepare
from tests.flights.conftest import Ask

ROWS = {
    "weather": 26_115,
    "flights": 336_776,
    "legs": 327_346,
    "planes": 3_322,
    "airports": 1_458,
    "departures": 327_346,
}


def digests(sources: PreparedSources) -> dict[str, str]:
    return {name: hashlib.sha256(getattr(sources, name).read_bytes()).hexdigest() for name in sources.rows}


# ------------------------------------------------------------------ the files


def test_every_source_has_the_rows_of_the_published_year(sources: PreparedSources) -> None:
    assert dict(sources.rows) == ROWS
    assert {name: pq.read_metadata(getattr(sources, name)).num_rows for name in ROWS} == ROWS


def test_preparing_again_gives_the_same_bytes(sources: PreparedSources, tmp_path: Path) -> None:
    again = prepare(tmp_path / "new" / "data")
    first = digests(again)
    assert first == digests(sources)
    assert digests(prepare(tmp_path / "new" / "data")) == first  # over files already there


def test_every_timestamp_is_utc_in_microseconds(sources: PreparedSources) -> None:
    types = {field.type for name in ROWS for field in pq.read_schema(getattr(sources, name))}
    assert {kind for kind in types if pa.types.is_timestamp(kind)} == {pa.timestamp("us", tz="UTC")}


def test_the_script_says_what_it_wrote(tmp_path: Path) -> None:
    script = _prepare.__file__
    done = subprocess.run([sys.executable, script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [f"{count:,}" for count in ROWS.values()]
    refused = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage:")


def test_missing_data_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'featurestore\[flights\]'"):
        prepare(tmp_path)


# ------------------------------------------------------------------ departures


def test_the_published_hour_is_the_local_hour_read_in_new_york_time(ask: Ask) -> None:
    local = "make_timestamp(year, month, day, hour, 0, 0) AT TIME ZONE 'America/New_York'"
    assert ask(f"SELECT count(*) FROM raw_flights WHERE time_hour IS DISTINCT FROM {local}") == [(0,)]
    # Of the weather, all but the first of the two hours 1 on 3 November, which no local clock can tell apart.
    assert ask(f"SELECT origin, time_hour::VARCHAR FROM raw_weather WHERE time_hour <> {local} ORDER BY 1") == [
        (origin, "2013-11-03 05:00:00+00") for origin in ("EWR", "JFK", "LGA")
    ]


def test_departures_give_back_every_published_local_time(ask: Ask) -> None:
    assert ask("SELECT count(dep_time), count(*) FILTER (dep_time = 2400) FROM raw_flights") == [(328_521, 29)]
    key = "(SELECT carrier, flight, time_hour + to_minutes(minute) AS sched_dep_utc, dep_time FROM raw_flights)"
    assert ask(f"""
        SELECT count(*), count(*) FILTER (
            strftime(dep_utc AT TIME ZONE 'America/New_York', '%H%M')::INTEGER = dep_time % 2400)
        FROM flights JOIN {key} USING (carrier, flight, sched_dep_utc) WHERE dep_utc IS NOT NULL""") == [
        (328_521, 328_521)
    ]


@pytest.mark.parametrize(
    ("carrier", "flight", "day", "scheduled", "left", "arrived"),
    [
        pytest.param("UA", 1545, "2013-01-01", "01-01 10:15", "01-01 10:17", "01-01 14:30", id="winter, to Houston"),
        pytest.param("HA", 51, "2013-07-01", "07-01 14:00", "07-01 14:05", "07-02 01:27", id="summer, to Honolulu"),
        pytest.param("B6", 35, "2013-03-09", "03-10 02:45", "03-10 04:06", "03-10 07:03", id="into the skipped hour"),
        pytest.param("B6", 727, "2013-03-09", "03-10 04:59", "03-10 05:53", "03-10 09:04", id="to Puerto Rico"),
        pytest.param("AA", 185, "2013-11-02", "11-03 01:40", "11-03 01:39", "11-03 07:43", id="night of the repeat"),
        pytest.param("VX", 413, "2013-11-02", "11-02 20:55", "11-03 02:17", "11-03 08:14", id="five hours late"),
    ],
)
def test_known_flights_have_their_instants(
    ask: Ask, carrier: str, flight: int, day: str, scheduled: str, left: str, arrived: str
) -> None:
    format_ = "'%m-%d %H:%M'"
    assert ask(f"""
        SELECT strftime(sched_dep_utc, {format_}), strftime(dep_utc, {format_}), strftime(arr_utc, {format_})
        FROM flights WHERE carrier = '{carrier}' AND flight = {flight} AND origin IN ('JFK', 'EWR')
          AND (sched_dep_utc AT TIME ZONE 'America/New_York')::DATE = '{day}'""") == [(scheduled, left, arrived)]


@pytest.mark.parametrize(
    ("day", "offset_before", "offset_after"), [("2013-03-10", -5, -4), ("2013-11-03", -4, -5)], ids=["spring", "autumn"]
)
def test_the_clock_changes_move_local_hours_not_instants(
    ask: Ask, day: str, offset_before: int, offset_after: int
) -> None:
    offsets = ask(f"""
        SELECT DISTINCT (sched_dep_utc AT TIME ZONE 'America/New_York')::DATE >= DATE '{day}',
               round((epoch(sched_dep_utc AT TIME ZONE 'America/New_York') - epoch(sched_dep_utc)) / 3600)::INTEGER
        FROM flights
        WHERE abs(date_diff('day', DATE '{day}', (sched_dep_utc AT TIME ZONE 'America/New_York')::DATE)) <= 3
        ORDER BY 1""")
    assert offsets == [(False, offset_before), (True, offset_after)]  # nothing is scheduled in the night itself


# ------------------------------------------------------------------ arrivals


def test_every_arrival_lies_taxiing_time_after_its_flight(ask: Ask) -> None:
    assert ask("""
        SELECT count(arr_utc), count(*) FILTER (arr_utc <= dep_utc),
               min((epoch(arr_utc) - epoch(dep_utc)) / 60 - air_time_min)::INTEGER,
               max((epoch(arr_utc) - epoch(dep_utc)) / 60 - air_time_min)::INTEGER
        FROM flights""") == [(327_346, 0, 5, 235)]


def test_arrivals_give_back_every_published_local_time_but_one(ask: Ask) -> None:
    assert ask("""
        WITH published AS (
            SELECT carrier, flight, time_hour + to_minutes(minute) AS sched_dep_utc, arr_time,
                   coalesce(tzone, 'America/Puerto_Rico') AS zone
            FROM raw_flights LEFT JOIN raw_airports ON faa = dest
        )
        SELECT carrier, flight, dest, arr_time, strftime(arr_utc AT TIME ZONE zone, '%H%M')
        FROM flights JOIN published USING (carrier, flight, sched_dep_utc)
        WHERE arr_utc IS NOT NULL AND strftime(arr_utc AT TIME ZONE zone, '%H%M')::INTEGER <> arr_time % 2400""") == [
        ("B6", 35, "PBI", 203, "0303")
    ]


def test_no_scheduled_arrival_falls_into_a_repeated_or_skipped_local_hour(ask: Ask) -> None:
    assert ask("""
        WITH arriving AS (
            SELECT tzone, sched_arr_utc AT TIME ZONE tzone AS local
            FROM flights JOIN raw_airports ON faa = dest
            WHERE tzone NOT IN ('America/Phoenix', 'Pacific/Honolulu')
        )
        SELECT count(*) FILTER (local >= '2013-03-10 02:00' AND local < '2013-03-10 03:00'),
               count(*) FILTER (local >= '2013-11-03 01:00' AND local < '2013-11-03 02:00')
        FROM arriving""") == [(0, 0)]


def test_destinations_without_daylight_saving_keep_their_offset(ask: Ask) -> None:
    """An hour of error in the zone would show as an hour more or less from gate to gate."""
    months = "strftime(sched_dep_utc, '%m') IN ('01', '07')"
    for dest, least, most in (("PHX", 280, 400), ("HNL", 595, 750), ("SJU", 180, 300)):
        bounds = ask(
            f"SELECT min(sched_block_min), max(sched_block_min) FROM flights WHERE dest = '{dest}' AND {months}"
        )
        ((shortest, longest),) = bounds
        assert least <= shortest <= longest <= most, (dest, bounds)


def test_cancelled_and_incomplete_flights_are_told_apart(ask: Ask) -> None:
    assert ask("""
        SELECT count(*) FILTER (cancelled), count(*) FILTER (incomplete), count(*) FILTER (cancelled AND incomplete),
               count(*) FILTER (cancelled AND (dep_utc IS NOT NULL OR arr_utc IS NOT NULL)),
               count(*) FILTER (incomplete AND (dep_utc IS NULL OR arr_utc IS NOT NULL)),
               count(*) FILTER (tailnum IS NULL), count(*) FILTER (tailnum IS NULL AND NOT cancelled)
        FROM flights""") == [(8_255, 1_175, 0, 0, 0, 2_512, 0)]


# ------------------------------------------------------------------ legs, weather, spine


def test_legs_stand_in_the_order_in_which_their_outcome_became_known(sources: PreparedSources) -> None:
    legs = pq.read_table(sources.legs)
    assert legs.equals(legs.sort_by([("arr_utc", "ascending"), ("tailnum", "ascending"), ("dep_utc", "ascending")]))


def test_an_aircraft_leaves_once_at_a_time_and_lands_later(ask: Ask) -> None:
    counts = "count(*), count(DISTINCT (tailnum, dep_utc)), count(*) FILTER (arr_utc <= dep_utc)"
    assert ask(f"SELECT {counts} FROM legs") == [(327_346, 327_346, 0)]


def test_legs_that_overlap_are_the_known_few(ask: Ask) -> None:
    assert ask("""
        SELECT count(*), count(*) FILTER (leg_carrier = 'DL')
        FROM (SELECT *, lag(arr_utc) OVER (PARTITION BY tailnum ORDER BY dep_utc) AS former_ended FROM legs)
        WHERE dep_utc < former_ended""") == [(126, 120)]


def test_a_weather_hour_is_known_when_it_is_over_and_never_twice(ask: Ask) -> None:
    assert ask("""
        SELECT count(*), count(DISTINCT (origin, observed_hour)),
               count(*) FILTER (reported_at <> observed_hour + INTERVAL 1 HOUR),
               min(observed_hour)::VARCHAR, max(observed_hour)::VARCHAR
        FROM weather""") == [(26_115, 26_115, 0, "2013-01-01 06:00:00+00", "2013-12-30 23:00:00+00")]


def test_missing_weather_hours_are_the_known_ones(ask: Ask) -> None:
    hours = "generate_series(TIMESTAMPTZ '2013-01-01 06:00+00', TIMESTAMPTZ '2013-12-30 23:00+00', INTERVAL 1 HOUR)"
    missing = f"(SELECT origin, unnest({hours}) AS hour FROM (SELECT DISTINCT origin FROM weather)) m"
    gone = f"FROM {missing} ANTI JOIN weather w ON w.origin = m.origin AND w.observed_hour = m.hour"
    assert ask(f"SELECT origin, count(*) {gone} GROUP BY origin ORDER BY origin") == [
        ("EWR", 27),
        ("JFK", 24),
        ("LGA", 24),
    ]
    nights = "hour::DATE IN (DATE '2013-10-26', DATE '2013-11-03')"
    assert ask(
        f"SELECT hour::DATE::VARCHAR, count(DISTINCT hour), count(*) {gone} WHERE {nights} GROUP BY 1 ORDER BY 1"
    ) == [
        ("2013-10-26", 5, 15),
        ("2013-11-03", 5, 15),
    ]


def test_the_spine_has_each_completed_flight_once(ask: Ask) -> None:
    assert ask("""
        SELECT count(*), count(DISTINCT (as_of, carrier, flight)), sum(late::INTEGER),
               min(as_of)::VARCHAR, max(as_of)::VARCHAR
        FROM departures""") == [(327_346, 327_346, 77_630, "2013-01-01 10:15:00+00", "2014-01-01 04:59:00+00")]


def test_the_spine_stands_in_the_order_of_asking(sources: PreparedSources) -> None:
    spine = pq.read_table(sources.departures)
    assert spine.equals(
        spine.sort_by(
            [("as_of", "ascending"), ("carrier", "ascending"), ("flight", "ascending"), ("origin", "ascending")]
        )
    )


def test_the_spine_has_no_nulls(sources: PreparedSources) -> None:
    assert [column.null_count for column in pq.read_table(sources.departures).columns] == [0] * 11


def test_the_spine_agrees_with_the_published_flights(ask: Ask) -> None:
    assert ask("""
        SELECT count(*) FROM departures d JOIN raw_flights f
          ON f.carrier = d.carrier AND f.flight = d.flight AND f.time_hour + to_minutes(f.minute) = d.as_of
         AND f.origin = d.origin AND f.dest = d.dest AND f.tailnum = d.tailnum AND f.hour = d.sched_dep_hour
         AND f.distance = d.distance_mi AND (f.arr_delay > 15) = d.late
         AND isodow(make_date(f.year, f.month, f.day)) = d.day_of_week""") == [(327_346,)]


def test_aircraft_and_destinations_that_nobody_describes_stay_in_the_spine(ask: Ask) -> None:
    """The store answers NOT_FOUND for them; leaving them out would flatter the model."""
    assert ask("""
        SELECT count(*) FILTER (p.tailnum IS NULL), count(*) FILTER (a.dest IS NULL), count(DISTINCT (d.origin, d.dest))
        FROM departures d LEFT JOIN planes p USING (tailnum) LEFT JOIN airports a ON a.dest = d.dest""") == [
        (48_329, 7_537, 223)
    ]
