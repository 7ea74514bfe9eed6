"""`featurestore serve --workers`: processes on one port, replaced when they die, rolled and stopped under load."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column
from featurestore_client.errors import request_failed
from tests.acceptance.test_serve import served
from tests.waiting import WAIT_S, until

COMMAND = [sys.executable, "-m", "featurestore.cli.main"]
NOW = "2024-05-01T20:00:00Z"
METHOD = "/featurestore.serving.v1.FeatureServing/GetOnlineFeatures"
#: Between two calls of a client: the load must leave the new workers room to start.
PAUSE_S = 0.02


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small template, applied and materialized."""
    folder = tmp_path_factory.mktemp("repository") / "store"
    for arguments in (
        ["init", str(folder), "--template", "minimal"],
        ["-C", str(folder), "apply"],
        ["-C", str(folder), "--now", NOW, "materialize", "2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"],
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def supervised(repository: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A supervisor with two workers that are ready, and their address."""
    command = [*COMMAND, "-C", str(repository), "--now", NOW, "serve", "--port", "0", "--workers", "2", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], WAIT_S)
            assert ready, "it did not get ready"
            yield process, process.stdout.readline().strip().removeprefix("serving on ")
        finally:
            process.kill()


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(pid) for pid in listed.split()}


class Load:
    """Clients that ask all the time, each call again inside its deadline where ours would; keeps what failed."""

    def __init__(self, address: str, clients: int = 2, timeout_s: float = 60.0) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._timeout_s, self._stop = timeout_s, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(address,)) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends()

    def ends(self) -> None:
        """Stop asking, once the calls under way are answered: while there is somebody to answer them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Wait for more answers."""
        answered = self.answered
        until(lambda: self.answered > answered + 20)

    def _run(self, address: str) -> None:
        request = pb.GetOnlineFeaturesRequest(service="comfort")
        request.keys.append(encode_column("station", ["north", "east"]))
        message = request.SerializeToString()
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(address, options) as channel:
            method = channel.unary_unary(METHOD)
            while not self._stop.is_set():
                self._call(method, message)
                time.sleep(PAUSE_S)

    def _call(self, method: grpc.UnaryUnaryMultiCallable, message: bytes) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                method(message, timeout=deadline - time.monotonic())
            except grpc.RpcError as error:
                if request_failed(error).retryable and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                self.failures.append(f"{error.code()}: {error.details()}")
            else:
                self.answered += 1
            return


def test_workers_are_rolled_replaced_and_stopped_and_no_request_fails(repository: Path) -> None:
    with supervised(repository) as (process, address):
        old = workers_of(process)
        assert len(old) == 2
        with Load(address) as load:
            process.send_signal(signal.SIGHUP)
            until(lambda: len(workers_of(process)) == 2 and not workers_of(process) & old)
            load.goes_on()

            victim = min(workers_of(process))
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(workers_of(process) - {victim}) == 2)
            load.goes_on()
        assert load.failures == []

        command = [*COMMAND, "-C", str(repository), "serve", "--port", address.rpartition(":")[2], "--workers", "2"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert second.returncode == 2
        assert "choose another port" in second.stderr

        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_process_that_is_told_to_stop_and_another_at_its_port_fail_no_request(repository: Path) -> None:
    """SIGTERM under load: what is under way is answered; what comes then finds the one that takes over."""
    with served(repository) as (old, address), Load(address) as load:
        load.goes_on()
        old.send_signal(signal.SIGTERM)
        assert old.wait(WAIT_S) == 0
        with served(repository, "--port", address.rpartition(":")[2]):
            load.goes_on()
            load.ends()
    assert load.failures == []


def test_workers_end_when_their_supervisor_was_killed(repository: Path) -> None:
    with supervised(repository) as (process, _):
        workers = workers_of(process)
        process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_is_not_ready_yet_ends_when_told_to(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Its preload waits for a file that nobody makes."""
    settings = {"POLICIES": "file", "KEYS_FILE": str(tmp_path / "none.csv"), "ON_FAILURE": "wait"}
    for name, value in settings.items():
        monkeypatch.setenv(f"FEATURESTORE_PRELOAD_{name}", value)
    monkeypatch.setenv("FEATURESTORE_NEAR_CACHE_MEGABYTES", "8")
    command = [*COMMAND, "-C", str(repository), "serve", "--port", "0", "--workers", str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "failed, not ready" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            out, said = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, ""), said
    assert "Traceback" not in said


def test_workers_that_cannot_start_end_it_with_their_exit_code(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database, whatever its name says" * 100)
    command = [*COMMAND, "-C", str(repository), "serve", "--port", "0", "--workers", "2"]

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={**os.environ, "FEATURESTORE_ONLINE_PATH": str(broken)},
    )

    assert done.returncode == 3
    assert done.stdout == ""
    assert "not a SQLite database" in done.stderr
