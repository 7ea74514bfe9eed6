"""Requests that are answered together get what each would get alone, share one exchange, and none pays for another."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import FeatureService
from featurestore.errors import FeatureStoreError, StoreError, StoreUnreachable
from featurestore.online.reading import Fetched, Wanted
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.batches import Batches, here
from serving.lookup import Request, ServiceLookup
from serving.response import OnlineResponse
from serving.wire import ReplyEncoder
from tests.fix_properties import SHARED_FIXTURES
from tests.unit.serving.world import (
    HOUR_US,
    NOW_US,
    THINGS,
    VALUES,
    World,
    all_types,
    delays,
    departures,
    everything,
    key_arrays,
    matches_bits,
    weather,
)

FORMATS = {all_types.name: ["COLUMNS"], departures.name: ["COLUMNS", "MATRIX"]}
ORIGINS = st.sampled_from(["JFK", "EWR", "LGA", "ZZZ", None])
MAX_AGES = st.sampled_from([None, timedelta(minutes=30), timedelta(hours=3)])


class Exchanges:
    """Answers from a store, and counts how often it was asked."""

    def __init__(self, world: World) -> None:
        self._store = world.store
        self.asked: list[Sequence[Wanted]] = []

    async def __call__(self, wanted: Sequence[Wanted]) -> Fetched:
        """What a reader does."""
        self.asked.append(wanted)
        await asyncio.sleep(0)
        return Fetched([self._store.read(each.ref, each.keys) for each in wanted], [])


@pytest.fixture
def filled(world: World) -> World:
    world.put(everything, {"id": THINGS}, VALUES)
    columns = {"temp": [1.5, 2.5, None], "wind": [0.1, None, None], "sky": ["clear", None, None]}
    world.put(weather, {"origin": ["JFK", "EWR", "LGA"]}, columns, [NOW_US, NOW_US - HOUR_US, NOW_US - 3 * HOUR_US])
    rows = {"delay": [5, 6], "busy": [True, None], "temp": [0.5, 0.25]}
    world.put(delays, {"origin": ["JFK", "EWR"], "number": [1, 2]}, rows, NOW_US - HOUR_US)
    return world


async def together(batches: Batches, requests: Sequence[Request]) -> list[OnlineResponse]:
    return await asyncio.gather(*map(batches.answer, requests))


def require_same(lookup: ServiceLookup, ours: OnlineResponse, alone: OnlineResponse, service: FeatureService) -> None:
    encoder = ReplyEncoder(lookup.plan)
    for name in FORMATS[service.name]:
        number = pb.ReplyFormat.Value(f"REPLY_FORMAT_{name}")
        mine, other = (pb.GetOnlineFeaturesResponse.FromString(encoder.encode(r, number)) for r in (ours, alone))
        assert mine == other
    assert all(matches_bits(a, b) for a, b in zip(ours.columns, alone.columns, strict=True))
    assert ours.degraded_rows == alone.degraded_rows
    for view, twin in zip(ours.views, alone.views, strict=True):
        assert [view.order.at(row) for row in range(ours.rows)] == [twin.order.at(row) for row in range(ours.rows)]


def require_as_alone(world: World, service: FeatureService, requests: Sequence[Request]) -> None:
    lookup, exchanges = world.lookup(service), Exchanges(world)
    answers = asyncio.run(together(Batches(lookup, exchanges), requests))
    assert len(exchanges.asked) == len({request.max_age_us for request in requests})
    for request, answer in zip(requests, answers, strict=True):
        require_same(lookup, answer, asyncio.run(Batches(lookup, exchanges).alone(request, here)), service)


@settings(max_examples=60, suppress_health_check=SHARED_FIXTURES)
@given(requests=st.lists(st.tuples(st.lists(st.sampled_from([*THINGS, 9, None])), MAX_AGES), min_size=1, max_size=5))
def test_every_type_is_answered_together_as_alone(
    filled: World, requests: list[tuple[list[int | None], timedelta | None]]
) -> None:
    lookup = filled.lookup(all_types)
    checked = [lookup.check({"id": pa.array(ids, pa.int64())}, None, max_age) for ids, max_age in requests]
    require_as_alone(filled, all_types, checked)


@settings(max_examples=60, suppress_health_check=SHARED_FIXTURES)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.tuples(ORIGINS, st.sampled_from([1, 2, None]), st.integers(0, 23))), MAX_AGES),
        min_size=1,
        max_size=5,
    )
)
def test_views_and_request_fields_are_answered_together_as_alone(
    filled: World, requests: list[tuple[list[tuple[str | None, int | None, int]], timedelta | None]]
) -> None:
    filled.watermarks["delays@2"] = NOW_US - 7 * HOUR_US
    lookup = filled.lookup(departures)
    checked = []
    for rows, max_age in requests:
        origins, numbers, hours = zip(*rows, strict=True) if rows else ((), (), ())
        keys = {"origin": pa.array(origins, pa.string()), "number": pa.array(numbers, pa.int32())}
        checked.append(lookup.check(keys, {"hour": pa.array(hours, pa.int32())}, max_age))
    require_as_alone(filled, departures, checked)


def test_who_gives_up_leaves_the_others_their_answer(filled: World) -> None:
    lookup, exchanges = filled.lookup(all_types), Exchanges(filled)
    request = lookup.check(key_arrays(id=[1, 2]))

    async def ask() -> OnlineResponse:
        batches = Batches(lookup, exchanges)
        hasty, patient = (asyncio.create_task(batches.answer(request)) for _ in range(2))
        await asyncio.sleep(0)
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        return await asyncio.wait_for(patient, 5)

    assert asyncio.run(ask()).columns[2].to_pylist() == VALUES["int64_"][1:3]
    assert len(exchanges.asked) == 1


def test_a_row_that_cannot_be_decoded_fails_only_who_asked_for_it(filled: World) -> None:
    lookup, exchanges = filled.lookup(all_types), Exchanges(filled)
    filled.put(everything, {"id": [7]}, {name: values[:1] for name, values in VALUES.items()}, schema_id=99)
    requests = [lookup.check(key_arrays(id=[thing])) for thing in (1, 7, 2)]

    async def ask() -> list[OnlineResponse | BaseException]:
        batches = Batches(lookup, exchanges)
        return await asyncio.gather(*map(batches.answer, requests), return_exceptions=True)

    first, bad, last = asyncio.run(ask())
    assert isinstance(bad, StoreError)
    assert "schema 99" in str(bad)
    for answer, thing in ((first, 1), (last, 2)):
        assert isinstance(answer, OnlineResponse)
        assert answer.columns[2].to_pylist() == [VALUES["int64_"][thing]]


def test_a_store_that_is_away_is_asked_once_for_all(filled: World) -> None:
    lookup = filled.lookup(all_types)
    asked = 0

    async def away(wanted: Sequence[Wanted]) -> Fetched:
        nonlocal asked
        asked += 1
        raise StoreUnreachable("it is away")

    async def ask() -> list[OnlineResponse | BaseException]:
        request = lookup.check(key_arrays(id=[1]))
        batches = Batches(lookup, away)
        return await asyncio.gather(*(batches.answer(request) for _ in range(3)), return_exceptions=True)

    answers = asyncio.run(ask())
    assert [isinstance(answer, FeatureStoreError) for answer in answers] == [True] * 3
    assert asked == 1


def test_a_batch_takes_no_more_rows_than_one_exchange_should_have(filled: World) -> None:
    lookup, exchanges = filled.lookup(all_types), Exchanges(filled)
    sizes = [400, 400, 400, 2_000, 0]
    requests = [lookup.check({"id": pa.array([row % 5 for row in range(size)], pa.int64())}) for size in sizes]

    answers = asyncio.run(together(Batches(lookup, exchanges), requests))

    assert [answer.rows for answer in answers] == sizes
    assert len(exchanges.asked) == 3


def test_a_fault_that_nobody_waits_for_is_no_complaint_of_the_loop(filled: World) -> None:
    lookup = filled.lookup(all_types)
    complaints: list[object] = []

    async def away(wanted: Sequence[Wanted]) -> Fetched:
        await asyncio.sleep(0)
        raise StoreUnreachable("it is away")

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        task = asyncio.create_task(Batches(lookup, away).answer(lookup.check(key_arrays(id=[1]))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()

    asyncio.run(ask())
    assert complaints == []
