"""How flying goes of late: rolling sums over the flights of an airline, a route, an airport.

Every row has the end of an hour as its event time and counts only what had happened by then: a departure delay from
the minute of departure, an arrival delay from the minute of arrival at the gate. Nobody can tell from the data when a
flight was cancelled, so cancellations are seen as anybody at the gate sees them: an hour after its schedule the flight
has still not left ("stalled": cancelled or very late). A row is written for each hour in which something happened
that the view counts.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from string import Template

from definitions.flights.entities import OWNER, airport, carrier, route
from featurestore import FeatureView, Field, Float64, Int32, SqlSource

# What can happen to a flight, each with the columns departures, dep_delay, arrivals, arr_delay, late, due, stalled.
_DEPARTURES = """
    SELECT *, dep_utc AS happened_at, 1 AS departures, dep_delay_min AS dep_delay,
           0 AS arrivals, 0 AS arr_delay, 0 AS late, 0 AS due, 0 AS stalled
    FROM flights WHERE dep_utc IS NOT NULL"""
_ARRIVALS = """
    SELECT *, arr_utc AS happened_at, 0 AS departures, 0 AS dep_delay,
           1 AS arrivals, arr_delay_min AS arr_delay, (arr_delay_min > 15)::INTEGER AS late, 0 AS due, 0 AS stalled
    FROM flights WHERE arr_utc IS NOT NULL"""
_DUE = """
    SELECT *, sched_dep_utc + INTERVAL 1 HOUR AS happened_at, 0 AS departures, 0 AS dep_delay,
           0 AS arrivals, 0 AS arr_delay, 0 AS late, 1 AS due, (cancelled OR dep_delay_min > 60)::INTEGER AS stalled
    FROM flights"""

# Sums are of integers and each mean is one division, so the order of the rows cannot show in the last digit. Windows
# are given in hours: a day would follow the clock changes of the session's time zone.
_ROLLING = Template("""
WITH events AS ($events
), hourly AS (
    SELECT $keys, time_bucket(INTERVAL 1 HOUR, happened_at) + INTERVAL 1 HOUR AS hour_end,
           sum(departures) AS departures, sum(dep_delay) AS dep_delay, sum(arrivals) AS arrivals,
           sum(arr_delay) AS arr_delay, sum(late) AS late, sum(due) AS due, sum(stalled) AS stalled
    FROM events GROUP BY $keys, hour_end
), rolling AS (
    SELECT $keys, hour_end,
           sum(departures) OVER recent AS departures, sum(dep_delay) OVER recent AS dep_delay,
           sum(arrivals) OVER recent AS arrivals, sum(arr_delay) OVER recent AS arr_delay,
           sum(late) OVER recent AS late, sum(due) OVER recent AS due, sum(stalled) OVER recent AS stalled
    FROM hourly
    WINDOW recent AS (
        PARTITION BY $keys ORDER BY hour_end RANGE BETWEEN INTERVAL $earlier_hours HOUR PRECEDING AND CURRENT ROW
    )
)
SELECT $keys, hour_end, $features FROM rolling ORDER BY hour_end, $keys""")


def _rolling(*, keys: str, window: timedelta, events: Sequence[str], features: Mapping[str, str]) -> SqlSource:
    """The features (name -> SQL over the rolling sums) of the `window` that ends with each hour."""
    hours = window // timedelta(hours=1)
    return SqlSource(
        query=_ROLLING.substitute(
            events="\n    UNION ALL".join(events),
            keys=keys,
            earlier_hours=hours - 1,
            features=", ".join(f"{expression} AS {name}" for name, expression in features.items()),
        ),
        inputs={"flights": "data/flights.parquet"},
        timestamp_field="hour_end",
        description=f"Flights of the last {hours} hours, hour by hour.",
    )


def _mean(total: str, count: str) -> str:
    return f"{total}::BIGINT / nullif({count}::BIGINT, 0)"


carrier_traffic = FeatureView(
    name="carrier_traffic",
    entities=[carrier],
    schema=[
        Field(
            name="carrier_departures_24h", dtype=Int32, nullable=False, ge=0, le=1000, description="Flights that left."
        ),
        Field(
            name="carrier_dep_delay_mean_24h",
            dtype=Float64,
            ge=-60,
            le=1440,
            description="Mean departure delay of these, in minutes; null when none left.",
        ),
        Field(
            name="carrier_arr_delay_mean_24h",
            dtype=Float64,
            ge=-120,
            le=1440,
            description="Mean arrival delay of the flights that arrived, in minutes; null when none did.",
        ),
        Field(
            name="carrier_stalled_share_24h",
            dtype=Float64,
            ge=0,
            le=1,
            description="Share of the flights due to have left an hour ago which then had not; null when none was due.",
        ),
    ],
    source=_rolling(
        keys="carrier",
        window=timedelta(hours=24),
        events=[_DEPARTURES, _ARRIVALS, _DUE],
        features={
            "carrier_departures_24h": "departures::INTEGER",
            "carrier_dep_delay_mean_24h": _mean("dep_delay", "departures"),
            "carrier_arr_delay_mean_24h": _mean("arr_delay", "arrivals"),
            "carrier_stalled_share_24h": _mean("stalled", "due"),
        },
    ),
    ttl=timedelta(hours=24),
    freshness=timedelta(hours=6),
    owner=OWNER,
    tier="standard",
    on_violation="reject",
    description="The airline's last 24 hours out of New York. True at the end of an hour, and known then.",
    tags={"domain": "traffic"},
)

route_traffic = FeatureView(
    name="route_traffic",
    entities=[route],
    schema=[
        Field(
            name="route_arrivals_7d", dtype=Int32, nullable=False, ge=1, le=1000, description="Flights that arrived."
        ),
        Field(
            name="route_arr_delay_mean_7d",
            dtype=Float64,
            nullable=False,
            ge=-120,
            le=1440,
            description="Mean arrival delay of these, in minutes.",
        ),
        Field(
            name="route_late_share_7d",
            dtype=Float64,
            nullable=False,
            ge=0,
            le=1,
            description="Share of these more than 15 minutes late.",
        ),
    ],
    source=_rolling(
        keys="origin, dest",
        window=timedelta(days=7),
        events=[_ARRIVALS],
        features={
            "route_arrivals_7d": "arrivals::INTEGER",
            "route_arr_delay_mean_7d": _mean("arr_delay", "arrivals"),
            "route_late_share_7d": _mean("late", "arrivals"),
        },
    ),
    ttl=timedelta(days=7),
    freshness=timedelta(hours=6),
    owner=OWNER,
    tier="standard",
    on_violation="reject",
    description="The route's seven days up to its latest arrival. True at the end of an hour, and known then.",
    tags={"domain": "traffic"},
)

airport_traffic = FeatureView(
    name="airport_traffic",
    entities=[airport],
    schema=[
        Field(
            name="airport_departures_3h", dtype=Int32, nullable=False, ge=0, le=300, description="Flights that left."
        ),
        Field(
            name="airport_dep_delay_mean_3h",
            dtype=Float64,
            ge=-60,
            le=1440,
            description="Mean departure delay of these, in minutes; null when none left.",
        ),
        Field(
            name="airport_stalled_3h",
            dtype=Int32,
            nullable=False,
            ge=0,
            le=300,
            description="Flights due to have left an hour ago which then had not.",
        ),
    ],
    source=_rolling(
        keys="origin",
        window=timedelta(hours=3),
        events=[_DEPARTURES, _DUE],
        features={
            "airport_departures_3h": "departures::INTEGER",
            "airport_dep_delay_mean_3h": _mean("dep_delay", "departures"),
            "airport_stalled_3h": "stalled::INTEGER",
        },
    ),
    ttl=timedelta(hours=3),
    freshness=timedelta(hours=6),
    owner=OWNER,
    tier="standard",
    on_violation="reject",
    description="The last three hours at the airport of departure; it expires when three hours are quiet.",
    tags={"domain": "traffic"},
)
