"""Pushes over REST: Feast's request, a verdict per row, and the refusals that gRPC gives."""

from __future__ import annotations

import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from featurestore.settings_access import TlsSettings
from serving.access.principal import Grant, Names, Principal
from serving.admission import Admission, Rooms
from serving.rest import BODY_BYTES_MAX
from serving.telemetry import Telemetry
from tests.unit.serving.conftest import Backend
from tests.unit.serving.gateway import gateway
from tests.unit.serving.world import EVERY_TYPE, VALUES
from tests.waiting import until

ROUTE = "/push"
#: Within the hour before the clock of the world, which stands at 12:00.
TIMES = ["2013-12-01T11:30:00Z", "2013-12-01T11:45:00.000001+00:00"]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with Backend.filled(tmp_path_factory.mktemp("backend")) as made:
        yield made


@pytest.fixture(scope="module")
def rest(backend: Backend) -> Iterator[httpx.Client]:
    with (
        gateway(backend.engine(), Telemetry(), backend.limits, push=backend.push_door()) as base,
        httpx.Client(base_url=base) as client,
    ):
        yield client


def rows(*origins: str | None, **changes: Any) -> dict[str, Any]:
    count = len(origins)
    columns = {"origin": list(origins), "time": TIMES[:1] * count, "temp": [1.5] * count, "wind": [0.5] * count}
    return {**columns, "sky": ["rain"] * count, **changes}


def push(rest: httpx.Client, df: dict[str, Any], **more: Any) -> dict[str, Any]:
    reply = rest.post(ROUTE, json={"push_source_name": "weather", "df": df, **more})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_a_pushed_row_is_served_at_once_and_known_when_it_is_sent_again(rest: httpx.Client) -> None:
    """The time is written otherwise, and is the same time; a column that the view has not is left alone."""
    first = push(rest, rows("AAA", "BBB", time=TIMES), to="online_and_offline")
    again = push(rest, rows("BBB", "AAA", time=["2013-12-01T12:45:00.000001+01:00", TIMES[0]], other=[1, 2]))

    assert first == {
        "view": "weather@1", "statuses": ["ACCEPTED", "ACCEPTED"], "rejections": [], "pending_reason": "",
    }  # fmt: skip
    assert again["statuses"] == ["DUPLICATE", "DUPLICATE"]
    assert push(rest, rows("AAA", temp=[2.5]))["statuses"] == ["CORRECTION"]
    body = {"feature_service": "airport_now", "entities": {"origin": ["AAA", "BBB"]}}
    temp = rest.post("/get-online-features", json=body).json()["results"][1]
    assert (temp["values"], temp["statuses"]) == ([2.5, 1.5], ["PRESENT", "PRESENT"])
    assert temp["event_timestamps"][1] == "2013-12-01T11:45:00.000001Z"


def test_each_row_is_judged_by_itself(rest: httpx.Client) -> None:
    answer = push(rest, rows("CCC", None, "DDD", "EEE", sky=["rain", "rain", "hail", None]))

    assert answer["statuses"] == ["ACCEPTED", "REJECTED", "REJECTED", "ACCEPTED"]
    told = [(row["row"], row["field"], row["rule"], row["value"]) for row in answer["rejections"]]
    assert told == [(1, "origin", "not_null", "null"), (2, "sky", "allowed_values", '"hail"')]
    assert all(row["reason"] for row in answer["rejections"])


def test_every_type_comes_back_as_it_was_pushed(rest: httpx.Client) -> None:
    """Decimals, bytes, lists and what JSON has no number for; in the text that replies have."""
    ids = [100 + row for row in range(len(VALUES["bool_"]))]
    body = {"feature_service": "all_types", "entities": {"id": list(range(len(ids)))}}
    reply = rest.post("/get-online-features", json=body).json()
    given = dict(zip(reply["metadata"]["feature_names"], reply["results"], strict=True))
    df = {field.name: given[field.name]["values"] for field, _ in EVERY_TYPE}

    pushed = rest.post(
        ROUTE, json={"push_source_name": "everything@1", "df": {**df, "id": ids, "time": TIMES[:1] * len(ids)}}
    )

    assert pushed.json()["statuses"] == ["ACCEPTED"] * len(ids), pushed.text
    body["entities"] = {"id": ids}
    again = rest.post("/get-online-features", json=body).json()
    read = dict(zip(again["metadata"]["feature_names"], again["results"], strict=True))
    assert {name: read[name]["values"] for name in df} == df


