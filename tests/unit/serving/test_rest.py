"""The REST gateway answers what gRPC answers, refuses what gRPC refuses, and says how to do better."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal as Number
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from featurestore import Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, List, Status, String, Timestamp
from featurestore.arrow_types import arrow_type
from featurestore.dtypes import DType
from featurestore.errors import InputError, NotFoundError, PermissionDenied, ServingError, Unauthenticated
from featurestore_client import FeatureClient
from serving import rest as rest_module
from serving.rest import BODY_BYTES_MAX
from serving.rest_values import columns_from_json, json_values
from serving.telemetry import Telemetry
from tests.unit.serving.conftest import Backend
from tests.unit.serving.gateway import gateway
from tests.unit.serving.running import server
from tests.unit.serving.world import EVERY_TYPE, HOUR_US, NOW_US, matches_bits
from tests.waiting import WAIT_S

ROUTE = "/get-online-features"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One repository for all tests here: they only read."""
    with Backend.filled(tmp_path_factory.mktemp("backend")) as made:
        yield made


@pytest.fixture(scope="module")
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture(scope="module")
def rest(backend: Backend, telemetry: Telemetry) -> Iterator[httpx.Client]:
    with (
        gateway(backend.engine(), telemetry, backend.limits, push=backend.push_door()) as base,
        httpx.Client(base_url=base) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def grpc_client(backend: Backend) -> Iterator[FeatureClient]:
    with server(backend.engine()) as running, FeatureClient(running.target) as client:
        yield client


def ask(rest: httpx.Client, **body: Any) -> dict[str, Any]:
    reply = rest.post(ROUTE, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(rest: httpx.Client, status: int, **body: Any) -> dict[str, Any]:
    reply = rest.post(ROUTE, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    return reply.json()


def by_name(reply: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(zip(reply["metadata"]["feature_names"], reply["results"], strict=True))


# ---------------------------------------------------------------- the same answers


def test_every_type_is_the_same_value_as_over_grpc(rest: httpx.Client, grpc_client: FeatureClient) -> None:
    """What JSON holds, read back as the field's type, is gRPC's column bit for bit."""
    ids = [4, 3, 2, 1, 0, 99]
    table = grpc_client.get_online_features("all_types", {"id": ids}).to_arrow()

    columns = by_name(ask(rest, feature_service="all_types", entities={"id": ids}))

    assert columns.pop("id")["values"] == ids
    assert list(columns) == table.column_names
    for field, _ in EVERY_TYPE:
        read = columns_from_json({field.name: columns[field.name]["values"]}, {field.name: field.dtype})
        assert matches_bits(read[field.name], table[field.name].combine_chunks()), field.name


def test_statuses_times_and_reasons_are_those_of_grpc(
    backend: Backend, rest: httpx.Client, grpc_client: FeatureClient
) -> None:
    entities = {"origin": ["JFK", "ZZZ", "JFK", None], "number": [2, 1, 1, 1], "hour": [1, 2, 3, 4]}
    keys = {name: entities[name] for name in ("origin", "number")}
    reply = grpc_client.get_online_features("departures", keys, request={"hour": entities["hour"]})

    answered = ask(rest, feature_service="departures", entities=entities, max_age_s=1800)

    columns = by_name(answered)
    assert list(columns) == ["origin", "number", "temp", "wind", "delay", "delay_temp", "hour"]
    weather = [Status(number).name for number in reply.statuses["weather@1"].tolist()]
    assert columns["temp"]["statuses"] == columns["wind"]["statuses"] == weather
    assert columns["delay"]["statuses"] == ["STALE", "NOT_FOUND", "STALE", "NOT_FOUND"]
    assert columns["delay"]["stale_reasons"] == ["MAX_AGE", "NONE", "MAX_AGE", "NONE"]
    assert "stale_reasons" not in columns["temp"]
    assert columns["origin"]["statuses"] == columns["hour"]["statuses"] == ["PRESENT"] * 4
    hour_ago, epoch = datetime.fromtimestamp((NOW_US - HOUR_US) / 1e6, UTC), datetime(1970, 1, 1, tzinfo=UTC)
    read = [datetime.fromisoformat(text) for text in columns["delay"]["event_timestamps"]]
    assert read == [hour_ago, epoch, hour_ago, epoch]
    assert answered["metadata"]["degraded_rows"] == 2
    assert answered["metadata"]["served_at"] == "2013-12-01T12:00:00.000000Z"


def test_features_are_named_one_by_one_and_in_full(rest: httpx.Client) -> None:
    body = {"features": ["weather:wind", "delays@2:delay"], "entities": {"origin": ["JFK"], "number": [1]}}

    plain, full = ask(rest, **body), ask(rest, **body, full_feature_names=True)

    assert plain["metadata"]["feature_names"] == ["origin", "number", "wind", "delay"]
    assert full["metadata"]["feature_names"] == ["origin", "number", "weather__wind", "delays__delay"]


def test_no_rows_are_no_rows(rest: httpx.Client) -> None:
    columns = by_name(ask(rest, feature_service="airport_now", entities={"origin": []}))
    assert [column["values"] for column in columns.values()] == [[]] * 4


# ---------------------------------------------------------------- values as JSON

WRITTEN: list[tuple[DType, Any, Any]] = [
    (Int64, 2**53 - 1, 2**53 - 1),
    (Int64, 2**53, "9007199254740992"),
    (Int64, -(2**53) + 1, -(2**53) + 1),
    (Int64, -(2**53), "-9007199254740992"),
    (List(Int64), [1, 2**62], [1, "4611686018427387904"]),
    (Float64, math.nan, "NaN"),
    (Float64, -math.inf, "-Infinity"),
    (Float32, math.inf, "Infinity"),
    (Float64, 0.1, 0.1),
    (Float32, 0.1, 0.10000000149011612),
    (Decimal(20, 10), Number(0), "0.0000000000"),
    (Decimal(38, 4), Number("-1.2345"), "-1.2345"),
    (Bytes, b"\x00\xff", "AP8="),
    (Timestamp, datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
    (Date, date(9999, 12, 31), "9999-12-31"),
    (Bool, True, True),
    (String, "ü\n𝄞", "ü\n𝄞"),
]


@pytest.mark.parametrize(("dtype", "value", "written"), WRITTEN, ids=lambda value: str(value))
def test_values_are_written_so_that_no_reader_of_json_changes_them(dtype: DType, value: Any, written: Any) -> None:
    array = pa.array([value, None], arrow_type(dtype))

    text = json_values(array, dtype)

    assert text == [written, None]
    assert json.loads(json.dumps(text, allow_nan=False)) == text
    assert matches_bits(columns_from_json({"x": text}, {"x": dtype})["x"], array)


REFUSED: list[tuple[DType, Any]] = [
    (Int32, 2**31),
    (Int64, 2**63),
    (Int64, 1.0),
    (Int64, True),
    (Int64, "1e3"),
    (Int64, "9" * 5000),
    (Float64, True),
    (Float64, "1.5"),
    (Float64, 2**53 + 1),
    (Float64, 10**400),
    (Float32, 1e39),
    (Bool, 1),
    (String, 1),
    (String, "\ud800"),
    (Bytes, "not base64"),
    (Timestamp, "2013-12-01T05:00:00"),
    (Timestamp, "2013-12-01T05:00:00.1234567Z"),
    (Timestamp, "2013-13-01T05:00:00Z"),
    (Timestamp, "0001-01-01T00:00:00+14:00"),
    (Timestamp, 0),
    (Date, "2013-W01-1"),
    (Date, "2013-02-30"),
    (Decimal(5, 2), 1.5),
    (Decimal(5, 2), "1.555"),
    (Decimal(5, 2), "12345"),
    (Decimal(5, 2), "NaN"),
    (Decimal(5, 2), "1E+999999"),
    (List(Int32), 1),
    (List(Int32), ["a"]),
    (Int32, [1]),
]


@pytest.mark.parametrize(("dtype", "value"), REFUSED, ids=lambda value: str(value)[:40].encode("ascii", "replace"))
def test_values_that_are_not_exactly_of_the_type_are_refused(dtype: DType, value: Any) -> None:
    with pytest.raises(InputError, match="entity 'x'"):
        columns_from_json({"x": [None, value]}, {"x": dtype})


def test_a_number_in_text_is_the_nearest_of_its_type() -> None:
    read = columns_from_json({"x": [0.1, 1]}, {"x": Float32})["x"]
    assert read.to_numpy().tobytes() == np.array([0.1, 1], np.float32).tobytes()


# ---------------------------------------------------------------- refusals

REFUSALS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "unknown service": (
        404, "NOT_FOUND", "did you mean 'departures'", {"feature_service": "departure", "entities": {}},
    ),
    "unknown field": (404, "NOT_FOUND", "did you mean 'temp'", {"features": ["weather:tmp"], "entities": {}}),
    "no features": (400, "INVALID_ARGUMENT", "name a service, or features", {"entities": {"origin": ["JFK"]}}),
    "both": (
        400, "INVALID_ARGUMENT", "set one of them",
        {"feature_service": "airport_now", "features": ["weather:temp"], "entities": {"origin": ["JFK"]}},
    ),
    "too many features": (
        400, "INVALID_ARGUMENT", "at most 10 fit one request",
        {"features": ["weather:temp"] * 11, "entities": {"origin": ["JFK"]}},
    ),
    "too many rows": (
        400, "INVALID_ARGUMENT", "at most 2000 fit one request",
        {"feature_service": "airport_now", "entities": {"origin": ["JFK"] * 2001}},
    ),
    "lengths": (
        400, "INVALID_ARGUMENT", "one value per row in each",
        {"features": ["delays:delay"], "entities": {"origin": ["JFK"], "number": [1, 2]}},
    ),
    "missing key": (400, "INVALID_ARGUMENT", "it takes: origin", {"feature_service": "airport_now", "entities": {}}),
    "unknown key": (
        400, "INVALID_ARGUMENT", "did you mean 'origin'",
        {"feature_service": "airport_now", "entities": {"orign": ["JFK"]}},
    ),
    "type of a key": (
        400, "INVALID_ARGUMENT", "entity 'origin', row 1: a string is written as a string",
        {"feature_service": "airport_now", "entities": {"origin": ["JFK", 1]}},
    ),
    "contract of a request field": (
        400, "INVALID_ARGUMENT", "breaks its contract",
        {"feature_service": "departures", "entities": {"origin": ["JFK"], "number": [1], "hour": [24]}},
    ),
    "unknown member": (400, "INVALID_ARGUMENT", "body.colour", {"feature_service": "x", "entities": {}, "colour": 1}),
    "not a list": (400, "INVALID_ARGUMENT", "body.entities.origin", {"features": [], "entities": {"origin": "JFK"}}),
    "max_age": (400, "INVALID_ARGUMENT", "body.max_age_s", {"feature_service": "x", "entities": {}, "max_age_s": 0}),
    "half a character": (404, "NOT_FOUND", "no feature service", {"feature_service": "\ud800", "entities": {}}),
}  # fmt: skip


@pytest.mark.parametrize(("status", "code", "words", "body"), REFUSALS.values(), ids=REFUSALS)
def test_bad_requests_get_the_status_of_their_grpc_code_and_the_way_out(
    rest: httpx.Client, status: int, code: str, words: str, body: dict[str, Any]
) -> None:
    told = refused(rest, status, **body)

    assert (told["status"], told["code"], told["retryable"]) == (status, code, False)
    assert words in told["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"1" * 5_000, b"\xff\xfe", b"null", b'{"entities": NaN}'])
def test_bodies_that_are_no_request_are_the_callers_fault(rest: httpx.Client, body: bytes) -> None:
    reply = rest.post(ROUTE, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["code"] == "INVALID_ARGUMENT"


def test_a_body_of_another_type_is_told_what_to_send(rest: httpx.Client) -> None:
    reply = rest.post(ROUTE, content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 400
    assert "content-type must say application/json" in reply.json()["detail"]


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(rest: httpx.Client) -> None:
    at_limit = rest.post(ROUTE, content=b" " * BODY_BYTES_MAX, headers={"content-type": "application/json"})
    beyond = rest.post(ROUTE, content=b" " * (BODY_BYTES_MAX + 1), headers={"content-type": "application/json"})

    assert at_limit.status_code == 400
    assert (beyond.status_code, beyond.json()["code"]) == (413, "RESOURCE_EXHAUSTED")
    assert "split the request" in beyond.json()["detail"]


def test_other_paths_and_methods_are_problems_too(rest: httpx.Client) -> None:
    nowhere, wrong = rest.get("/features"), rest.get(ROUTE)

    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "/docs" in wrong.json()["detail"]


def test_a_defect_is_told_by_its_request_id_alone(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = backend.engine()
    monkeypatch.setattr(engine, "respond", lambda request: dict[str, int]()["hunter2"])
    with (
        caplog.at_level(logging.ERROR),
        gateway(engine, Telemetry(), backend.limits) as base,
        httpx.Client(base_url=base) as rest,
    ):
        told = refused(rest, 500, feature_service="airport_now", entities={"origin": ["JFK"]})

    assert told["code"] == "INTERNAL"
    assert told["request_id"] in told["detail"]
    assert "hunter2" not in json.dumps(told)
    assert any(told["request_id"] in record.getMessage() for record in caplog.records)


# ---------------------------------------------------------------- callers


class Guest:
    """A caller that may read weather, and know of it."""

    def require_read(self, service: str, features: Sequence[str] = ()) -> None:
        if service or any(not name.startswith("weather:") for name in features):
            raise ServingError("not for guests")

    def require_push(self, view: str) -> None:
        raise PermissionDenied("not for guests")

    def require_operate(self) -> None:
        raise ServingError("not for guests")

    def discreet(self, error: NotFoundError) -> NotFoundError:
        return NotFoundError(error.kind, error.name, ["weather@1"])


async def guests_only(authorization: Sequence[str]) -> Guest:
    if authorization != ["Bearer guest"]:
        raise InputError("show your invitation")
    return Guest()


def test_nothing_is_told_to_a_caller_before_it_is_known_and_allowed(backend: Backend) -> None:
    weather = {"features": ["weather:temp"], "entities": {"origin": ["JFK"]}}
    with gateway(backend.engine(), Telemetry(), backend.limits, guests_only) as base:
        with httpx.Client(base_url=base) as stranger:
            refused(stranger, 400, **weather)
            assert stranger.get("/metrics").status_code == 400
            assert stranger.get("/health").status_code == 200
        with httpx.Client(base_url=base, headers={"authorization": "Bearer guest"}) as guest:
            ask(guest, **weather)
            refused(guest, 409, feature_service="departures", entities={})
            refused(guest, 409, feature_service="nobody", entities={})
            assert guest.get("/metrics").status_code == 409
            unknown = refused(guest, 404, features=["weather:temp", "weather:tmp"], entities={"origin": ["JFK"]})
            assert "known: weather@1" in unknown["detail"]


async def nobody_known(authorization: Sequence[str]) -> Guest:
    raise Unauthenticated("say who you are")


def test_a_refusal_outside_of_lookups_has_an_id_in_the_log_too_and_names_the_scheme(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO),
        gateway(backend.engine(), Telemetry(), backend.limits, nobody_known) as base,
    ):
        reply = httpx.get(f"{base}/metrics")
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert reply.json()["request_id"] in caplog.text


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_module, "TIMEOUT_S", 0.2)
    with gateway(backend.engine(), Telemetry(), backend.limits) as base:
        address = httpx.URL(base)
        with socket.create_connection((address.host, address.port), timeout=WAIT_S) as sender:
            head = "POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            sender.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
            assert sender.recv(100).startswith(b"HTTP/1.1 504 ")


# ---------------------------------------------------------------- around it


def test_the_callers_request_id_comes_back(rest: httpx.Client) -> None:
    body = {"feature_service": "airport_now", "entities": {"origin": ["JFK"]}}
    given = rest.post(ROUTE, json=body, headers={"x-request-id": "mine-1"}).headers["x-request-id"]
    made = {rest.post(ROUTE, json=body).headers["x-request-id"] for _ in range(3)}

    assert given == "mine-1"
    assert len(made) == 3


def test_requests_are_counted_like_those_of_grpc(rest: httpx.Client, telemetry: Telemetry) -> None:
    before = telemetry.metrics.snapshot().values.get("featurestore_requests", {})
    ask(rest, feature_service="airport_now", entities={"origin": ["JFK"]})
    refused(rest, 400, feature_service="airport_now", entities={})
    after = telemetry.metrics.snapshot().values["featurestore_requests"]

    for code in ("OK", "INVALID_ARGUMENT"):
        labels = (ROUTE, "airport_now", code)
        assert after[labels] == before.get(labels, 0) + 1  # type: ignore[operator]  # a counter is a number
    text = rest.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert 'method="/get-online-features",project="",service="airport_now"' in text.text


def test_the_page_of_what_there_is_to_call_needs_no_network(rest: httpx.Client) -> None:
    shown = rest.get("/docs")
    assert shown.headers["content-type"].startswith("text/html")
    page = shown.text
    assert not [word for word in ("http:", "https:", "src=", "<script", "<link", "@import") if word in page]
    assert f"POST {ROUTE}" in page
    assert "GET /ready" in page
    assert "max_age_s" in page
    assert "Rows whose event is older are STALE, in seconds." in page
    assert "&quot;online&quot; or &quot;offline&quot; or &quot;online_and_offline&quot;" in page
    links = set(re.findall(r'href="([^"]*)"', page)) - {"/openapi.json"}
    assert links
    assert {link.removeprefix("#") for link in links} <= set(re.findall(r'id="([^"]*)"', page)), "links lead nowhere"


def test_health_readiness_and_documentation_are_served(rest: httpx.Client) -> None:
    assert rest.get("/health").json() == {"status": "ok"}
    assert rest.get("/ready").json() == {"status": "ready"}
    paths = rest.get("/openapi.json").json()["paths"]
    assert set(paths) == {ROUTE, "/push", "/predict", "/health", "/ready", "/metrics"}
    for route in (ROUTE, "/push"):
        responses = paths[route]["post"]["responses"]
        assert "422" not in responses
        assert all(
            "application/problem+json" in responses[status]["content"] for status in responses if status != "200"
        )


def test_bytes_travel_in_base64_both_ways() -> None:
    read = columns_from_json({"x": [base64.b64encode(b"\x01\x02").decode()]}, {"x": Bytes})["x"]
    assert read.to_pylist() == [b"\x01\x02"]
