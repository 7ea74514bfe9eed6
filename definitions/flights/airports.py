"""The airport at the other end."""

from datetime import timedelta

from definitions.flights.entities import OWNER, destination
from featurestore import FeatureView, Field, Float32, Int32, SqlSource, String

destination_airport = FeatureView(
    name="destination_airport",
    entities=[destination],
    schema=[
        Field(name="latitude", dtype=Float32, nullable=False, ge=13, le=71.5, description="Degrees north."),
        Field(name="longitude", dtype=Float32, nullable=False, ge=-180, le=180, description="Degrees east."),
        Field(name="altitude_ft", dtype=Int32, nullable=False, ge=-200, le=10000, description="Feet above the sea."),
        Field(
            name="utc_offset_hours",
            dtype=Int32,
            nullable=False,
            ge=-11,
            le=-4,
            description="Standard time less UTC; daylight saving left out.",
        ),
        Field(name="time_zone", dtype=String, pattern="(America|Pacific)/[A-Za-z_]+", description="IANA time zone."),
    ],
    source=SqlSource(
        query="""
            SELECT dest, surveyed_at, latitude::FLOAT AS latitude, longitude::FLOAT AS longitude,
                   altitude_ft, utc_offset_hours, time_zone
            FROM airports
            ORDER BY dest""",
        inputs={"airports": "data/airports.parquet"},
        timestamp_field="surveyed_at",
        description="Airfields of the United States; San Juan and three more in the Caribbean are missing.",
    ),
    ttl=None,
    owner=OWNER,
    tier="standard",
    # Three of 1,458 rows are elsewhere by mistake and set aside: DVT and MYF (Asia/Chongqing), EEN (72 degrees north).
    on_violation="quarantine",
    future_tolerance=timedelta(0),
    description="Where the destination lies.",
    tags={"domain": "geography"},
)
