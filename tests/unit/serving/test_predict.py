"""Predict: from keys to predictions through a real server and a real sidecar, and all that keeps it from that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.feature_service import FeatureService
from featurestore.fingerprint import service_signature
from featurestore.model_signature import model_fields
from featurestore_client import (
    BadRequest,
    DeadlineExceeded,
    FeatureClient,
    NotFound,
    Refused,
    Retries,
    Status,
    Unavailable,
)
from serving.server import ServeOptions
from serving.sidecar import SidecarAccess
from tests.fix_proxy import Proxy
from tests.ports import free_port
from tests.unit.serving.conftest import Backend
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import running
from tests.unit.serving.running import Awaited, server
from tests.unit.serving.world import DEFINITIONS, NOW_US, delays, departures, weather
from tests.waiting import until

WEIGHTS = np.array([1, 10, 100, 1000, 10000], np.float32)
KEYS: dict[str, Any] = {"origin": ["JFK", "JFK"], "number": [1, 2]}
REQUEST = {"hour": [3, 4]}


def write_model(root: Path, name: str = "late", version: int = 1, service: FeatureService = departures) -> None:
    """A linear model of the five columns of `departures`, signed for `service`."""
    folder = root / name / str(version)
    models.write_linear(folder, WEIGHTS)
    sign(folder, service)


def sign(folder: Path, service: FeatureService) -> None:
    views = DEFINITIONS.views
    document = {
        "format": 1,
        "feature_service": service.name,
        "signature": service_signature(service, views),
        "fields": model_fields(service, views),
    }
    (folder / "signature.json").write_text(json.dumps(document))


class World:
    """A serving process and a sidecar beside it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.backend = stack.enter_context(Backend.filled(folder))
        self.models = folder / "models"
        self.stack = stack
        write_model(self.models)
        write_model(self.models, "other", service=replace(departures, features=departures.features[::-1]))
        write_model(self.models, "unsigned")
        (self.models / "unsigned" / "1" / "signature.json").unlink()
        models.write_linear(self.models / "narrow" / "1", WEIGHTS[:3])
        sign(self.models / "narrow" / "1", departures)
        self.sidecar = stack.enter_context(running(self.models, address=f"unix://{folder}/sidecar.sock"))
        self.target = self.serve()
        self.client = stack.enter_context(FeatureClient(self.target, retries=Retries(attempts_max=1)))

    def serve(self, **access: Any) -> str:
        """Another server on the same repository."""
        chosen = SidecarAccess(**{"address": self.sidecar.address, **access})
        options = ServeOptions(port=0, poll_s=0.05, drain_s=5.0, sidecar=chosen)
        return self.stack.enter_context(server(self.backend.engine(), options)).target

    def client_of(self, **access: Any) -> FeatureClient:
        """A client of another server."""
        return self.stack.enter_context(FeatureClient(self.serve(**access), retries=Retries(attempts_max=1)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("predict"), stack)


def test_predictions_are_what_the_model_makes_of_the_matrix(world: World) -> None:
    features = world.client.get_online_features("departures", KEYS, request=REQUEST, format="matrix").to_matrix()
    reply = world.client.predict("departures", "late", KEYS, request=REQUEST)

    np.testing.assert_allclose(reply.outputs["y"][:, 0], features @ WEIGHTS, rtol=1e-6)
    assert (len(reply), reply.model_version, reply.served_at_us) == (2, "1", NOW_US)


def test_predictions_come_with_the_verdicts_of_a_lookup(world: World) -> None:
    keys = {"origin": ["JFK", "EWR", "ZZZ"], "number": [1, 1, 1]}
    request = {"hour": [1, 2, 3]}
    features = world.client.get_online_features("departures", keys, request=request, max_age=timedelta(minutes=30))
    reply = world.client.predict("departures", "late", keys, request=request, max_age=timedelta(minutes=30))

    assert {ref: found.tolist() for ref, found in reply.statuses.items()} == {
        ref: found.tolist() for ref, found in features.statuses.items()
    }
    assert reply.statuses["delays@2"].tolist() == [Status.STALE, Status.NOT_FOUND, Status.NOT_FOUND]
    assert reply.degraded_rows == features.degraded_rows == 1
    assert str(reply.event_timestamps["weather@1"]) == str(features.event_timestamps["weather@1"])


def test_the_async_client_predicts_too(world: World) -> None:
    with Awaited(world.target) as client:
        reply = client.predict("departures", "late", KEYS, request=REQUEST, version="1", outputs=["y"])

    assert list(reply.outputs) == ["y"]


def test_rows_without_features_see_their_fills_or_are_refused(world: World) -> None:
    keys = {"origin": ["ZZZ"], "number": [1]}
    request = {"hour": [1]}

    assert np.isnan(world.client.predict("departures", "late", keys, request=request).outputs["y"]).all()
    with pytest.raises(Refused, match=r"1 rows of weather@1 are missing or expired, the first is row 0"):
        world.client.predict("departures", "late", keys, request=request, on_missing="fail")


def test_a_model_of_another_signature_is_refused_with_what_differs(world: World) -> None:
    with pytest.raises(Refused, match=r"trained on feature service 'departures' of another signature.*the order was"):
        world.client.predict("departures", "other", KEYS, request=REQUEST)


def test_a_model_retrained_for_other_features_is_refused_from_its_first_answer_on(world: World) -> None:
    changed = replace(departures, features=[weather[["temp", "wind"]].fill(wind=-2.0), delays[["delay", "temp"]]])
    write_model(world.models, "moving")
    world.sidecar.load("moving")
    assert len(world.client.predict("departures", "moving", KEYS, request=REQUEST)) == 2

    write_model(world.models, "moving", 2, service=changed)
    world.sidecar.load("moving")

    with pytest.raises(Refused):
        world.client.predict("departures", "moving", KEYS, request=REQUEST)
    with pytest.raises(Refused, match=r"wind: fill was .*-2\.0.* and is .*-1\.0"):
        world.client.predict("departures", "moving", KEYS, request=REQUEST)


def test_a_model_without_signature_is_fed_only_where_that_is_allowed(world: World) -> None:
    with pytest.raises(Refused, match=r"has no signature.*inference\.unsigned = true"):
        world.client.predict("departures", "unsigned", KEYS, request=REQUEST)

    assert len(world.client_of(unsigned=True).predict("departures", "unsigned", KEYS, request=REQUEST)) == 2


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "width": ({"model": "narrow"}, Refused, r"takes x FP32 \[-1, 3\].*gives one FP32 \[-1, 5\]"),
    "model": ({"model": "lato"}, NotFound, "no model named 'lato'; did you mean 'late'"),
    "version": ({"version": "9"}, NotFound, "no version of model 'late' named '9'"),
    "output": ({"outputs": ["z"]}, BadRequest, "gives no output 'z'; it gives: y"),
    "service": ({"service": "none"}, NotFound, "no feature service named 'none'"),
    "no model": ({"model": ""}, BadRequest, "names no service, or no model"),
    "key": ({"keys": {"origin": ["JFK"]}}, BadRequest, "needs join key 'number'"),
    "contract": ({"request": {"hour": [1, 99]}}, BadRequest, "hour"),
}


