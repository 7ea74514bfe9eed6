"""Definitions of every kind, with a rule of every kind: what is applied before the changes of `evolution_cases.py`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from featurestore import (
    Condition,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Float64,
    Int32,
    Reference,
    SqlSource,
    String,
    Volume,
)
from featurestore.registry.definitions import Definitions

AIRPORT = Entity(name="airport", join_keys={"airport": String})
FILE = FileSource(path="w.csv", timestamp_field="t", created_timestamp_column="c", timezone="America/New_York")
SQL = SqlSource(query="SELECT 1", inputs={"a": "a.csv"}, timestamp_field="t")
TEMP = Field(name="temp", dtype=Float64, ge=-90.0, le=60.0, allow_nan=True)
COUNT = Field(name="count", dtype=Int32, nullable=False, gt=0, lt=100, default=1)
WIND = Field(name="wind", dtype=Float64, ge=0.0)
#: No service reads it.
CODE = Field(name="code", dtype=String, allowed_values=["a", "b"])
SKY = Field(name="sky", dtype=String, allowed_values=["clear", "cloudy"], min_length=2, max_length=9, pattern="[a-z]+")
WARM = Condition(name="warm", sql="temp > wind")
PLACES = FeatureView(
    name="places", entities=[AIRPORT], schema=[Field(name="height", dtype=Int32)], source=SQL, unique=True
)
KNOWN = Reference(view=PLACES)
DAILY = Volume(per=timedelta(days=1), at_least=20, at_most=30)
WEATHER = FeatureView(
    name="weather",
    entities=[AIRPORT],
    schema=[TEMP, COUNT, SKY, WIND, CODE],
    source=FILE,
    ttl=timedelta(hours=3),
    freshness=timedelta(hours=1),
    conditions=[WARM],
    references=[KNOWN],
    future_tolerance=timedelta(hours=1),
    volume=DAILY,
    largest_gap=timedelta(hours=2),
    max_breach_share=0.1,
)
#: Reads by SQL, and its field `late` is younger than its first rows.
DELAYS = FeatureView(
    name="delays", entities=[AIRPORT], schema=[COUNT, Field(name="late", dtype=Int32, default=0)], source=SQL
)
HOUR = Field(name="hour", dtype=Int32, ge=0, le=23)
MODEL = FeatureService(
    name="model",
    features=[WEATHER[["temp", "sky"]].alias(sky="clouds").fill(temp=0.0), DELAYS[["count"]]],
    request_fields=[HOUR],
)
#: What is applied before each change; rows of `delays` were first written without `late`.
APPLIED = Definitions(
    entities={AIRPORT.name: AIRPORT},
    views={view.ref: view for view in (WEATHER, DELAYS, PLACES)},
    services={MODEL.name: MODEL},
)
ROW_SCHEMAS: Mapping[str, Mapping[int, tuple[Field, ...]]] = {
    WEATHER.ref: {1: tuple(WEATHER.schema)},
    DELAYS.ref: {1: (COUNT,), 2: tuple(DELAYS.schema)},
    PLACES.ref: {1: tuple(PLACES.schema)},
}
