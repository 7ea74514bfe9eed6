"""Weather at the airport of departure: the hour is the fact, the report comes at its end."""

from datetime import timedelta

from definitions.flights.entities import OWNER, airport
from featurestore import Condition, FeatureView, Field, FileSource, Float64, Int32, Volume

weather = FeatureView(
    name="weather",
    entities=[airport],
    schema=[
        Field(name="temp_f", dtype=Float64, ge=-60, le=130, description="Air temperature, Fahrenheit."),
        Field(name="dew_point_f", dtype=Float64, ge=-80, le=100, description="Dew point, Fahrenheit."),
        Field(name="humidity_pct", dtype=Float64, ge=0, le=100, description="Relative humidity."),
        Field(name="wind_dir_deg", dtype=Int32, ge=0, le=360, description="Where the wind blows from; null: variable."),
        Field(name="wind_speed_mph", dtype=Float64, ge=0, le=150, description="Mean wind; no airport saw 150 mph."),
        Field(name="wind_gust_mph", dtype=Float64, ge=0, le=200, description="Gusts; null when there were none."),
        Field(name="precip_in", dtype=Float64, nullable=False, ge=0, le=10, description="Precipitation of the hour."),
        Field(name="pressure_mb", dtype=Float64, ge=850, le=1100, description="Pressure at sea level; 10 % null."),
        Field(name="visibility_mi", dtype=Float64, nullable=False, ge=0, le=10, description="Visibility, at most 10."),
    ],
    source=FileSource(
        path="data/weather.parquet",
        timestamp_field="observed_hour",
        created_timestamp_column="reported_at",
        description="Hourly reports of the three airports; some hours are missing, and the last day of 2013 is.",
        links={"observations": "https://mesonet.agron.iastate.edu/request/download.phtml"},
    ),
    ttl=timedelta(hours=4),
    freshness=timedelta(hours=3),
    owner=OWNER,
    tier="standard",
    # One row in 26,115 breaks the contract: 1048 mph of wind at EWR on 12 February. It is set aside, the rest is used.
    on_violation="quarantine",
    conditions=[
        Condition(
            name="dew_point_is_not_above_temperature",
            sql="dew_point_f <= temp_f",
            description="Air that is cooled to its dew point is saturated: above the temperature it cannot lie.",
        ),
    ],
    # Three airports, an hour each; 26 October and 3 November lack five hours everywhere, 23 August six rows.
    volume=Volume(at_least=57, at_most=72, per=timedelta(days=1)),
    largest_gap=timedelta(hours=6),
    description="Hourly weather at the origin. The report of hour H is known at H + 1 h, so it is 1 to 2 hours old.",
    tags={"domain": "weather"},
)
