"""`featurestore serve` as a user runs it: a process of its own over a repository that the other commands made."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featurestore import Status
from featurestore_client import FeatureClient
from tests.waiting import WAIT_S

COMMAND = [sys.executable, "-m", "featurestore.cli.main"]
NOW = "2024-05-01T20:00:00Z"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small template, applied and materialized."""
    folder = tmp_path_factory.mktemp("repository") / "store"
    run("init", str(folder), "--template", "minimal")
    run("-C", str(folder), "apply")
    run("-C", str(folder), "--now", NOW, "materialize", "2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z")
    return folder


@contextmanager
def served(repository: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process on a free port, and its address."""
    command = [*COMMAND, "-C", str(repository), "--now", NOW, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], WAIT_S)
            assert ready, "it did not get ready"
            yield process, process.stdout.readline().strip().removeprefix("serving on ")
        finally:
            process.kill()


def test_it_answers_what_get_online_features_answers(repository: Path) -> None:
    shown = run(
        "-C", str(repository), "--now", NOW, "--json",
        "get-online-features", "--service", "comfort", "--key", "station=north", "--key", "station=east",
    )  # fmt: skip
    expected = json.loads(shown.stdout)

    with served(repository) as (_, address), FeatureClient(address) as client:
        reply = client.get_online_features("comfort", {"station": ["north", "east"]})

    columns = reply.to_arrow().to_pydict()
    assert columns == {name: expected[name] for name in columns}
    assert any(values[0] is not None for values in columns.values())
    assert all(values[1] is None for values in columns.values())
    assert [statuses.tolist() for statuses in reply.statuses.values()] == [[Status.PRESENT, Status.NOT_FOUND]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_healthy_until_told_to_stop_and_then_ends_well(repository: Path, number: signal.Signals) -> None:
    with served(repository) as (process, address):
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING

        process.send_signal(number)

        assert process.wait(timeout=WAIT_S) == 0
        assert process.stderr is not None
        said = process.stderr.read()
        assert "Traceback" not in said
        assert "leaked" not in said  # as DuckDB says of what is never collected


def test_a_client_finds_the_server_that_took_over_the_port(repository: Path) -> None:
    """The old server drains; the open client, which tries again inside its deadline, meets the new one."""
    with served(repository) as (old, address), FeatureClient(address, timeout_s=20) as client:
        assert len(client.get_online_features("comfort", {"station": ["north"]})) == 1
        old.send_signal(signal.SIGTERM)
        assert old.wait(timeout=WAIT_S) == 0
        port = address.rpartition(":")[2]
        with served(repository, "--port", port) as (_, same):
            assert same == address
            assert len(client.get_online_features("comfort", {"station": ["north"]})) == 1


def test_rest_metrics_and_json_lines_beside_grpc(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses are in the log; REST answers what `get-online-features` shows; a scrape counts it."""
    monkeypatch.setenv("FEATURESTORE_METRICS_PORT", "0")
    monkeypatch.setenv("FEATURESTORE_LOGGING_FORMAT", "json")
    with served(repository, "--rest-port", "0") as (process, _):
        assert process.stderr is not None
        said: dict[str, str] = {}
        while len(said) < 2:
            line = json.loads(process.stderr.readline())
            name, _, address = line["message"].partition(" on ")
            if name in ("REST", "metrics"):
                said[name] = address
        asked = json.dumps({"feature_service": "comfort", "entities": {"station": ["north", "east"]}}).encode()
        headers = {"content-type": "application/json", "x-request-id": "mine"}
        request = urllib.request.Request(f"{said['REST']}/get-online-features", asked, headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.headers["x-request-id"] == "mine"
            answer = json.load(reply)
        with urllib.request.urlopen(said["metrics"], timeout=10) as reply:
            scraped = reply.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_S) == 0

    shown = run(
        "-C", str(repository), "--now", NOW, "--json",
        "get-online-features", "--service", "comfort", "--key", "station=north", "--key", "station=east",
    )  # fmt: skip
    columns = {
        name: result["values"]
        for name, result in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
    }
    assert columns == {name: json.loads(shown.stdout)[name] for name in columns}
    assert answer["results"][1]["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert 'featurestore_requests_total{code="OK",method="/get-online-features"' in scraped
    assert "featurestore_view_watermark_age_seconds{" in scraped


def test_a_taken_port_ends_it_with_the_users_exit_code(repository: Path) -> None:
    with served(repository) as (_, address):
        command = [*COMMAND, "-C", str(repository), "serve", "--port", address.rpartition(":")[2]]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert second.returncode == 2
    assert "choose another port" in second.stderr
    assert second.stdout == ""


def test_a_broken_online_store_keeps_it_from_getting_ready(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database, whatever its name says" * 100)
    command = [*COMMAND, "-C", str(repository), "serve", "--port", "0"]

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"FEATURESTORE_ONLINE_PATH": str(broken)}
    )

    assert done.returncode == 3
    assert done.stdout == ""
