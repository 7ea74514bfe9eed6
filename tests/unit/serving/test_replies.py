"""What a real server answers and refuses, over real registry, job state and SQLite store, asked by the real client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import grpc
import numpy as np
import pyarrow as pa
import pytest

from featurestore import Status
from featurestore.arrow_types import arrow_type
from featurestore_client import FeatureClient, RequestFailed, ViewDescription
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.engine import INLINE_BYTES_MAX
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import Awaited, raw_call, server
from tests.unit.serving.world import (
    EVERY_TYPE,
    HOUR_US,
    NOW_US,
    airport_now,
    all_types,
    key_arrays,
    matches_bits,
)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One repository for all tests here: they only read."""
    with Backend.filled(tmp_path_factory.mktemp("backend")) as made:
        yield made


@pytest.fixture(scope="module")
def target(backend: Backend) -> Iterator[str]:
    with server(backend.engine()) as running:
        yield running.target


@pytest.fixture(scope="module", params=[FeatureClient, Awaited], ids=["sync", "async"])
def client(target: str, request: pytest.FixtureRequest) -> Iterator[FeatureClient]:
    with request.param(target) as made:
        yield made


# ---------------------------------------------------------------- replies


def test_columns_of_every_type_arrive_bit_for_bit(client: FeatureClient) -> None:
    reply = client.get_online_features("all_types", {"id": [4, 3, 2, 1, 0]})

    table = reply.to_arrow()
    assert table.column_names == [field.name for field, _ in EVERY_TYPE]
    for field, values in EVERY_TYPE:
        expected = pa.array(values[::-1], arrow_type(field.dtype))
        assert matches_bits(table[field.name].combine_chunks(), expected), field.name
    assert reply.statuses["everything@1"].tolist() == [Status.PRESENT] * 2 + [Status.NULL] + [Status.PRESENT] * 2


def test_arrow_ipc_holds_the_same_columns(client: FeatureClient) -> None:
    keys = {"id": np.array([1, 3, 7, 1])}

    as_columns = client.get_online_features("all_types", keys).to_arrow()
    as_ipc = client.get_online_features("all_types", keys, format="arrow").to_arrow()

    assert as_ipc.schema.equals(as_columns.schema)
    for name in as_columns.column_names:
        assert matches_bits(as_ipc[name].combine_chunks(), as_columns[name].combine_chunks()), name


def test_numpy_statuses_and_times_arrive_in_order(client: FeatureClient) -> None:
    keys = {"origin": ["JFK", "ZZZ", "JFK", None], "number": np.array([2, 1, 1, 1])}

    reply = client.get_online_features("departures", keys, request={"hour": [1, 2, 3, 4]})

    columns = reply.to_numpy()
    assert list(columns) == ["temp", "wind", "delay", "delay_temp", "hour"]
    assert columns["temp"].dtype == np.float32
    assert columns["temp"].tolist()[::2] == [1.5, 1.5]
    assert np.isnan(columns["temp"][1::2]).all()
    assert reply.validity()["delay"].tolist() == [True, False, True, False]
    assert columns["delay"][reply.validity()["delay"]].tolist() == [6, 5]
    assert columns["hour"].tolist() == [1, 2, 3, 4]
    assert list(reply.statuses) == ["weather@1", "delays@2"]
    assert reply.statuses["delays@2"].tolist() == [1, 3, 1, 3]
    assert np.isnat(reply.event_timestamps["delays@2"]).tolist() == [False, True, False, True]
    assert reply.event_timestamps["delays@2"].astype("i8").tolist()[::2] == [NOW_US - HOUR_US] * 2
    assert (len(reply), reply.served_at_us, reply.degraded_rows) == (4, NOW_US, 0)


def test_the_matrix_equals_the_one_made_in_process(backend: Backend, client: FeatureClient) -> None:
    origins = ["JFK", "ZZZ", "EWR"]

    reply = client.get_online_features("airport_now", {"origin": origins}, format="matrix")

    expected = backend.world.lookup(airport_now).lookup(key_arrays(origin=origins)).to_matrix()
    assert reply.names == ["temp", "wind", "sky"]
    assert reply.to_matrix().tobytes() == expected.tobytes()


def test_python_values_are_those_of_the_answer_in_process(backend: Backend, client: FeatureClient) -> None:
    """As with Feast: the keys first, then the features."""
    ids = [4, 3, 2, 1, 0, 99]

    reply = client.get_online_features("all_types", {"id": ids})

    shown = {"statuses": True, "event_timestamps": True}
    expected = backend.world.lookup(all_types).lookup(key_arrays(id=ids))
    actual, wanted = reply.to_dict(**shown), expected.to_dict(**shown)
    assert list(actual) == list(wanted)
    for name, values in wanted.items():
        # As text: NaN equals itself, and two names of UTC are one.
        assert [*map(str, actual[name])] == [*map(str, values)], name
        assert [*map(type, actual[name])] == [*map(type, values)], name


def test_features_can_be_named_one_by_one(client: FeatureClient) -> None:
    features = ["delays:delay", "weather@1:sky", "delays:busy"]

    reply = client.get_online_features(features, {"origin": ["JFK"], "number": [1]}, full_feature_names=True)

    assert reply.to_arrow().to_pydict() == {"delays__delay": [5], "weather__sky": ["clear"], "delays__busy": [True]}


