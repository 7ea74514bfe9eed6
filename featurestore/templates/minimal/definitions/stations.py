"""Weather stations and what they measured: one entity, one feature view, one feature service."""

from datetime import timedelta

from featurestore import Entity, FeatureService, FeatureView, Field, FileSource, Float64, Int32, String

station = Entity(name="station", join_keys={"station": String}, description="A weather station.")

readings = FeatureView(
    name="readings",
    entities=[station],
    schema=[
        Field(name="temperature", dtype=Float64, ge=-90, le=60, description="Degrees Celsius."),
        Field(name="humidity", dtype=Int32, ge=0, le=100, description="Percent."),
    ],
    source=FileSource(path="sources/readings.csv", timestamp_field="measured_at"),
    ttl=timedelta(hours=12),
    owner="me",
    description="Hourly readings.",
)

comfort = FeatureService(
    name="comfort",
    features=[readings[["temperature", "humidity"]].fill(humidity=50)],
    description="What the comfort model reads.",
)