def test_no_rows_are_no_rows(rest: httpx.Client) -> None:
    assert push(rest, rows())["statuses"] == []


REFUSALS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "unknown view": (404, "NOT_FOUND", "did you mean 'weather@1'", {"push_source_name": "wether", "df": rows("A")}),
    "no view": (400, "INVALID_ARGUMENT", "body.push_source_name", {"push_source_name": "", "df": rows("A")}),
    "no rows": (400, "INVALID_ARGUMENT", "body.df", {"push_source_name": "weather"}),
    "missing column": (
        400, "INVALID_ARGUMENT", "lacks the column 'wind'",
        {"push_source_name": "weather", "df": {k: v for k, v in rows("A").items() if k != "wind"}},
    ),
    "type": (
        400, "INVALID_ARGUMENT", "column 'temp', row 1: a float32 is written as a number",
        {"push_source_name": "weather", "df": rows("A", "B", temp=[1, "warm"])},
    ),
    "time without a zone": (
        400, "INVALID_ARGUMENT", "column 'time', row 0",
        {"push_source_name": "weather", "df": rows("A", time=["2013-12-01T11:00:00"])},
    ),
    "lengths": (
        400, "INVALID_ARGUMENT", "different lengths", {"push_source_name": "weather", "df": rows("A", temp=[1, 2])},
    ),
    "too many rows": (
        400, "INVALID_ARGUMENT", "at most 2000", {"push_source_name": "weather", "df": rows(*["A"] * 2_001)},
    ),
    "offline": (
        400, "INVALID_ARGUMENT", "online_and_offline",
        {"push_source_name": "weather", "df": rows("A"), "to": "offline"},
    ),
    "nowhere": (400, "INVALID_ARGUMENT", "body.to", {"push_source_name": "weather", "df": rows("A"), "to": "there"}),
    "unknown member": (400, "INVALID_ARGUMENT", "body.colour", {"push_source_name": "weather", "df": {}, "colour": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("status", "code", "words", "body"), REFUSALS.values(), ids=REFUSALS)
def test_bad_requests_get_the_status_of_their_grpc_code_and_the_way_out(
    rest: httpx.Client, status: int, code: str, words: str, body: dict[str, Any]
) -> None:
    reply = rest.post(ROUTE, json=body)

    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.json()["code"], reply.json()["retryable"]) == (code, False)
    assert words in reply.json()["detail"]


def test_a_body_beyond_the_limit_is_refused(rest: httpx.Client) -> None:
    reply = rest.post(ROUTE, content=b" " * (BODY_BYTES_MAX + 1), headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["code"]) == (413, "RESOURCE_EXHAUSTED")


def test_only_those_push_who_may(backend: Backend) -> None:
    async def authenticate(authorization: Any) -> Principal:
        views = {"Bearer writer": ("weather",), "Bearer reader": ()}[authorization[0]]
        return Principal(authorization[0], Grant(read=Names(("*",)), push=Names(views)))

    engine, door = backend.engine(), backend.push_door()
    with gateway(engine, Telemetry(), backend.limits, authenticate, push=door) as base:
        with httpx.Client(base_url=base, headers={"authorization": "Bearer writer"}) as writer:
            assert push(writer, rows("WWW"))["statuses"] == ["ACCEPTED"]
            denied = writer.post(ROUTE, json={"push_source_name": "delays", "df": {}})
            assert (denied.status_code, denied.json()["code"]) == (403, "PERMISSION_DENIED")
        with httpx.Client(base_url=base, headers={"authorization": "Bearer reader"}) as reader:
            there, not_there = (
                reader.post(ROUTE, json={"push_source_name": name, "df": rows("RRR")}) for name in ("weather", "wether")
            )
            assert there.status_code == not_there.status_code == 403
            assert there.json()["detail"].replace("weather", "wether") == not_there.json()["detail"]


# ---------------------------------------------------------------- too much asked


