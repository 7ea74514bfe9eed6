"""Lookups over a real SQLite store: what was stored comes back bit for bit, judged by the clock and the promises."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import FrameType

import numpy as np
import pyarrow as pa
import pytest

from featurestore import FeatureService, Field, Float32, Int32, Status
from featurestore.arrow_types import arrow_type
from featurestore.errors import InputError, ServingError, StoreError
from featurestore.matrix import to_matrix
from featurestore.status import StaleReason
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.lookup import OnlineLookup
from serving.plan import compile_plan
from serving.wire import ReplyEncoder
from tests.unit.serving.world import (
    CLOCK,
    EVERY_TYPE,
    HOUR_US,
    NOW_US,
    THINGS,
    VALUES,
    World,
    airport_now,
    all_types,
    delays,
    departures,
    everything,
    key_arrays,
    matches_bits,
    weather,
)

PRESENT, NULL, NOT_FOUND, EXPIRED, STALE = (
    Status.PRESENT,
    Status.NULL,
    Status.NOT_FOUND,
    Status.EXPIRED,
    Status.STALE,
)


def put_weather(world: World, event_us: int = NOW_US) -> None:
    columns = {"temp": [1.5, 2.5, None], "wind": [0.1, None, None], "sky": ["clear", None, None]}
    world.put(weather, {"origin": ["JFK", "EWR", "LGA"]}, columns, event_us)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("place", range(len(EVERY_TYPE)), ids=[field.name for field, _ in EVERY_TYPE])
def test_every_type_comes_back_bit_for_bit(world: World, place: int) -> None:
    world.put(everything, {"id": THINGS}, VALUES)
    field, values = EVERY_TYPE[place]

    response = world.lookup(all_types).lookup(key_arrays(id=[4, 3, 2, 1, 0]))

    expected = pa.array(values[::-1], arrow_type(field.dtype))
    assert matches_bits(response.columns[place], expected)


def test_rows_come_in_the_order_of_the_request_with_repetitions(world: World) -> None:
    put_weather(world)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["EWR", "JFK", "EWR", "ZZZ", "JFK"]))

    assert response.columns[0].to_pylist() == [2.5, 1.5, 2.5, None, 1.5]
    assert response.statuses["weather@1"].tolist() == [PRESENT, PRESENT, PRESENT, NOT_FOUND, PRESENT]


def test_repeated_keys_are_fetched_once(world: World) -> None:
    put_weather(world)
    asked: list[int] = []
    lookup = world.lookup(airport_now)
    read = world.store.read

    def counting(ref: str, keys: pa.BinaryArray) -> pa.BinaryArray:
        asked.append(len(keys))
        return read(ref, keys)

    world.store.read = counting  # type: ignore[method-assign]
    response = lookup.lookup(key_arrays(origin=["JFK", "EWR"] * 50))

    assert asked == [2]
    assert response.rows == 100


def test_a_null_key_is_not_found(world: World) -> None:
    put_weather(world)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["JFK", None]))

    assert response.statuses["weather@1"].tolist() == [PRESENT, NOT_FOUND]
    assert response.columns[0].to_pylist() == [1.5, None]


def test_a_row_of_nulls_is_told_from_no_row(world: World) -> None:
    put_weather(world)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["LGA", "ZZZ", "EWR"]))

    assert response.statuses["weather@1"].tolist() == [NULL, NOT_FOUND, PRESENT]


def test_views_of_different_entities_join_by_their_own_keys(world: World) -> None:
    put_weather(world)
    world.put(
        delays,
        {"origin": ["JFK", "JFK"], "number": [1, 2]},
        {"delay": [5, 6], "busy": [True, None], "temp": [0.5, 0.25]},
    )

    response = world.lookup(departures).lookup(
        key_arrays(origin=["JFK", "EWR", "JFK"], number=[2, 2, 1]), key_arrays(hour=[7, 8, 9])
    )

    assert response.to_dict() == {
        "origin": ["JFK", "EWR", "JFK"],
        "number": [2, 2, 1],
        "temp": [1.5, 2.5, 1.5],
        "wind": [0.1, None, 0.1],
        "delay": [6, None, 5],
        "delay_temp": [0.25, None, 0.5],
        "hour": [7, 8, 9],
    }
    assert response.statuses["delays@2"].tolist() == [PRESENT, NOT_FOUND, PRESENT]


def test_no_rows_asked_are_no_rows_answered(world: World) -> None:
    response = world.lookup(airport_now).lookup({"origin": pa.array([], pa.string())})

    assert response.rows == 0
    assert [len(column) for column in response.columns] == [0, 0, 0]


def test_integers_of_any_width_find_the_same_row(world: World) -> None:
    world.put(delays, {"origin": ["JFK"], "number": [7]}, {"delay": [5], "busy": [None], "temp": [None]})
    lookup = world.lookup(FeatureService(name="s", features=[delays]))

    for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()):
        response = lookup.lookup({"origin": pa.array(["JFK"]), "number": pa.array([7], kind)})
        assert response.columns[0].to_pylist() == [5], kind


def test_a_view_named_twice_is_read_once_and_keeps_the_order_of_the_service(world: World) -> None:
    put_weather(world)
    world.put(delays, {"origin": ["JFK"], "number": [7]}, {"delay": [5], "busy": [None], "temp": [None]})
    mixed = FeatureService(name="mixed", features=[weather["wind"], delays["delay"], weather[["sky", "temp"]]])

    response = world.lookup(mixed).lookup(key_arrays(origin=["JFK"], number=[7]))

    assert response.to_arrow().to_pydict() == {"wind": [0.1], "delay": [5], "sky": ["clear"], "temp": [1.5]}
    assert list(response.statuses) == ["weather@1", "delays@2"]


def test_the_matrix_is_the_one_of_the_library_over_the_same_columns(world: World) -> None:
    put_weather(world)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["JFK", "ZZZ", "EWR"]))

    matrix = response.to_matrix()
    assert matrix.dtype == np.float32
    assert matrix.shape == (3, 3)
    assert matrix.tobytes() == to_matrix(response.plan.matrix, response.columns).tobytes()
    assert matrix[0].tolist() == [1.5, np.float32(0.1), 0.0]


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(("older_by_us", "status", "value"), [(0, PRESENT, 1.5), (1, EXPIRED, None)])
def test_a_row_lives_until_exactly_its_ttl(world: World, older_by_us: int, status: Status, value: float | None) -> None:
    event_us = NOW_US - 2 * HOUR_US - older_by_us
    put_weather(world, event_us)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["JFK"]))

    assert response.statuses["weather@1"].tolist() == [status]
    assert [column.to_pylist() for column in response.columns][0] == [value]
    assert response.views[0].event_us.tolist() == [event_us]
    assert response.degraded_rows == 0


def test_expiry_takes_the_values_of_its_own_row_and_view_only(world: World) -> None:
    old = NOW_US - 3 * HOUR_US
    world.put(weather, {"origin": ["JFK", "EWR"]}, {"temp": [1, 2], "wind": [1, 2], "sky": ["rain"] * 2}, [old, NOW_US])
    world.put(
        delays, {"origin": ["JFK", "EWR"], "number": [1, 1]}, {"delay": [5, 6], "busy": [None] * 2, "temp": [7, 8]}, old
    )

    response = world.lookup(departures).lookup(
        key_arrays(origin=["JFK", "EWR"], number=[1, 1]), key_arrays(hour=[1, 2])
    )

    columns = response.to_arrow().to_pydict()
    assert columns["temp"] == [None, 2.0]
    assert columns["delay"] == [5, 6]
    assert response.statuses["weather@1"].tolist() == [EXPIRED, PRESENT]


@pytest.mark.parametrize(("older_by_us", "status"), [(0, PRESENT), (1, STALE)])
def test_max_age_makes_older_rows_stale_and_keeps_their_values(world: World, older_by_us: int, status: Status) -> None:
    put_weather(world, NOW_US - 1_000_000 - older_by_us)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["JFK", "ZZZ"]), max_age=timedelta(seconds=1))

    reason = StaleReason.MAX_AGE if status == STALE else StaleReason.NONE
    assert response.statuses["weather@1"].tolist() == [status, NOT_FOUND]
    assert response.views[0].reasons.tolist() == [reason, StaleReason.NONE]
    assert response.columns[0].to_pylist() == [1.5, None]
    assert response.degraded_rows == (status == STALE)


@pytest.mark.parametrize(("lag_us", "status"), [(6 * HOUR_US, PRESENT), (6 * HOUR_US + 1, STALE), (None, PRESENT)])
def test_a_broken_freshness_promise_makes_all_rows_of_the_view_stale(
    world: World, lag_us: int | None, status: Status
) -> None:
    put_weather(world)
    world.put(delays, {"origin": ["JFK"], "number": [1]}, {"delay": [5], "busy": [None], "temp": [7]})
    world.watermarks["delays@2"] = None if lag_us is None else NOW_US - lag_us

    response = world.lookup(departures).lookup(key_arrays(origin=["JFK"], number=[1]), key_arrays(hour=[1]))

    assert response.statuses["delays@2"].tolist() == [status]
    assert response.statuses["weather@1"].tolist() == [PRESENT]
    assert response.views[1].reasons.tolist() == [StaleReason.FRESHNESS if status == STALE else StaleReason.NONE]


def test_a_service_may_null_stale_rows(world: World) -> None:
    put_weather(world, NOW_US - HOUR_US)
    service = replace(airport_now, on_stale="null")

    response = world.lookup(service).lookup(key_arrays(origin=["JFK"]), max_age=timedelta(minutes=1))

    assert [column.to_pylist() for column in response.columns] == [[None], [None], [None]]
    assert response.statuses["weather@1"].tolist() == [STALE]
    assert response.degraded_rows == 1


def test_a_service_may_refuse_stale_rows(world: World) -> None:
    put_weather(world, NOW_US - HOUR_US)
    lookup = world.lookup(replace(airport_now, on_stale="fail"))

    with pytest.raises(ServingError, match=r"'airport_now' refuses stale rows, and weather@1 \(2 rows\)"):
        lookup.lookup(key_arrays(origin=["JFK", "EWR", "ZZZ"]), max_age=timedelta(minutes=1))

    assert lookup.lookup(key_arrays(origin=["JFK"])).degraded_rows == 0


def test_statuses_and_times_can_be_shown_beside_the_values(world: World) -> None:
    put_weather(world)

    response = world.lookup(airport_now).lookup(key_arrays(origin=["JFK", "ZZZ"]))

    table = response.to_arrow(keys=True, statuses=True)
    assert table.column_names == ["origin", "temp", "wind", "sky", "weather__status"]
    assert table["weather__status"].to_pylist() == ["PRESENT", "NOT_FOUND"]
    assert response.to_dict(event_timestamps=True)["weather__event_timestamp"][1] is None
    assert response.event_timestamps["weather@1"].cast(pa.int64()).to_pylist() == [NOW_US, None]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("keys", "request_", "words"),
    [
        ({}, {"hour": [1]}, r"needs join key 'origin', 'number'; it takes: origin, number"),
        ({"origin": ["JFK"], "nummer": [1]}, {"hour": [1]}, r"takes no join key 'nummer'; did you mean 'number'"),
        ({"origin": ["JFK"], "number": [1.0]}, {"hour": [1]}, r"join key 'number' is double, it must be int32"),
        ({"origin": [7], "number": [1]}, {"hour": [1]}, r"join key 'origin' is int64, it must be string"),
        ({"origin": ["JFK"] * 2, "number": [1, 2**31]}, {"hour": [1]}, r"'number' has no exact int32 value in row 1"),
        ({"origin": ["JFK"], "number": [1, 2]}, {"hour": [1]}, r"differ in length \(origin 1, number 2, hour 1\)"),
        ({"origin": ["JFK"], "number": [1]}, {}, r"needs request field 'hour'"),
        ({"origin": ["JFK"], "number": [1]}, {"hour": [1], "day": [1]}, r"takes no request field 'day'"),
        ({"origin": ["JFK"], "number": [1]}, {"hour": ["x"]}, r"request field 'hour' is string, it must be int32"),
        ({"origin": ["JFK"], "number": [1]}, {"hour": [24]}, r"'hour' breaks its contract: hour is above .* in row 0"),
        ({"origin": ["JFK"], "number": [1]}, {"hour": [None]}, r"'hour' breaks its contract: hour is null in row 0"),
        ({"origin": ["J" * 2000], "number": [1]}, {"hour": [1]}, r"join key 'origin'.* at most 1024 fit"),
    ],
)
def test_bad_columns_are_refused_by_name(
    world: World, keys: dict[str, list], request_: dict[str, list], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        world.lookup(departures).lookup(key_arrays(**keys), key_arrays(**request_))


@pytest.mark.parametrize("max_age", [timedelta(0), timedelta(microseconds=-1)])
def test_a_max_age_that_is_not_positive_is_refused(world: World, max_age: timedelta) -> None:
    with pytest.raises(InputError, match="above zero"):
        world.lookup(airport_now).lookup(key_arrays(origin=["JFK"]), max_age=max_age)


def test_two_outputs_of_one_name_are_refused_when_the_plan_is_made(world: World) -> None:
    clashing = FeatureService(
        name="clashing", features=[weather["temp"]], request_fields=[Field(name="temp", dtype=Float32)]
    )

    with pytest.raises(InputError, match="two columns are named 'temp'"):
        world.lookup(clashing)


# ---------------------------------------------------------------- old rows, and the work done


def test_a_row_written_before_a_field_existed_takes_its_default(world: World) -> None:
    world.put(weather, {"origin": ["JFK"]}, {"temp": [1], "wind": [2], "sky": ["rain"]})
    newer = replace(weather, schema=[*weather.schema, Field(name="gust", dtype=Int32, default=9)])
    service = FeatureService(name="s", features=[newer[["gust", "temp"]]])
    plan = compile_plan(service, {newer.ref: newer}, {newer.ref: {1: weather.schema, 2: newer.schema}})

    response = OnlineLookup(plan, world.store, CLOCK, world).lookup(key_arrays(origin=["JFK", "ZZZ"]))

    assert response.to_arrow().to_pydict() == {"gust": [9, None], "temp": [1.0, None]}


def test_the_self_test_passes_on_stores_with_and_without_rows(world: World) -> None:
    assert world.lookup(departures).self_test().rows == 1
    put_weather(world)
    assert world.lookup(departures).self_test().rows == 1


def test_the_self_test_finds_rows_that_cannot_be_decoded(world: World) -> None:
    world.put(weather, {"origin": ["JFK"]}, {"temp": [1], "wind": [2], "sky": ["rain"]}, schema_id=5)

    with pytest.raises(StoreError, match="schema 5"):
        world.lookup(airport_now).self_test()


def test_the_number_of_python_calls_does_not_grow_with_the_rows(world: World) -> None:
    """Counted over lookup and encoding, the reading of SQLite left out: it makes bytes objects of the rows."""
    numbers = list(range(1000))
    world.put(everything, {"id": numbers}, {name: (values * 200)[:1000] for name, values in VALUES.items()})
    lookup = world.lookup(all_types)
    encoder = ReplyEncoder(lookup.plan)

    def answer(count: int) -> None:
        encoder.encode(lookup.lookup({"id": pa.array(numbers[:count])}), pb.REPLY_FORMAT_COLUMNS)

    for count in (8, 1000):
        answer(count)  # what is made once, and once for each number of rows, is made now

    assert python_calls(lambda: answer(1000)) == python_calls(lambda: answer(8))


def python_calls(work: Callable[[], None]) -> int:
    """How many Python functions `work` enters outside the store."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and not frame.f_code.co_filename.endswith("sqlite.py")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls
