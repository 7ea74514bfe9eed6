"""What the model of late arrivals reads, in training and at each scheduled departure."""

from definitions.flights.aircraft import aircraft_register, previous_leg
from definitions.flights.airports import destination_airport
from definitions.flights.entities import OWNER
from definitions.flights.traffic import airport_traffic, carrier_traffic, route_traffic
from definitions.flights.weather import weather
from featurestore import FeatureService, Field, Int32

# Fills say what absence means: no gust is no wind to add, an aircraft without a known last leg was not late, a route
# without recent flights has sent nothing. Where absence says nothing (temperature, age), the matrix gets NaN.
departure_delay = FeatureService(
    name="departure_delay",
    features=[
        weather[
            ["temp_f", "humidity_pct", "wind_speed_mph", "wind_gust_mph", "precip_in", "pressure_mb", "visibility_mi"]
        ]
        .alias(wind_speed_mph="wind_mph", wind_gust_mph="gust_mph")
        .fill(wind_gust_mph=0.0),
        previous_leg[["dep_delay_min", "arr_delay_min", "late"]]
        .alias(dep_delay_min="prev_dep_delay", arr_delay_min="prev_arr_delay", late="prev_late")
        .fill(dep_delay_min=0.0, arr_delay_min=0.0, late=0.0),
        aircraft_register[["manufacture_year", "seats", "engine_type"]],
        carrier_traffic,
        route_traffic[["route_arrivals_7d", "route_arr_delay_mean_7d", "route_late_share_7d"]].fill(
            route_arrivals_7d=0.0
        ),
        airport_traffic[["airport_departures_3h", "airport_dep_delay_mean_3h", "airport_stalled_3h"]].fill(
            airport_departures_3h=0.0, airport_stalled_3h=0.0
        ),
        destination_airport[["altitude_ft", "utc_offset_hours"]].alias(altitude_ft="dest_altitude_ft"),
    ],
    request_fields=[
        Field(
            name="sched_dep_hour",
            dtype=Int32,
            nullable=False,
            ge=0,
            le=23,
            description="Hour of the scheduled departure, New York time.",
        ),
        Field(name="day_of_week", dtype=Int32, nullable=False, ge=1, le=7, description="1 is Monday, New York time."),
        Field(
            name="distance_mi", dtype=Int32, nullable=False, gt=0, le=6000, description="Miles between the airports."
        ),
        Field(
            name="sched_block_min",
            dtype=Int32,
            nullable=False,
            gt=0,
            le=1000,
            description="Minutes from scheduled departure to scheduled arrival.",
        ),
    ],
    owner=OWNER,
    tier="standard",
    description="Will this flight arrive more than 15 minutes late? Asked at its scheduled departure.",
    tags={"model": "late_arrival"},
)
