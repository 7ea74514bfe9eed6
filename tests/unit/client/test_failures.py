"""What the clients do when calls fail: which they make again, when, until when, and what they raise in the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc import StatusCode

import featurestore_client as fc
from featurestore_client.errors import RETRY_AFTER_MS
from featurestore_client.retries import Attempts
from tests.ports import free_port
from tests.unit.client.scripted import Failure, scripted
from tests.unit.serving.running import Awaited
from tests.waiting import WAIT_S

Open = Callable[..., Any]
AWAY = Failure(StatusCode.UNAVAILABLE)
#: What a server that stops says of a call that it has received and not begun.
NOT_BEGUN = Failure(StatusCode.CANCELLED, message="CANCELLED")
NOT_READY = b"\x08\x02"


@pytest.fixture(params=[fc.FeatureClient, Awaited], ids=["sync", "async"])
def open_client(request: pytest.FixtureRequest) -> Open:
    return request.param


def ask(client: Any, **options: Any) -> Any:
    return client.get_online_features("s", {"k": [1]}, **options)


def hint(milliseconds: object, code: StatusCode = StatusCode.RESOURCE_EXHAUSTED) -> Failure:
    return Failure(code, ((RETRY_AFTER_MS, str(milliseconds)),))


# ---------------------------------------------------------------- again


@pytest.mark.parametrize(
    "failures",
    [[AWAY], [AWAY] * 4, [hint(0)], [hint(30), AWAY, hint(1, StatusCode.UNAVAILABLE)], [NOT_BEGUN]],
)
def test_a_call_is_made_again_until_it_is_answered(open_client: Open, failures: list[Failure]) -> None:
    with scripted(failures) as server, open_client(server.target) as client:
        assert len(ask(client)) == 7

    assert len(server.asked_at) == len(failures) + 1
    assert len(server.peers) == 1, "all over one channel"


def test_the_time_that_the_server_named_is_kept(open_client: Open) -> None:
    with scripted([hint(120), hint(60)]) as server, open_client(server.target) as client:
        ask(client)

    pauses = [after - before for before, after in pairwise(server.asked_at)]
    assert pauses[0] >= 0.12
    assert pauses[1] >= 0.06


NOT_AGAIN = {
    "wrong request": (Failure(StatusCode.INVALID_ARGUMENT), fc.BadRequest),
    "past a limit": (Failure(StatusCode.RESOURCE_EXHAUSTED), fc.Overloaded),
    "the server says no": (hint(-1, StatusCode.UNAVAILABLE), fc.Unavailable),
    "a hint that is none": (hint("soon"), fc.Overloaded),
    "unknown service": (Failure(StatusCode.NOT_FOUND), fc.NotFound),
    "refused": (Failure(StatusCode.FAILED_PRECONDITION), fc.Refused),
    "no token": (Failure(StatusCode.UNAUTHENTICATED), fc.Unauthenticated),
    "not allowed": (Failure(StatusCode.PERMISSION_DENIED), fc.PermissionDenied),
    "the server's deadline": (Failure(StatusCode.DEADLINE_EXCEEDED), fc.DeadlineExceeded),
    "a defect": (Failure(StatusCode.INTERNAL), fc.RequestFailed),
}


@pytest.mark.parametrize(("failure", "kind"), NOT_AGAIN.values(), ids=NOT_AGAIN)
def test_other_failures_are_raised_at_once_by_kind(
    open_client: Open, failure: Failure, kind: type[fc.RequestFailed]
) -> None:
    with (
        scripted([Failure(failure.code, (*failure.metadata, ("x-request-id", "r-1")))]) as server,
        open_client(server.target) as client,
        pytest.raises(fc.RequestFailed, match="as the script says") as raised,
    ):
        ask(client)

    assert type(raised.value) is kind
    assert (raised.value.code, raised.value.request_id) == (failure.code, "r-1")
    assert not raised.value.retryable
    assert len(server.asked_at) == 1


def test_attempts_have_a_bound(open_client: Open) -> None:
    retries = fc.Retries(attempts_max=3, backoff_first_s=0.001)
    with (
        scripted([AWAY] * 5) as server,
        open_client(server.target, retries=retries) as client,
        pytest.raises(fc.Unavailable, match="as the script says"),
    ):
        ask(client)

    assert len(server.asked_at) == 3


# ---------------------------------------------------------------- the deadline


def test_a_pause_that_would_pass_the_deadline_is_not_begun(open_client: Open) -> None:
    with scripted([hint(60_000)]) as server, open_client(server.target) as client:
        began = time.monotonic()
        with pytest.raises(fc.Overloaded) as raised:
            ask(client, timeout_s=30)

    assert raised.value.retryable
    assert raised.value.retry_after_s == 60
    assert time.monotonic() - began < 30


def test_the_deadline_holds_for_all_attempts_together(open_client: Open) -> None:
    slow = Failure(StatusCode.UNAVAILABLE, after_s=0.3)
    with scripted([slow] * 9) as server, open_client(server.target) as client:
        with pytest.raises((fc.DeadlineExceeded, fc.Unavailable)):
            ask(client, timeout_s=0.5)
        assert len(server.asked_at) <= 2


def test_pauses_grow_to_their_bound_and_differ() -> None:
    failure = fc.Unavailable(StatusCode.UNAVAILABLE, "")
    retries = fc.Retries(attempts_max=100, backoff_first_s=0.1, backoff_max_s=0.4)

    runs = [[attempts.pause_s(failure) for _ in range(5)] for attempts in [Attempts(retries, 60) for _ in range(20)]]

    for most, pauses in zip([0.1, 0.2, 0.4, 0.4, 0.4], zip(*runs, strict=True), strict=True):
        assert all(most / 2 <= pause <= most for pause in pauses)
        assert len(set(pauses)) > 10


# ---------------------------------------------------------------- the channel


def test_nobody_there_is_unavailable_and_says_where(open_client: Open) -> None:
    with (
        open_client(f"127.0.0.1:{free_port()}", retries=fc.Retries(attempts_max=2)) as client,
        pytest.raises(fc.Unavailable, match="127.0.0.1"),
    ):
        ask(client)


def test_metadata_of_the_client_and_of_the_call_are_sent(open_client: Open) -> None:
    with (
        scripted() as server,
        open_client(server.target, metadata=[("traceparent", "00-1")]) as client,
    ):
        ask(client, metadata=[("x-request-id", "mine")])

    assert server.metadata[0]["traceparent"] == "00-1"
    assert server.metadata[0]["x-request-id"] == "mine"


def test_a_file_of_authorities_makes_the_channel_tls_and_a_token_goes_with_each_call(
    open_client: Open, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    secure = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    tokens = iter(["first", "second"])
    with scripted(credentials=secure) as server:
        with open_client(server.target, tls=fc.Tls(ca=tmp_path / "ca.pem"), token=lambda: next(tokens)) as client:
            ask(client)
            ask(client)
        with (
            open_client(server.target, retries=fc.Retries(attempts_max=2)) as client,
            pytest.raises(fc.Unavailable),
        ):
            ask(client)

    assert [sent["authorization"] for sent in server.metadata] == ["Bearer first", "Bearer second"]


def test_a_token_is_not_sent_to_another_machine_in_plaintext(open_client: Open) -> None:
    with pytest.raises(ValueError, match="readable to all"):
        open_client("features.example:6566", token="secret")


def test_threads_share_a_client() -> None:
    with scripted() as server, fc.FeatureClient(server.target) as client:
        threads = [threading.Thread(target=lambda: [ask(client) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(server.asked_at) == 80
    assert len(server.peers) == 1


def test_a_cancelled_task_cancels_its_call() -> None:
    async def cancelled(target: str) -> None:
        async with fc.AsyncFeatureClient(target, timeout_s=30) as client:
            task = asyncio.create_task(client.get_online_features("s", {"k": [1]}))
            await asyncio.sleep(0.1)
            task.cancel()
            await task

    with scripted([Failure(StatusCode.UNAVAILABLE, after_s=3)]) as server, pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled(server.target))


# ---------------------------------------------------------------- readiness


def test_waiting_ends_when_the_server_says_that_it_serves(open_client: Open) -> None:
    with scripted(health=[NOT_READY] * 3) as server, open_client(server.target) as client:
        client.wait_until_ready(WAIT_S)

        assert server.health == []


def test_waiting_outlasts_a_server_that_is_not_there_yet(open_client: Open) -> None:
    port = free_port()
    came, over = threading.Event(), threading.Event()

    def come_late() -> None:
        time.sleep(0.2)
        with scripted(port=port):
            came.set()
            over.wait(WAIT_S)

    late = threading.Thread(target=come_late)
    late.start()
    try:
        with open_client(f"127.0.0.1:{port}") as client:
            client.wait_until_ready(WAIT_S)
            assert came.is_set()
    finally:
        over.set()
        late.join()


def test_waiting_in_vain_says_what_was_the_matter(open_client: Open) -> None:
    with (
        scripted(health=[NOT_READY] * 1_000) as server,
        open_client(server.target) as client,
        pytest.raises(fc.Unavailable, match="not ready"),
    ):
        client.wait_until_ready(0.2)