def test_requests_larger_than_the_loop_takes_are_answered_alike(client: FeatureClient) -> None:
    origins = ["JFK", "a place with a long name"] * 1_000
    assert sum(map(len, origins)) > INLINE_BYTES_MAX

    reply = client.get_online_features("airport_now", {"origin": origins})

    assert reply.to_arrow()["temp"].to_pylist() == [1.5, None] * 1_000
    assert reply.statuses["weather@1"].tolist() == [Status.PRESENT, Status.NOT_FOUND] * 1_000


def test_a_service_describes_what_it_takes_and_gives(client: FeatureClient) -> None:
    description = client.describe_service("departures")

    assert [(key.name, key.dtype, key.views) for key in description.join_keys] == [
        ("origin", "string", ("weather@1", "delays@2")),
        ("number", "int32", ("delays@2",)),
    ]
    assert [(column.name, column.view, column.field) for column in description.columns] == [
        ("temp", "weather@1", "temp"),
        ("wind", "weather@1", "wind"),
        ("delay", "delays@2", "delay"),
        ("delay_temp", "delays@2", "temp"),
        ("hour", "", "hour"),
    ]
    assert description.columns[1].fill == -1.0
    assert description.columns[0].fill is None
    assert [field.name for field in description.request_fields] == ["hour"]
    assert description.views[0] == ViewDescription(view="weather@1", ttl=timedelta(hours=2), freshness=None)
    assert description.on_stale == "serve"
    assert len(description.signature) == 64
    all_types = client.describe_service("all_types")
    assert "decimal_" in all_types.matrix_refusal
    assert [column.dtype for column in all_types.columns] == [str(declared.dtype) for declared, _ in EVERY_TYPE]


# ---------------------------------------------------------------- refusals

BAD, UNKNOWN = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
KEYS = {"origin": ["JFK"]}
REFUSALS: dict[str, tuple[grpc.StatusCode, str, tuple[object, ...], dict[str, object]]] = {
    "unknown service": (UNKNOWN, "did you mean 'departures'", ("departure", KEYS), {}),
    "unknown view": (UNKNOWN, "no feature view named 'wether'", (["wether:temp"], KEYS), {}),
    "unknown field": (UNKNOWN, "no field of weather@1", (["weather:tmp"], KEYS), {}),
    "no field named": (BAD, "form view:field", (["weather"], KEYS), {}),
    "no service": (BAD, "name of the service is empty", ("", KEYS), {}),
    "no feature": (BAD, "names neither|no features are named", ([], KEYS), {}),
    "too many features": (BAD, "at most 10 fit", (["weather:temp"] * 11, KEYS), {}),
    "too many rows": (BAD, "at most 2000 fit", ("airport_now", {"origin": ["JFK"] * 2_001}), {}),
    "missing key": (BAD, "needs join key 'origin'", ("airport_now", {}), {}),
    "type of a key": (BAD, "must be string", ("airport_now", {"origin": [1]}), {}),
    "contract of a request field": (
        BAD,
        "hour is above the greatest allowed 23 in row 0",
        ("departures", KEYS | {"number": [1]}),
        {"request": {"hour": [24]}},
    ),
    "no request fields": (
        BAD,
        "no request field 'hour', nor any other$",
        ("airport_now", KEYS),
        {"request": {"hour": [1]}},
    ),
    "no matrix": (BAD, "the matrix has no place for .*decimal_", ("all_types", {"id": [1]}), {"format": "matrix"}),
    "max_age": (BAD, "above zero", ("airport_now", KEYS), {"max_age": timedelta(0)}),
}


@pytest.mark.parametrize(("code", "words", "arguments", "options"), REFUSALS.values(), ids=REFUSALS)
def test_bad_requests_get_their_code_and_the_way_out(
    client: FeatureClient, code: grpc.StatusCode, words: str, arguments: tuple, options: dict
) -> None:
    with pytest.raises(RequestFailed, match=words) as refused:
        client.get_online_features(*arguments, **options)

    assert refused.value.code is code
    assert len(refused.value.request_id) == 32
    assert not refused.value.retryable


def test_bytes_that_are_no_message_are_refused(target: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(target, b"\xff\xff\xff")

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a GetOnlineFeaturesRequest" in refused.value.details()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reply_format": 77}, "reply_format 77 is not known"),
        ({"keys": [pb.Column(name="origin"), pb.Column(name="origin")]}, "no type"),
        ({"keys": [pb.Column(name="o", type=pb.DataType(kind=pb.TYPE_KIND_INT64))] * 2}, "'o' is given twice"),
    ],
)
def test_messages_with_impossible_parts_are_refused(target: str, change: dict, words: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(target, pb.GetOnlineFeaturesRequest(service="airport_now", **change).SerializeToString())

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refused.value.details()


def test_the_callers_request_id_comes_back(target: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(target, b"", (("x-request-id", "mine-1"),))

    assert dict(refused.value.trailing_metadata())["x-request-id"] == "mine-1"
