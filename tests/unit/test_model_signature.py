"""signature.json: what a model says of the features it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest

from featurestore import Entity, FeatureService, FeatureView, Field, FileSource, Float32, Float64, Int64, String
from featurestore.errors import InputError
from featurestore.fingerprint import service_signature
from featurestore.model_signature import FILE_NAME, ModelOutput, misfit, read_signature, sign, write_signature

DRIVER = Entity(name="driver", join_keys={"id": Int64})
LATE = ModelOutput("late", "FP32", (-1, 1))


def view(ttl: timedelta | None = None, **fields: Any) -> FeatureView:
    """A view of drivers with `trips` and `rank`, or the fields given."""
    declared = fields or {"trips": Float64, "rank": String}
    schema = [
        Field(name=name, dtype=dtype, allowed_values=["a", "b"] if dtype == String else None)
        for name, dtype in declared.items()
    ]
    source = FileSource(path="x.parquet", timestamp_field="at")
    return FeatureView(name="stats", entities=[DRIVER], schema=schema, source=source, ttl=ttl)


def service(stats: FeatureView, request: bool = True, **fills: float) -> FeatureService:
    """All of a view, and a request field."""
    request_fields = [Field(name="hour", dtype=Float32)] if request else []
    return FeatureService(
        name="ranking", features=[stats[list(stats.fields)].fill(**fills)], request_fields=request_fields
    )


def views(stats: FeatureView) -> Mapping[str, FeatureView]:
    """As the registry has them."""
    return {stats.ref: stats}


def test_a_signature_reads_as_it_was_written_and_is_json(tmp_path: Path) -> None:
    stats = view(timedelta(hours=2))
    written = sign(service(stats, trips=0.5), views(stats), [LATE], "d" * 64)
    path = write_signature(written, tmp_path)

    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [field["name"] for field in document["fields"]] == ["trips", "rank", "hour"]
    assert document["fill"] == {"trips": 0.5, "rank": None, "hour": None}
    assert document["outputs"] == [{"name": "late", "datatype": "FP32", "shape": [-1, 1]}]
    assert (document["format"], document["feature_service"], document["manifest_digest"]) == (1, "ranking", "d" * 64)
    assert document["signature"] == service_signature(service(stats, trips=0.5), views(stats))

    read = read_signature(tmp_path)
    assert isnan(read.fill["rank"])
    assert replace(read, fill={}) == replace(written, fill={})
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("fill", [float("inf"), float("-inf"), nan, -0.0, 1e300])
def test_every_fill_survives(tmp_path: Path, fill: float) -> None:
    stats = view()
    write_signature(sign(service(stats, trips=fill), views(stats), [LATE], ""), tmp_path)
    assert repr(read_signature(tmp_path).fill["trips"]) == repr(fill)


def test_the_same_service_fits_and_so_does_one_with_other_bounds_and_texts() -> None:
    stats = view()
    signed = sign(service(stats), views(stats), [LATE], "").document()
    described = replace(stats, description="Who drives.", owner="ops")
    assert misfit("late/1", signed, service(described), views(described)) is None


@pytest.mark.parametrize(
    ("stats", "request_field", "fills", "told"),
    [
        (view(trips=Float64), True, {}, "rank is gone"),
        (view(trips=Float64, rank=String, age=Float32), True, {}, "age is new"),
        (view(trips=Float32, rank=String), True, {}, "trips: dtype was 'float64' and is 'float32'"),
        (view(rank=String, trips=Float64), True, {}, "the order was trips, rank, hour and is rank, trips, hour"),
        (view(), True, {"trips": 1.0}, "trips: fill was None and is 1.0"),
        (view(timedelta(days=1)), True, {}, "trips: ttl_us was None and is 86400000000"),
        (view(), False, {}, "hour is gone"),
    ],
    ids=["removed", "added", "type", "order", "fill", "ttl", "request field"],
)
def test_a_service_that_differs_is_refused_with_the_field(
    stats: FeatureView, request_field: bool, fills: dict[str, float], told: str
) -> None:
    trained = view()
    signed = sign(service(trained), views(trained), [LATE], "").document()
    reason = misfit("late/1", signed, service(stats, request_field, **fills), views(stats))
    assert reason is not None
    assert told in reason
    assert "'late/1'" in reason
    assert "train it on this service" in reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no"),
        ("{", "cannot be read"),
        ("[]", "format 1"),
        ('{"format": 2}', "format 1"),
        ('{"format": 1, "feature_service": "a"}', "'signature'"),
        (
            '{"format": 1, "feature_service": "a", "signature": "b", "fields": [3], "fill": {}, "outputs": [], '
            '"manifest_digest": ""}',
            "another form",
        ),
    ],
)
def test_a_signature_that_cannot_be_used_is_refused_with_the_way_out(
    tmp_path: Path, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(InputError, match=f"{told}.*sign-model"):
        read_signature(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    stats = view()
    with pytest.raises(InputError, match="MODEL/VERSION"):
        write_signature(sign(service(stats), views(stats), [LATE], ""), tmp_path / "1")
