"""The webhook on a real HTTP server: told once per change, by one of many, in bounded time, without its secrets."""

from __future__ import annotations

import hashlib
import hmac
import logging
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.clock import FixedClock
from featurestore.errors import ConfigError
from featurestore.freshness_webhook import REF, FreshnessWebhook, Told, freshness_webhook, watching_freshness
from featurestore.registry.holder import holder_name
from featurestore.settings import load_settings, shown
from featurestore.webhook import EVENT_ID, SIGNATURE, DeliveryFailed, Webhook
from tests.fix_receiver import Receiver
from tests.fix_repository import NOON, SmallRepository, hours, weather

PROMISED = weather(freshness=hours(3))


def hook(small: SmallRepository, url: str, **changes: Any) -> FreshnessWebhook:
    made = FreshnessWebhook(
        registry=small.registry,
        state=small.state,
        clock=small.clock,
        webhook=Webhook(url=url, timeout_s=30),
        check_s=0.001,
        retries=2,
    )
    return replace(made, **changes)


@pytest.fixture
def fresh(repository: SmallRepository) -> SmallRepository:
    """Published in time; the promise breaks three hours after noon."""
    repository.apply(PROMISED, weather(name="free"))
    repository.write("weather/a.parquet", [("JFK", NOON, 1.0, 1)])
    repository.run()
    return repository


LATE = FixedClock(NOON + hours(4))


def test_each_change_is_told_once_and_a_restart_tells_nothing_again(fresh: SmallRepository, receiver: Receiver) -> None:
    hook(fresh, receiver.url).check()
    assert receiver.posted == []

    for _ in range(3):
        hook(fresh, receiver.url, clock=LATE).check()
    assert receiver.changes() == [("weather@1", "broken")]

    fresh.write("weather/b.parquet", [("JFK", NOON + hours(4), 2.0, 2)])
    fresh.at(LATE.now()).run(views=["weather"])
    for _ in range(3):
        hook(fresh, receiver.url).check()
    assert receiver.changes() == [("weather@1", "broken"), ("weather@1", "recovered")]
    assert receiver.posted[0].target == "/hook?token=t0psecret"


