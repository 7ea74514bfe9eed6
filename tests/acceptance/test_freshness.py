"""Freshness as people and schedulers see it: the command, the serving process, and the webhook both call."""

from __future__ import annotations

import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from featurestore import Status
from featurestore_client import FeatureClient
from tests.fix_cli import Run
from tests.fix_receiver import Receiver, dead_address, receiver
from tests.fix_repository import NOON, SmallRepository, hours, repository, weather
from tests.waiting import WAIT_S, until

__all__ = ["dead_address", "receiver", "repository"]

LATE = NOON + hours(4)


@pytest.fixture
def fresh(repository: SmallRepository) -> SmallRepository:
    """Weather, published in time; the promise breaks three hours after noon. `free` promises nothing."""
    repository.apply(weather(freshness=hours(3)), weather(name="free"))
    repository.write("weather/a.parquet", [("JFK", NOON, 1.0, 1)])
    repository.run(views=["weather"])
    repository.opened().close()
    return repository


def at(now: datetime) -> str:
    return now.isoformat()


def test_the_command_shows_each_view_and_fails_when_a_promise_is_broken(inside: Run, fresh: SmallRepository) -> None:
    kept = inside(fresh.root, "freshness", FEATURESTORE_NOW=at(NOON + hours(3))).ok().out
    noon = "2024-03-01T12:00:00Z"
    assert [line.split() for line in kept.splitlines()[2:]] == [
        ["free@1", "-", "-", "never", "published", "-", "-", "-"],
        ["weather@1", "3h", "3:00:00", "holds", noon, noon, "1"],
        [],
        ["1", "of", "2", "views", "promise", "freshness;", "none", "is", "broken"],
    ]

    broken = inside(fresh.root, "freshness", FEATURESTORE_NOW=at(LATE))
    assert broken.code == 1
    assert broken.out.endswith("broken: weather@1\n")
    assert inside(fresh.root, "freshness", "--views", "free", FEATURESTORE_NOW=at(LATE)).code == 0


def test_a_scheduler_reads_it_as_json(inside: Run, fresh: SmallRepository) -> None:
    told = inside(fresh.root, "freshness", "--json", "--views", "weather", FEATURESTORE_NOW=at(LATE))
    assert told.code == 1
    assert told.json == {
        "now": "2024-03-01T16:00:00Z",
        "broken": ["weather@1"],
        "views": [
            {
                "view": "weather@1",
                "verdict": "broken",
                "broken": True,
                "freshness_s": 10800.0,
                "age_s": 14400.0,
                "watermark": "2024-03-01T12:00:00Z",
                "horizon": "2024-03-01T12:00:00Z",
                "position": 1,
            }
        ],
    }


def test_a_promise_about_what_was_never_published_is_broken(inside: Run, repository: SmallRepository) -> None:
    repository.apply(weather(freshness=hours(3)))
    repository.opened().close()
    told = inside(repository.root, "freshness")
    assert told.code == 1
    assert "broken (never published)" in told.out


def test_a_state_that_cannot_be_read_is_no_verdict(inside: Run, fresh: SmallRepository) -> None:
    fresh.close()
    for file in fresh.root.glob("registry.db*"):
        file.write_bytes(b"no database" * 100)
    told = inside(fresh.root, "freshness")
    assert told.code == 3
    assert "registry.db is not a readable SQLite file" in told.err


def test_a_publish_tells_the_webhook_at_once_that_the_promise_holds_again(
    inside: Run, fresh: SmallRepository, receiver: Receiver
) -> None:
    settings = {"FEATURESTORE_FRESHNESS_WEBHOOK": receiver.url, "FEATURESTORE_NOW": at(LATE)}
    inside(fresh.root, "materialize-incremental", **settings).ok()
    assert receiver.changes() == [("weather@1", "broken")]

    fresh.write("weather/b.parquet", [("JFK", LATE, 2.0, 2)])
    inside(fresh.root, "materialize-incremental", "--load-only", **settings).ok()
    assert receiver.changes()[1:] == []
    inside(fresh.root, "materialize-incremental", **settings).ok()
    assert receiver.changes()[1:] == [("weather@1", "recovered")]


@contextmanager
def served(small: SmallRepository, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`featurestore serve` at the time of the clock, and its address."""
    with small.start_command("serve", "--port", "0", FEATURESTORE_FRESHNESS_CHECK_S="0.1", **settings) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], WAIT_S)
            assert ready, "it did not get ready"
            yield process, process.stdout.readline().strip().removeprefix("serving on ")
            # A process killed between a delivery and its note leaves the next one to repeat it.
            process.terminate()
            assert process.wait(timeout=WAIT_S) == 0
        finally:
            process.kill()


def test_serving_processes_tell_the_webhook_once_between_them(fresh: SmallRepository, receiver: Receiver) -> None:
    fresh.at(LATE)
    settings = {"FEATURESTORE_FRESHNESS_WEBHOOK": receiver.url}
    with served(fresh, **settings) as (_, first), served(fresh, **settings):
        until(lambda: receiver.changes() == [("weather@1", "broken")])
        fresh.write("weather/b.parquet", [("JFK", LATE, 2.0, 2)])
        fresh.run(views=["weather"])
        until(lambda: len(receiver.posted) == 2)
        with FeatureClient(first) as client:
            assert client.get_freshness().broken == 0
    with served(fresh, **settings):
        time.sleep(0.5)  # several checks
    assert receiver.changes() == [("weather@1", "broken"), ("weather@1", "recovered")]


def test_a_dead_receiver_keeps_no_request_and_no_stop_waiting(fresh: SmallRepository, dead_address: str) -> None:
    fresh.at(LATE)
    settings = {"FEATURESTORE_FRESHNESS_WEBHOOK": dead_address, "FEATURESTORE_FRESHNESS_TIMEOUT_S": "6"}
    with served(fresh, **settings) as (process, address):
        with FeatureClient(address, timeout_s=5) as client:
            reply = client.get_online_features(["weather:temp"], {"origin": ["JFK"]})
        assert reply.statuses["weather@1"].tolist() == [Status.STALE]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_S) == 0