def test_who_comes_when_all_is_full_is_told_when_to_come_back(backend: Backend) -> None:
    """Rooms without a place: nothing is looked at, not even whether the body is JSON."""
    full = Admission(1, 0)
    full.in_flight = 1
    rooms = Rooms(lookups=full, large=full, questions=full, pushes=full, predictions=full, rest=full)
    with (
        gateway(backend.engine(), Telemetry(), backend.limits, push=backend.push_door(), rooms=rooms) as base,
        httpx.Client(base_url=base) as rest,
    ):
        for route in ("/get-online-features", ROUTE):
            reply = rest.post(route, content=b"{")
            assert (reply.status_code, reply.json()["code"]) == (429, "RESOURCE_EXHAUSTED")
            assert reply.json()["retryable"]
            assert int(reply.headers["retry-after"]) >= 1
        assert rest.get("/health").status_code == 200
        full.in_flight = 0
        assert push(rest, rows("FFF"))["statuses"] == ["ACCEPTED"]
    assert (full.shed, full.in_flight) == (2, 0)


def test_a_push_that_takes_too_long_keeps_its_place_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.rest.TIMEOUT_S", 0.3)
    rooms = Rooms.of(1, 1, 1)
    with (
        Backend.filled(tmp_path) as backend,
        closing(sqlite3.connect(tmp_path / "online.db", isolation_level=None)) as writer,
        gateway(backend.engine(), Telemetry(), backend.limits, push=backend.push_door(), rooms=rooms) as base,
        httpx.Client(base_url=base) as rest,
    ):
        writer.execute("BEGIN IMMEDIATE")
        assert rest.post(ROUTE, json={"push_source_name": "weather", "df": rows("GGG")}).status_code == 504
        assert rooms.pushes.in_flight == 1
        writer.execute("ROLLBACK")
        until(lambda: rooms.pushes.in_flight == 0)


# ---------------------------------------------------------------- TLS


def test_https_is_spoken_where_there_is_a_certificate_and_to_whom_its_clients_ca_knows(
    backend: Backend, tmp_path: Path
) -> None:
    ca, client_ca, strange_ca = trustme.CA(), trustme.CA(), trustme.CA()
    cert = ca.issue_cert("localhost", "127.0.0.1")
    files = {
        "cert.pem": b"".join(blob.bytes() for blob in cert.cert_chain_pems),
        "key.pem": cert.private_key_pem.bytes(),
        "client_ca.pem": client_ca.cert_pem.bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tls = TlsSettings(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem", client_ca=tmp_path / "client_ca.pem")
    with gateway(backend.engine(), Telemetry(), backend.limits, tls=tls) as base:
        assert base.startswith("https://")
        assert _health(base, ca, client_ca.issue_cert("client.internal")) == 200
        for issuer, certificate in (
            (ca, strange_ca.issue_cert("client.internal")),
            (ca, None),
            (strange_ca, client_ca.issue_cert("client.internal")),
        ):
            with pytest.raises(httpx.TransportError):
                _health(base, issuer, certificate)
        with pytest.raises(httpx.TransportError):
            httpx.get(base.replace("https", "http") + "/health")


def test_a_renewed_certificate_is_shown_without_a_restart(backend: Backend, tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    tls = TlsSettings(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")

    def put(authority: trustme.CA) -> None:
        cert = authority.issue_cert("localhost", "127.0.0.1")
        (tmp_path / "key.pem").write_bytes(cert.private_key_pem.bytes())
        (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))

    def is_shown() -> bool:
        try:
            return _health(base, new, None) == 200
        except httpx.ConnectError:
            return False

    put(old)
    with gateway(backend.engine(), Telemetry(), backend.limits, tls=tls) as base:
        assert _health(base, old, None) == 200
        put(new)
        until(is_shown)
        with pytest.raises(httpx.ConnectError):
            _health(base, old, None)


def _health(base: str, issuer: trustme.CA, certificate: trustme.LeafCert | None) -> int:
    """The status of a call by somebody who trusts one issuer and has a certificate, or none."""
    context = ssl.create_default_context()
    issuer.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    with httpx.Client(verify=context) as client:
        return client.get(f"{base}/health").status_code