def test_what_is_told_says_how_old_it_is_and_is_signed(fresh: SmallRepository, receiver: Receiver) -> None:
    signed = Webhook(url=receiver.url, secret=b"key", timeout_s=30)
    hook(fresh, receiver.url, clock=LATE, webhook=signed).check()

    (posted,) = receiver.posted
    assert posted.headers[SIGNATURE] == "sha256=" + hmac.new(b"key", posted.body, hashlib.sha256).hexdigest()
    assert posted.headers[EVENT_ID] == posted.json["id"]
    assert posted.json == {
        "id": posted.json["id"],
        "project": fresh.project,
        "judged_at": "2024-03-01T16:00:00Z",
        "changes": [
            {
                "change": "broken",
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


def test_a_view_that_is_removed_breaks_no_promise(fresh: SmallRepository, receiver: Receiver) -> None:
    hook(fresh, receiver.url, clock=LATE).check()
    fresh.apply(weather(name="free"))
    hook(fresh, receiver.url, clock=LATE).check()
    assert receiver.posted[1].json["changes"] == [{"change": "recovered", "view": "weather@1", "verdict": "removed"}]


RACE = """
import sys
from featurestore.freshness_webhook import check_freshness
from featurestore.repository import Repository
from pathlib import Path
from typing import Any

with Repository.open(Path(sys.argv[2]), sys.argv[4]) as repository:
    repository.registry.views()
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(5):
        check_freshness(repository)
"""


def test_processes_that_race_tell_it_once(fresh: SmallRepository, receiver: Receiver) -> None:
    fresh.opened().close()  # writes featurestore.toml
    command = [sys.executable, "-c", RACE, "-C", str(fresh.root), "--now", LATE.now().isoformat()]
    environment = {"FEATURESTORE_FRESHNESS_WEBHOOK": receiver.url}
    racing = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    for process in racing:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in racing:
        process.communicate(timeout=60)
    assert [process.returncode for process in racing] == [0] * 4
    assert receiver.changes() == [("weather@1", "broken")]


def test_another_holder_of_the_lease_is_left_to_tell_it(fresh: SmallRepository, receiver: Receiver) -> None:
    lease = fresh.state.acquire_lease(REF, holder_name("other"), 60)
    hook(fresh, receiver.url, clock=LATE).check()
    assert receiver.posted == []

    fresh.state.release_lease(lease)
    hook(fresh, receiver.url, clock=LATE).check()
    assert receiver.changes() == [("weather@1", "broken")]


def test_a_crash_between_telling_and_noting_it_repeats_the_event_under_its_id(
    fresh: SmallRepository, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(fresh.state, "set_cursor", killed)
        with pytest.raises(KeyboardInterrupt):
            hook(fresh, receiver.url, clock=LATE).check()
    hook(fresh, receiver.url, clock=LATE).check()
    first, again = receiver.posted
    assert first.json == again.json


@pytest.mark.parametrize("answer", [500, 302, 404])
def test_a_receiver_that_refuses_is_tried_again_and_given_up(
    fresh: SmallRepository, receiver: Receiver, answer: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = answer
    with caplog.at_level(logging.INFO, "featurestore"):
        for _ in range(8):
            hook(fresh, receiver.url, clock=LATE).check()
            time.sleep(0.006)  # longer than the waits between the tries
    assert len(receiver.posted) == 3
    assert len({posted.json["id"] for posted in receiver.posted}) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "ERROR"]
    assert f"answers {answer}" in caplog.text
    assert "given up after 3 tries" in caplog.text

    receiver.answer = 200
    fresh.write("weather/b.parquet", [("JFK", NOON + hours(4), 2.0, 2)])
    fresh.at(LATE.now()).run(views=["weather"])
    hook(fresh, receiver.url).check()
    assert receiver.changes()[3:] == [("weather@1", "recovered")]


def test_a_try_waits_its_turn_whatever_process_looks(fresh: SmallRepository, receiver: Receiver) -> None:
    receiver.answer = 503
    for _ in range(5):
        hook(fresh, receiver.url, clock=LATE, check_s=60).check()
    assert len(receiver.posted) == 1
    assert Told.read(fresh.state).failures == 1


def test_a_change_that_is_undone_before_it_could_be_told_is_not_told(
    fresh: SmallRepository, receiver: Receiver
) -> None:
    receiver.answer = 503
    hook(fresh, receiver.url, clock=LATE).check()
    hook(fresh, receiver.url).check()
    assert Told.read(fresh.state) == Told()
    assert len(receiver.posted) == 1


def test_a_receiver_that_never_answers_or_drips_is_left_in_time(receiver: Receiver, dead_address: str) -> None:
    receiver.answer = 0
    begun = time.monotonic()
    for url in (receiver.url, dead_address, "http://127.0.0.1:1/hook"):
        with pytest.raises(DeliveryFailed, match=r"the webhook at 127\.0\.0\.1 cannot be reached"):
            Webhook(url=url, timeout_s=0.3).post("id", b"{}")
    assert time.monotonic() - begun < 60, "an attempt ends by its timeout, not by the receiver's grace"


def test_no_secret_is_logged_shown_or_in_a_message(
    fresh: SmallRepository, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    secret = Webhook(url=receiver.url, secret=b"s1gning", timeout_s=30)
    with caplog.at_level(logging.DEBUG):
        for answer in (500, 302, 200):
            receiver.answer = answer
            hook(fresh, receiver.url, clock=LATE, webhook=secret).check()
            time.sleep(0.005)
        receiver.close()
        with pytest.raises(DeliveryFailed) as failed:
            secret.post("id", b"{}")
    told = caplog.text + str(failed.value) + repr(secret)
    assert "127.0.0.1" in told
    assert "t0psecret" not in told
    assert "s1gning" not in told


@pytest.mark.parametrize(
    "url",
    ["ftp://h/t0psecret", "t0psecret", "http:///t0psecret", "http://h/t0p secret", "http://h:x/t0psecret",
     "http://me:t0psecret@h/", "http://h/t0psecret\n"],
)  # fmt: skip
def test_an_address_that_cannot_be_called_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    (tmp_path / "featurestore.toml").write_text('project = "small"')
    with pytest.raises(ConfigError, match=r"freshness\.webhook = \*\*\*") as refused:
        load_settings(tmp_path, {"FEATURESTORE_FRESHNESS_WEBHOOK": url})
    assert "t0p" not in str(refused.value)


def test_settings_name_the_receiver_and_keep_its_secrets(fresh: SmallRepository, receiver: Receiver) -> None:
    with fresh.opened() as nobody:
        assert freshness_webhook(nobody) is None
        with watching_freshness(nobody):
            pass
    environment = {"FEATURESTORE_FRESHNESS_WEBHOOK": receiver.url, "FEATURESTORE_FRESHNESS_WEBHOOK_SECRET": "s1gning"}
    settings = load_settings(fresh.root, environment)
    assert settings.freshness.webhook is not None
    assert settings.freshness.webhook.get_secret_value() == receiver.url
    assert "t0psecret" not in str(shown(settings)) + repr(settings)
    assert "s1gning" not in str(shown(settings)) + repr(settings)