@pytest.mark.parametrize(("changes", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_the_way_out(
    world: World, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    asked = {"service": "departures", "model": "late", "keys": KEYS, "request": REQUEST, **changes}

    with pytest.raises(kind, match=words):
        world.client.predict(asked.pop("service"), asked.pop("model"), asked.pop("keys"), **asked)


def test_a_sidecar_that_is_away_is_unavailable_lookups_go_on_and_it_is_found_again(world: World) -> None:
    port = free_port()
    client = world.client_of(address=f"127.0.0.1:{port}", retries=1)

    for _ in range(6):
        with pytest.raises(Unavailable, match="no sidecar answers at"):
            client.predict("departures", "late", KEYS, request=REQUEST)
    with pytest.raises(Unavailable, match="asked again every"):
        client.predict("departures", "late", KEYS, request=REQUEST)
    assert len(client.get_online_features("departures", KEYS, request=REQUEST)) == 2
    with running(world.models, address=f"127.0.0.1:{port}"):
        until(lambda: answers(client))


def answers(client: FeatureClient) -> bool:
    try:
        client.predict("departures", "late", KEYS, request=REQUEST)
    except (Unavailable, DeadlineExceeded):
        return False
    return True


def test_a_sidecar_that_hangs_costs_its_time_and_no_more(world: World) -> None:
    with running(world.models) as other, Proxy(int(other.address.rpartition(":")[2])) as between:
        client = world.client_of(address=f"127.0.0.1:{between.port}", timeout_s=0.5)
        until(lambda: answers(client))
        between.change = lambda answer: b""

        with pytest.raises(DeadlineExceeded, match=r"has not answered within 0\.5 s"):
            client.predict("departures", "late", KEYS, request=REQUEST)
        assert len(client.get_online_features("departures", KEYS, request=REQUEST)) == 2


def test_a_server_without_a_sidecar_says_so(backend: Backend) -> None:
    with (
        server(backend.engine()) as target,
        FeatureClient(target.target) as client,
        pytest.raises(Refused, match=r"asks no model; set inference\.address"),
    ):
        client.predict("departures", "late", KEYS, request=REQUEST)


def test_more_rows_than_the_model_takes_are_refused(world: World) -> None:
    write_model(world.models, "busy")
    (world.models / "busy" / "config.toml").write_text("max_batch_rows = 1\n")
    world.sidecar.load("busy")

    with pytest.raises(BadRequest, match="2 rows in one request"):
        world.client.predict("departures", "busy", KEYS, request=REQUEST)
