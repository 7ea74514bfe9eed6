"""Predictions over REST: what gRPC's Predict answers, refuses and counts, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from featurestore.errors import ModelFailed, Unauthenticated
from featurestore_client import Status
from serving.access.principal import Grant, Names, Principal
from serving.admission import Rooms
from serving.rest_predict import json_rows
from serving.sidecar import SidecarAccess
from serving.telemetry import Telemetry
from tests.ports import free_port
from tests.unit.serving.gateway import gateway
from tests.unit.serving.inference import models
from tests.unit.serving.test_predict import World, sign
from tests.unit.serving.world import departures

ROUTE = "/predict"
KEYS = {"origin": ["JFK", "EWR", "ZZZ"], "number": [1, 1, 1]}
HOURS = {"hour": [3, 4, 5]}
ASKED: dict[str, Any] = {"feature_service": "departures", "model": "late", "entities": {**KEYS, **HOURS}}


class Site:
    """A gateway and a gRPC server on one repository and one sidecar."""

    def __init__(self, world: World, stack: ExitStack) -> None:
        self.world, self.backend, self.client = world, world.backend, world.client
        self.telemetry = Telemetry()
        self.access = SidecarAccess(address=world.sidecar.address, timeout_s=20.0)
        base = stack.enter_context(
            gateway(self.backend.engine(), self.telemetry, self.backend.limits, sidecar=self.access)
        )
        self.rest = stack.enter_context(httpx.Client(base_url=base, timeout=60))

    def load(self, name: str) -> None:
        """Sign the model for `departures` and let it answer."""
        sign(self.world.models / name / "1", departures)
        self.world.sidecar.load(name)

    def answer(self, **changes: Any) -> dict[str, Any]:
        reply = self.rest.post(ROUTE, json={**ASKED, **changes})
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(World(tmp_path_factory.mktemp("rest"), stack), stack)


def test_it_answers_what_grpc_answers(site: Site) -> None:
    of_grpc = site.client.predict("departures", "late", KEYS, request=HOURS)
    reply = site.answer()

    assert list(reply) == ["metadata", "outputs", "views"]
    assert reply["metadata"] == {
        "model": "late", "model_version": "1", "served_at": "2013-12-01T12:00:00.000000Z", "degraded_rows": 0,
    }  # fmt: skip
    (output,) = reply["outputs"]
    assert {name: output[name] for name in ("name", "datatype", "shape")} == {
        "name": "y", "datatype": "FP32", "shape": [3, 1],
    }  # fmt: skip
    assert bits(output["values"]) == of_grpc.outputs["y"].tobytes()
    assert_same_verdicts(reply, of_grpc)


def bits(values: Sequence[float | str]) -> bytes:
    return np.array([float(value) for value in values], np.float32).tobytes()


def assert_same_verdicts(reply: dict[str, Any], of_grpc: Any) -> None:
    assert [view["view"] for view in reply["views"]] == list(of_grpc.statuses)
    for view in reply["views"]:
        statuses = of_grpc.statuses[view["view"]].tolist()
        assert view["statuses"] == [Status(status).name for status in statuses]
        known = [
            "1970-01-01T00:00:00.000000Z" if status == Status.NOT_FOUND else f"{time}Z"
            for status, time in zip(statuses, of_grpc.event_timestamps[view["view"]], strict=True)
        ]
        assert view["event_timestamps"] == known


def test_rows_are_judged_and_counted_as_in_a_lookup(site: Site) -> None:
    reply = site.answer(max_age_s=1800)

    delays = next(view for view in reply["views"] if view["view"] == "delays@2")
    assert (delays["statuses"], delays["stale_reasons"]) == (
        ["STALE", "NOT_FOUND", "NOT_FOUND"], ["MAX_AGE", "NONE", "NONE"],
    )  # fmt: skip
    assert reply["metadata"]["degraded_rows"] == 1
    assert "stale_reasons" not in reply["views"][0]


def test_every_type_of_output_is_written_as_everywhere_in_rest(site: Site) -> None:
    """NaN, infinities and integers beyond 2^53 as text, text as text, and arrays where a row has several values."""
    models.write_many_types(site.world.models / "types" / "1", 5)
    site.load("types")
    keys: dict[str, Any] = {"origin": ["JFK"], "number": [1]}
    of_grpc = site.client.predict("departures", "types", keys, request={"hour": [3]}).outputs
    reply = site.answer(model="types", entities={**keys, "hour": [3]})
    found = {output["name"]: output["values"] for output in reply["outputs"]}

    assert found["text"] == [[text.decode() for text in of_grpc["text"][0]]]
    assert [[int(value) for value in row] for row in found["big"]] == of_grpc["big"].tolist()
    assert all(isinstance(value, str) for value in found["big"][0])
    assert found["half"] == of_grpc["half"].tolist()
    assert found["positive"] == of_grpc["positive"].tolist()
    assert found["deep"] == of_grpc["deep"][:, 0].tolist()
    assert found["first"] == of_grpc["first"].tolist()
    assert [output["shape"] for output in reply["outputs"] if output["name"] == "deep"] == [[1, 1, 5]]
    assert site.answer(entities={"origin": ["ZZZ"], "number": [1], "hour": [1]})["outputs"][0]["values"] == ["NaN"]


def test_outputs_are_chosen_and_rows_may_be_none(site: Site) -> None:
    assert [output["name"] for output in site.answer(outputs=["y"], model_version="1")["outputs"]] == ["y"]
    empty = site.answer(entities={"origin": [], "number": [], "hour": []})
    assert [(output["shape"], output["values"]) for output in empty["outputs"]] == [([0, 1], [])]


@pytest.mark.parametrize(
    ("datatype", "rows", "data", "said"),
    [
        ("BF16", 1, b"\0\0", "BF16, which JSON has no form for; ask over gRPC"),
        ("BYTES", 1, b"\1\0\0\0\xff", "is not UTF-8"),
        ("FP32", 2, b"\0\0\0\0", "has 4 bytes"),
    ],
)
def test_what_json_has_no_form_for_is_the_models_fault(datatype: str, rows: int, data: bytes, said: str) -> None:
    """Servers other than ours may give anything."""
    with pytest.raises(ModelFailed, match=said):
        json_rows("y", datatype, (rows,), data)


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "signature": ({"model": "other"}, 409, "FAILED_PRECONDITION", "trained on feature service 'departures' of another"),
    "no signature": ({"model": "unsigned"}, 409, "FAILED_PRECONDITION", "inference.unsigned = true"),
    "width": ({"model": "narrow"}, 409, "FAILED_PRECONDITION", "gives one FP32 [-1, 5]"),
    "missing": ({"on_missing": "fail"}, 409, "FAILED_PRECONDITION", "rows of weather@1 are missing or expired"),
    "model": ({"model": "lato"}, 404, "NOT_FOUND", "no model named 'lato'; did you mean 'late'"),
    "version": ({"model_version": "9"}, 404, "NOT_FOUND", "no version of model 'late' named '9'"),
    "service": ({"feature_service": "none"}, 404, "NOT_FOUND", "no feature service named 'none'"),
    "output": ({"outputs": ["z"]}, 400, "INVALID_ARGUMENT", "gives no output 'z'; it gives: y"),
    "no model": ({"model": ""}, 400, "INVALID_ARGUMENT", "body.model"),
    "no service": ({"feature_service": ""}, 400, "INVALID_ARGUMENT", "body.feature_service"),
    "key": ({"entities": {"origin": ["JFK"], **HOURS}}, 400, "INVALID_ARGUMENT", "needs entity 'number'"),
    "type": ({"entities": {**KEYS, "hour": ["x", 1, 2]}}, 400, "INVALID_ARGUMENT", "entity 'hour', row 0"),
    "contract": ({"entities": {**KEYS, "hour": [1, 2, 99]}}, 400, "INVALID_ARGUMENT", "hour"),
    "on_missing": ({"on_missing": "guess"}, 400, "INVALID_ARGUMENT", "body.on_missing"),
    "member": ({"version": "1"}, 400, "INVALID_ARGUMENT", "body.version"),
    "half a character": ({"model": "\ud800"}, 400, "INVALID_ARGUMENT", "body.model"),
    "half a character in a version": ({"model_version": "\ud800"}, 400, "INVALID_ARGUMENT", "body.model_version"),
    "half a character in a list": ({"outputs": ["\ud800"]}, 400, "INVALID_ARGUMENT", "gives no output"),
    "too many rows": (
        {"entities": {**KEYS, "hour": [1] * 2001}}, 400, "INVALID_ARGUMENT", "2001 rows, at most 2000 fit one request"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_the_way_out(
    site: Site, changes: dict[str, Any], status: int, code: str, words: str
) -> None:
    body = json.dumps({**ASKED, **changes})
    reply = site.rest.post(ROUTE, content=body, headers={"content-type": "application/json"})

    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert words in reply.json()["detail"]


def test_a_model_that_raises_is_no_defect_of_ours(site: Site) -> None:
    models.write_choosy(site.world.models / "choosy" / "1", 5)
    site.load("choosy")
    reply = site.rest.post(ROUTE, json={**ASKED, "model": "choosy"})

    assert (reply.status_code, reply.json()["code"], reply.json()["retryable"]) == (502, "UNKNOWN", False)
    assert counted(site.telemetry, "UNKNOWN") == 1


def counted(telemetry: Telemetry, code: str) -> object:
    counts = telemetry.metrics.snapshot().values["featurestore_requests"]
    return counts[ROUTE, "departures", code]


def test_a_sidecar_that_is_away_is_unavailable_and_lookups_go_on(site: Site) -> None:
    away = SidecarAccess(address=f"127.0.0.1:{free_port()}", retries=0)
    with (
        gateway(site.backend.engine(), Telemetry(), site.backend.limits, sidecar=away) as base,
        httpx.Client(base_url=base) as rest,
    ):
        reply = rest.post(ROUTE, json=ASKED)
        assert (reply.status_code, reply.json()["code"], reply.json()["retryable"]) == (503, "UNAVAILABLE", True)
        assert "no sidecar answers at" in reply.json()["detail"]
        body = {"feature_service": "departures", "entities": ASKED["entities"]}
        assert rest.post("/get-online-features", json=body).status_code == 200


def test_a_server_without_sidecar_says_so_to_those_it_lets_in(site: Site) -> None:
    with (
        gateway(site.backend.engine(), Telemetry(), site.backend.limits, authenticate) as base,
        httpx.Client(base_url=base) as rest,
    ):
        assert rest.post(ROUTE, json=ASKED).status_code == 401
        reply = rest.post(ROUTE, json=ASKED, headers={"authorization": "Bearer planner"})
        assert (reply.status_code, reply.json()["code"]) == (501, "UNIMPLEMENTED")
        assert "set inference.address" in reply.json()["detail"]


async def authenticate(authorization: Sequence[str]) -> Principal:
    services = {"Bearer planner": ("departures",), "Bearer other": ("airport_now",)}
    if not authorization:
        raise Unauthenticated("show a bearer token")
    return Principal(authorization[0], Grant(read=Names(services[authorization[0]])))


def test_only_those_predict_who_may_read_the_service(site: Site) -> None:
    limits = site.backend.limits
    with gateway(site.backend.engine(), Telemetry(), limits, authenticate, sidecar=site.access) as base:
        with httpx.Client(base_url=base, headers={"authorization": "Bearer planner"}) as planner:
            assert planner.post(ROUTE, json=ASKED).status_code == 200
        with httpx.Client(base_url=base, headers={"authorization": "Bearer other"}) as other:
            there, not_there = (
                other.post(ROUTE, json={**ASKED, "feature_service": name}) for name in ("departures", "departurez")
            )
            assert there.status_code == not_there.status_code == 403
            assert there.json()["detail"].replace("departures", "departurez") == not_there.json()["detail"]


def test_predictions_have_the_room_that_those_of_grpc_have(site: Site) -> None:
    rooms = Rooms.of(in_flight_max=8, threads=4, queue_max=0)
    rooms.predictions.in_flight = 16
    with (
        gateway(site.backend.engine(), Telemetry(), site.backend.limits, rooms=rooms, sidecar=site.access) as base,
        httpx.Client(base_url=base) as rest,
    ):
        reply = rest.post(ROUTE, content=b"{")
        assert (reply.status_code, reply.json()["code"]) == (429, "RESOURCE_EXHAUSTED")
        assert int(reply.headers["retry-after"]) >= 1
        rooms.predictions.in_flight = 0
        assert rest.post(ROUTE, json=ASKED).status_code == 200
    assert rooms.shed["Predict"] == 1


def test_the_openapi_document_shows_every_member_and_answer(site: Site) -> None:
    document = site.rest.get("/openapi.json").json()
    operation = document["paths"][ROUTE]["post"]

    assert sorted(operation["responses"]) == [
        "200", "400", "401", "403", "404", "409", "413", "429", "500", "501", "502", "503", "504",
    ]  # fmt: skip
    schemas = document["components"]["schemas"]
    for name in ("PredictRequest", "PredictResponse", "PredictionMetadata", "OutputColumn", "ViewResult"):
        undescribed = [
            member for member, about in schemas[name]["properties"].items()
            if "description" not in about and "$ref" not in about
        ]  # fmt: skip
        assert (name, undescribed) == (name, [])
    (example,) = schemas["PredictRequest"]["examples"]
    assert site.rest.post(ROUTE, json=example).status_code == 200
    assert "POST /predict" in site.rest.get("/docs").text
