"""Whatever arrives over gRPC is answered or refused with words: never INTERNAL or UNKNOWN, no crash, no hang.

A real server over real stores is asked. The quick test looks for a moment; the slow one for two minutes and more, on
seeds that it names.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import serving.inputs
from featurestore.arrow_types import arrow_type
from featurestore.dtypes import DType
from featurestore_client import FeatureClient, OnlineReply, calls
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from tests.fuzz.messages import requests
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server
from tests.unit.serving.world import EVERY_TYPE

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["FeatureServing"].methods}
FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAVAILABLE,  # the store is there, and so must the server be
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
TIMEOUT_S = 20.0
FIRST_SEED = 20261122
EXAMPLES = 300
MINIMUM_S = 120.0


def sound_lookups() -> list[Message]:
    """Requests that are answered, from which the fuzz starts."""
    route = {"origin": ["JFK", None, "JFK"], "number": np.array([1, 2, 1])}
    hour = {"hour": [1, 2, 3]}
    every = calls.lookup("all_types", {"id": [0, 1, 2, 9]}, None, None, "columns", False)
    asked = [
        every,
        calls.lookup("departures", route, hour, timedelta(minutes=5), "columns", True),
        calls.lookup("departures", route, hour, None, "arrow", False),
        calls.lookup("airport_now", {"origin": ["JFK"]}, None, None, "matrix", False),
        calls.lookup(["weather:sky", "delays@2:busy"], route, None, None, "columns", False),
    ]
    return [pb.GetOnlineFeaturesRequest.FromString(call.message) for call in asked]


def sound_pushes() -> list[Message]:
    """Pushes that are taken, some of whose rows break the contract."""
    time = [datetime(2013, 12, 1, 11, tzinfo=UTC)] * 3
    weather = {"origin": ["JFK", "FUZ", None], "time": time, "temp": [1.5, None, 2.0], "wind": [0.1, math.nan, None]}
    everything: dict[str, Any] = {"id": [7, 8, 9], "time": time}
    arrays = {
        name: pa.array(values[:3], arrow_type(field.dtype)) for field, values in EVERY_TYPE for name in (field.name,)
    }
    pushes = [
        calls.push("weather", {**weather, "sky": ["clear", "hail", None]}),
        calls.push("everything@1", {**everything, **arrays}),
    ]
    return [pb.PushRequest.FromString(call.message) for call in pushes]


SOUND: dict[str, Sequence[Message]] = {
    "GetOnlineFeatures": sound_lookups(),
    "DescribeService": [
        pb.DescribeServiceRequest(service="departures"),
        pb.DescribeServiceRequest(feature_list=pb.FeatureList(features=["weather:temp", "delays:delay"])),
    ],
    "Push": sound_pushes(),
    "GetFreshness": [pb.GetFreshnessRequest(), pb.GetFreshnessRequest(views=["weather", "delays@2"])],
}


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over the small world, all real."""
    with (
        Backend.filled(tmp_path_factory.mktemp("backend")) as backend,
        server(backend.engine(), push=backend.push_door()) as running,
    ):
        yield running.target


def look(target: str, number: int, examples: int, *, shrink: bool = True) -> None:
    """Send `examples` requests made from one seed; AssertionError with the first, or smallest, that found a fault."""
    cases = st.one_of(
        *[
            st.tuples(st.just(name), requests(method.input_type, SOUND.get(name, ())))
            for name, method in METHODS.items()
            for _ in SOUND.get(name, ("once",))  # more often where there is more to try
        ]
    )
    with grpc.insecure_channel(target, [("grpc.max_receive_message_length", -1)]) as channel:

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate, *[Phase.shrink][:shrink]],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def ask(case: tuple[str, bytes]) -> None:
            name, message = case
            answered(channel, METHODS[name].containing_service.full_name, name, message)

        ask()


def answered(channel: grpc.Channel, service: str, name: str, message: bytes) -> None:
    """Send one request; AssertionError where neither a sound answer nor a refusal with words comes back."""
    try:
        reply = channel.unary_unary(f"/{service}/{name}")(message, timeout=TIMEOUT_S)
    except grpc.RpcError as refused:
        code, words = refused.code(), refused.details()
    else:
        if name == "GetOnlineFeatures":
            assert_sound(message, reply)
        return
    assert code not in FAULTS, f"{name}: {code.name}, {words}"
    assert words, f"{name}: {code.name} without a word"


def assert_sound(message: bytes, reply: bytes) -> None:
    """An answer is whole: every column and verdict as long as the keys."""
    asked = pb.GetOnlineFeaturesRequest.FromString(message)
    rows = {column.rows for column in (*asked.keys, *asked.request_fields)}
    answer = OnlineReply(pb.GetOnlineFeaturesResponse.FromString(reply))
    assert {len(answer)} == (rows or {0})
    assert all(len(statuses) == len(answer) for statuses in answer.statuses.values())
    if answer.message.arrow_ipc:
        assert answer.to_arrow().num_rows == len(answer)
    elif answer.message.HasField("matrix"):
        answer.to_matrix()
    else:
        assert all(len(values) == len(answer) for values in answer.to_numpy().values())


def test_no_request_finds_a_defect_in_a_moment(target: str) -> None:
    look(target, FIRST_SEED, EXAMPLES)

    with FeatureClient(target) as client:
        assert client.get_online_features("airport_now", {"origin": ["JFK"]}).to_numpy()["temp"].tolist() == [1.5]


def test_the_fuzz_finds_a_planted_defect(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup in a table that forgot a type: bytes where text is declared."""
    exact = serving.inputs.exact

    def broken(column: pa.Array, dtype: DType, kind: str, name: str) -> pa.Array:
        if pa.types.is_binary(column.type):
            raise KeyError(column.type)
        return exact(column, dtype, kind, name)

    monkeypatch.setattr(serving.inputs, "exact", broken)

    with pytest.raises(AssertionError, match="GetOnlineFeatures: INTERNAL"):
        look(target, FIRST_SEED, 20 * EXAMPLES, shrink=False)


@pytest.mark.slow
def test_no_request_finds_a_defect_in_two_minutes(target: str, record_property: Callable[[str, object], None]) -> None:
    """The seeds are FIRST_SEED and those after it, as many as it takes; a failure names its own."""
    began = time.monotonic()
    for number in count(FIRST_SEED + 1):
        try:
            look(target, number, EXAMPLES)
        except AssertionError as fault:
            fault.add_note(f"seed {number}")
            raise
        if time.monotonic() - began >= MINIMUM_S:
            record_property("fuzzed", f"seeds {FIRST_SEED + 1} to {number}, {EXAMPLES} requests each")
            return
