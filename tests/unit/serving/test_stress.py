"""A server whose store is killed, paused or flushed, and one that is asked too much: every call ends, as it should."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featurestore import Status
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from featurestore_client import FeatureClient
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column
from featurestore_client.errors import RETRY_AFTER_MS
from serving.circuit import FAILURES_MAX, CircuitState
from serving.engine import INLINE_BYTES_MAX
from serving.metrics import IN_FLIGHT, QUEUE_DEPTH
from serving.server import THREADS_MAX, ServeOptions
from serving.servicer import SERVICE
from serving.telemetry import Telemetry
from tests.fix_redis import RedisProcess
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import gauge, server
from tests.unit.serving.world import World, weather
from tests.waiting import WAIT_S, until

UNAVAILABLE, EXHAUSTED, LATE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def backend(tmp_path: Path, redis_server: RedisProcess) -> Iterator[Backend]:
    """The world's weather, in a Redis of the test's own."""
    store = RedisOnlineStore("test", RedisAddress(url=redis_server.url, timeout_s=1.0))
    made = Backend(tmp_path, World(store))
    fill(made)
    yield made
    made.registry.close()
    store.close()


def fill(backend: Backend) -> None:
    backend.world.put(weather, {"origin": ["JFK"]}, {"temp": [1.5], "wind": [0.1], "sky": ["clear"]})


class Caller:
    """Raw calls to one server, each with a deadline, none repeated."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        #: What the last refusal said.
        self.said = ""
        self._method = self._channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def begin(self, timeout_s: float, others: int = 0) -> grpc.Future:
        """Ask for JFK, and for so many airports that are nowhere."""
        request = pb.GetOnlineFeaturesRequest(service="airport_now")
        request.keys.append(encode_column("origin", ["JFK", *["an airport without a name"] * others]))
        message = request.SerializeToString()
        assert (len(message) > INLINE_BYTES_MAX) is (others > 0), "a request of the kind that the test means"
        return self._method.future(message, timeout=timeout_s)

    def status(self, timeout_s: float = WAIT_S) -> int:
        """The status of the one row."""
        return pb.GetOnlineFeaturesResponse.FromString(self.begin(timeout_s).result()).views[0].statuses[0]

    def refusal(self, timeout_s: float = WAIT_S) -> grpc.StatusCode:
        """Why a call fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.begin(timeout_s).result()
        code: grpc.StatusCode = caught.value.code()
        self.said = caught.value.details() or ""
        if code is UNAVAILABLE:
            assert "check that it runs" in self.said
        return code

    def answers_again(self) -> int:
        """The status of the one row, once calls succeed."""
        deadline = time.monotonic() + WAIT_S
        while True:
            call = self.begin(5.0)
            if call.exception() is None:
                return pb.GetOnlineFeaturesResponse.FromString(call.result()).views[0].statuses[0]
            assert call.code() in (UNAVAILABLE, LATE)
            assert time.monotonic() < deadline, "it did not recover"
            time.sleep(0.05)


@pytest.fixture
def caller(backend: Backend) -> Iterator[Caller]:
    options = ServeOptions(port=0, poll_s=0.2, drain_s=2.0, store_timeout_s=0.5)
    with server(backend.engine(), options) as running, Caller(running.target) as made:
        assert made.status() == Status.PRESENT
        yield made


def test_a_killed_store_makes_calls_unavailable_until_it_is_back(
    redis_server: RedisProcess, caller: Caller, backend: Backend
) -> None:
    redis_server.kill()
    assert {caller.refusal() for _ in range(3 * FAILURES_MAX)} == {UNAVAILABLE}
    assert "asked again every" in caller.said, "the breaker is open"

    redis_server.start()
    assert caller.answers_again() == Status.NOT_FOUND, "the new server is empty"
    fill(backend)
    assert caller.status() == Status.PRESENT


def test_a_paused_store_lets_calls_end_by_their_deadline_and_soon_at_once(
    redis_server: RedisProcess, caller: Caller
) -> None:
    redis_server.pause()
    assert caller.refusal(0.1) is LATE
    assert {caller.refusal() for _ in range(2 * FAILURES_MAX)} == {UNAVAILABLE}

    redis_server.resume()
    assert caller.answers_again() == Status.PRESENT


def test_the_breaker_shows_whether_requests_reach_the_store(redis_server: RedisProcess, backend: Backend) -> None:
    engine = backend.engine()
    options = ServeOptions(port=0, poll_s=0.2, drain_s=2.0, store_timeout_s=0.5)
    with server(engine, options) as running, Caller(running.target) as caller:
        assert (caller.status(), engine.breaker_state) == (Status.PRESENT, CircuitState.CLOSED)
        redis_server.pause()
        while engine.breaker_state is CircuitState.CLOSED:
            assert caller.refusal() is UNAVAILABLE
        until(lambda: engine.breaker_state is CircuitState.OPEN)
        redis_server.resume()
        until(lambda: engine.breaker_state is CircuitState.CLOSED)


def test_a_store_that_comes_back_and_refuses_is_no_longer_given_up_on(
    redis_server: RedisProcess, caller: Caller
) -> None:
    redis_server.client.ping()  # connected while it can be
    redis_server.pause()
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(redis_server.client.execute_command, "ACL", "SETUSER", "default", "-hget")
        assert {caller.refusal() for _ in range(2 * FAILURES_MAX)} == {UNAVAILABLE}
        redis_server.resume()
        assert refused.result(WAIT_S)
    until(lambda: caller.begin(WAIT_S).code() is grpc.StatusCode.FAILED_PRECONDITION)
    assert "lacks a privilege" in (caller.begin(WAIT_S).details() or "")

    redis_server.client.execute_command("ACL", "SETUSER", "default", "+hget")
    assert caller.status() == Status.PRESENT


def test_requests_under_way_are_answered_while_the_server_drains(redis_server: RedisProcess, backend: Backend) -> None:
    options, telemetry = ServeOptions(port=0, drain_s=WAIT_S, store_timeout_s=WAIT_S), Telemetry()
    with server(backend.engine(), options, telemetry) as running, Caller(running.target) as caller:
        assert caller.status() == Status.PRESENT
        redis_server.pause()
        under_way = [caller.begin(WAIT_S) for _ in range(10)]
        until(lambda: gauge(telemetry, IN_FLIGHT) == 10)
        running.stop()
        with Caller(running.target) as late:
            until(lambda: late.begin(0.5).code() is UNAVAILABLE)
        redis_server.resume()
        for call in under_way:
            assert pb.GetOnlineFeaturesResponse.FromString(call.result()).views[0].statuses[0] == Status.PRESENT
        running.join()


def test_who_watches_the_health_of_a_server_does_not_hold_up_its_end(backend: Backend) -> None:
    with (
        server(backend.engine(), ServeOptions(port=0, drain_s=10 * WAIT_S)) as running,
        grpc.insecure_channel(running.target) as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        running.stop()
        running.join()
        assert {told.status for told in watched} <= {health_pb2.HealthCheckResponse.NOT_SERVING}


def test_a_flushed_store_has_no_rows_until_they_are_written_again(
    redis_server: RedisProcess, caller: Caller, backend: Backend
) -> None:
    redis_server.client.flushall()
    assert caller.status() == Status.NOT_FOUND

    fill(backend)
    assert caller.status() == Status.PRESENT


# ---------------------------------------------------------------- too much asked


def small(caller: Caller) -> grpc.Future:
    return caller.begin(WAIT_S)


def large(caller: Caller) -> grpc.Future:
    return caller.begin(WAIT_S, others=1_000)


@pytest.mark.parametrize(("ask", "room", "others"), [(small, 2, []), (large, THREADS_MAX, [small])])
def test_who_comes_when_all_is_full_is_told_at_once_when_to_come_back(
    redis_server: RedisProcess,
    backend: Backend,
    ask: Callable[[Caller], grpc.Future],
    room: int,
    others: list[Callable[[Caller], grpc.Future]],
) -> None:
    """Requests wait for the paused store; `room` are at work, one waits, the next is turned away. Large ones take
    nothing from `others`."""
    options = ServeOptions(port=0, drain_s=2.0, store_timeout_s=WAIT_S, in_flight_max=2, queue_max=1)
    telemetry = Telemetry()
    with ExitStack() as stack:
        running = stack.enter_context(server(backend.engine(), options, telemetry))
        caller = stack.enter_context(Caller(running.target))
        assert caller.status() == Status.PRESENT
        redis_server.pause()
        stack.callback(redis_server.resume)

        admitted = [ask(caller) for _ in range(room + 1)]
        until(lambda: (gauge(telemetry, IN_FLIGHT), gauge(telemetry, QUEUE_DEPTH)) == (room + 1, 1))
        with pytest.raises(grpc.RpcError) as refused:
            ask(caller).result()
        admitted += [other(caller) for other in others]
        redis_server.resume()

        assert refused.value.code() is EXHAUSTED
        assert int(dict(refused.value.trailing_metadata())[RETRY_AFTER_MS]) > 0
        for call in admitted:
            assert pb.GetOnlineFeaturesResponse.FromString(call.result()).views[0].statuses[0] == Status.PRESENT


def test_a_call_whose_deadline_passes_in_the_queue_leaves_its_place(
    redis_server: RedisProcess, backend: Backend
) -> None:
    options = ServeOptions(port=0, drain_s=2.0, store_timeout_s=WAIT_S, in_flight_max=1, queue_max=1)
    telemetry = Telemetry()
    with server(backend.engine(), options, telemetry) as running, Caller(running.target) as caller:
        assert caller.status() == Status.PRESENT
        redis_server.pause()
        first = caller.begin(WAIT_S)
        until(lambda: gauge(telemetry, IN_FLIGHT) == 1)
        assert caller.refusal(0.3) is LATE
        until(lambda: gauge(telemetry, IN_FLIGHT) == 1)
        assert gauge(telemetry, QUEUE_DEPTH) == 0
        second = caller.begin(WAIT_S)
        redis_server.resume()

        for call in (first, second):
            assert pb.GetOnlineFeaturesResponse.FromString(call.result()).rows == 1


def test_calls_beyond_what_grpc_may_keep_end_before_the_worker_sees_them_and_our_client_asks_again(
    backend: Backend,
) -> None:
    """gRPC keeps 64 at most while the event loop is occupied, and one more has been asked for."""
    options = ServeOptions(port=0, drain_s=2.0, in_flight_max=2, queue_max=2)
    with (
        server(backend.engine(), options) as running,
        Caller(running.target) as caller,
        FeatureClient(running.target, timeout_s=WAIT_S) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert caller.status() == Status.PRESENT
        with running.occupied():
            calls = [caller.begin(WAIT_S) for _ in range(100)]
            until(
                lambda: sum(call.done() for call in calls) >= 100 - 66
            )  # one may be taken before the loop is occupied
            ours = pool.submit(client.get_online_features, "airport_now", {"origin": ["JFK"]})
            time.sleep(0.1)  # it is refused too, unless it begins late
        assert ours.result().statuses["weather@1"].tolist() == [Status.PRESENT]
        codes = Counter(call.code() for call in calls)
        assert set(codes) <= {grpc.StatusCode.OK, EXHAUSTED, grpc.StatusCode.CANCELLED}
        assert codes[grpc.StatusCode.CANCELLED] >= 100 - 66
        assert codes[grpc.StatusCode.OK] >= 1
