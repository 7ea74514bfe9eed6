"""Two fingerprints: the definition tells every change, the signature only those that models and clients notice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from featurestore import Entity, FeatureService, FeatureView, Field, FileSource, Float64, Int32, String
from featurestore.fingerprint import definition_fingerprint, service_signature

AIRPORT = Entity(name="airport", join_keys={"airport": String})
SKY = Field(name="sky", dtype=String, allowed_values=["clear", "cloudy"])
WEATHER = FeatureView(
    name="weather",
    entities=[AIRPORT],
    schema=[Field(name="temp", dtype=Float64), SKY],
    source=FileSource(path="w.csv", timestamp_field="t"),
    ttl=timedelta(hours=3),
)
SERVICE = FeatureService(
    name="late", features=[WEATHER[["temp", "sky"]]], request_fields=[Field(name="hour", dtype=Int32)]
)


def signature(service: FeatureService, view: FeatureView = WEATHER) -> str:
    return service_signature(service, {view.ref: view})


def with_sky(field: Field) -> FeatureView:
    return replace(WEATHER, schema=[WEATHER.schema[0], field])


KEEPING = {
    "bounds of a field": replace(WEATHER, schema=[replace(WEATHER.schema[0], ge=0.0), SKY]),
    "description of a view": replace(WEATHER, description="x"),
    "owner": replace(WEATHER, owner="x"),
    "freshness": replace(WEATHER, freshness=timedelta(hours=1)),
    "source": replace(WEATHER, source=FileSource(path="other.csv", timestamp_field="t")),
    "a new field that the service does not choose": replace(
        WEATHER, schema=[*WEATHER.schema, Field(name="wind", dtype=Float64)]
    ),
}
CHANGING_VIEW = {
    "ttl": replace(WEATHER, ttl=None),
    "dtype": replace(WEATHER, schema=[Field(name="temp", dtype=Int32), SKY]),
    "allowed values of a string, which are ordinals": with_sky(replace(SKY, allowed_values=["cloudy", "clear"])),
}
CHANGING_SERVICE = {
    "order": FeatureService(name="late", features=[WEATHER[["sky", "temp"]]], request_fields=SERVICE.request_fields),
    "output name": replace(SERVICE, features=[WEATHER[["temp", "sky"]].alias(temp="t")]),
    "fill": replace(SERVICE, features=[WEATHER[["temp", "sky"]].fill(temp=0.0)]),
    "request field": replace(SERVICE, request_fields=[]),
    "type of a request field": replace(SERVICE, request_fields=[Field(name="hour", dtype=Float64)]),
}


@pytest.mark.parametrize("what", KEEPING)
def test_signature_is_kept_by_changes_that_readers_do_not_notice(what: str) -> None:
    assert signature(SERVICE, KEEPING[what]) == signature(SERVICE)
    assert definition_fingerprint(KEEPING[what]) != definition_fingerprint(WEATHER)


@pytest.mark.parametrize("what", CHANGING_VIEW)
def test_signature_changes_with_what_the_columns_mean(what: str) -> None:
    assert signature(SERVICE, CHANGING_VIEW[what]) != signature(SERVICE)


@pytest.mark.parametrize("what", CHANGING_SERVICE)
def test_signature_changes_with_the_columns_themselves(what: str) -> None:
    assert signature(CHANGING_SERVICE[what]) != signature(SERVICE)
    assert definition_fingerprint(CHANGING_SERVICE[what]) != definition_fingerprint(SERVICE)


def test_signature_changes_with_the_pinned_version() -> None:
    second = replace(WEATHER, version=2)
    moved = replace(SERVICE, features=[second[["temp", "sky"]]])
    assert signature(moved, second) != signature(SERVICE)


def test_name_owner_and_policy_of_a_service_are_not_in_its_signature() -> None:
    other = replace(
        SERVICE,
        name="other",
        owner="x",
        on_stale="fail",
        description="x",
        tags={"a": "b"},
        tier="standard",
        links={"a": "https://a"},
    )
    assert signature(other) == signature(SERVICE)
    assert definition_fingerprint(other) != definition_fingerprint(SERVICE)


def test_the_description_of_an_entity_does_not_change_its_views() -> None:
    described = replace(WEATHER, entities=[replace(AIRPORT, description="x")])
    assert definition_fingerprint(described) == definition_fingerprint(WEATHER)
    rekeyed = replace(WEATHER, entities=[replace(AIRPORT, join_keys={"airport": Int32})])
    assert definition_fingerprint(rekeyed) != definition_fingerprint(WEATHER)


def test_fingerprints_stay_what_they_were_in_the_first_release() -> None:
    """Recorded fingerprints are compared with new ones for years; a change of this number is a change of format."""
    assert definition_fingerprint(AIRPORT) == "467ea222a81aca4ff9479d4566414850437ebcf0a30d7a3576205202280081cb"
    assert signature(SERVICE) == "adb8c58764c2a9ccff00ba565eb554dd32d9fb97b2d8ed23c909269d7a349497"
