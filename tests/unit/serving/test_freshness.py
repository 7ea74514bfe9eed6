"""GetFreshness: the verdicts on views, chosen by service or by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest

from featurestore.clock import from_us
from featurestore_client import FeatureClient, RequestFailed, ViewFreshness
from featurestore_client.freshness import Verdict
from serving.servicer import SERVICE
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server
from tests.unit.serving.world import HOUR_US, NOW_US


@pytest.fixture
def target(backend: Backend) -> Iterator[str]:
    with server(backend.engine()) as running:
        yield running.target


@pytest.fixture
def client(target: str) -> Iterator[FeatureClient]:
    with FeatureClient(target) as made:
        yield made


def test_a_publish_is_judged_by_the_next_call(backend: Backend, client: FeatureClient) -> None:
    (before,) = client.get_freshness(views=["delays"]).views
    assert before == ViewFreshness(
        view="delays@2",
        verdict="never published",
        broken=True,
        freshness=timedelta(hours=6),
        age=None,
        watermark=None,
        horizon=None,
        position=None,
    )

    judged: list[tuple[int, Verdict]] = [(6 * HOUR_US + 1, "broken"), (6 * HOUR_US, "holds")]
    for age_us, verdict in judged:
        backend.publish("delays@2", NOW_US - age_us)
        reply = client.get_freshness(views=["delays@2"])
        assert reply.views[0] == ViewFreshness(
            view="delays@2",
            verdict=verdict,
            broken=verdict == "broken",
            freshness=timedelta(hours=6),
            age=timedelta(microseconds=age_us),
            watermark=from_us(NOW_US - age_us),
            horizon=from_us(NOW_US),
            position=1,
        )
        assert (reply.judged_at, reply.broken) == (from_us(NOW_US), int(verdict == "broken"))


def test_all_views_or_those_of_a_service(backend: Backend, client: FeatureClient) -> None:
    backend.publish("weather@1", NOW_US)
    everything = client.get_freshness()
    assert [view.view for view in everything.views] == ["delays@2", "everything@1", "weather@1"]
    assert everything.views[2].verdict == "no promise"
    assert everything.broken == 1
    assert [view.view for view in client.get_freshness("departures").views] == ["delays@2", "weather@1"]
    assert client.get_freshness("airport_now").broken == 0


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"service": "departurs"}, grpc.StatusCode.NOT_FOUND, "did you mean 'departures'"),
        ({"views": ["weather", "wether"]}, grpc.StatusCode.NOT_FOUND, "no feature view named 'wether'"),
        ({"service": "departures", "views": ["weather"]}, grpc.StatusCode.INVALID_ARGUMENT, "set one of them"),
    ],
)
def test_what_nobody_knows_is_refused(client: FeatureClient, asked: dict, code: grpc.StatusCode, said: str) -> None:
    with pytest.raises(RequestFailed, match=said) as refused:
        client.get_freshness(**asked)
    assert refused.value.code == code


def test_malformed_bytes_are_the_callers_fault(target: str) -> None:
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE}/GetFreshness")(b"\xff", timeout=5)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
