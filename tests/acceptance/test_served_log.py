"""From `serve` to `verify --served`: workers that record, one of them killed, and the proof of what they answered."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from featurestore.online.keys import encode_keys
from featurestore_client import FeatureClient
from tests.fix_cli import Run
from tests.fix_repository import NOON, SmallRepository, hours, repository, weather
from tests.waiting import WAIT_S, until

__all__ = ["repository"]

SETTINGS = {"FEATURESTORE_SERVED_LOG_PATH": "served", "FEATURESTORE_SERVED_LOG_SAMPLE": "1"}


@pytest.fixture
def published(repository: SmallRepository) -> SmallRepository:
    """Two airports, an hour old."""
    repository.apply(weather())
    repository.write("weather/a.parquet", [("JFK", NOON, 1.0, 1), ("LGA", NOON, 2.0, 2)])
    repository.run()
    repository.at(NOON + hours(1)).opened().close()
    return repository


@contextmanager
def served(small: SmallRepository) -> Iterator[tuple[subprocess.Popen[str], FeatureClient]]:
    """`featurestore serve` that records everything, and a client of it."""
    with small.start_command("serve", "--port", "0", **SETTINGS) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 60)
            assert ready, "it did not get ready"
            with FeatureClient(process.stdout.readline().strip().removeprefix("serving on ")) as client:
                yield process, client
        finally:
            process.kill()


def records(folder: Path) -> int:
    """How many whole records a log holds, read while it is written."""
    rows = 0
    for path in folder.glob("*.arrows"):
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    rows += batch.num_rows
        except pa.ArrowInvalid:
            pass
    return rows


def test_what_clients_received_is_proved_and_a_foreign_write_is_found(inside: Run, published: SmallRepository) -> None:
    log = published.root / "served"
    ask = lambda client: client.get_online_features(["weather:temp"], {"origin": ["JFK", "LGA", "EWR"]})  # noqa: E731
    with served(published) as (process, client):
        for _ in range(3):
            assert ask(client).to_numpy()["temp"].tolist()[:2] == [1.0, 2.0]
        process.terminate()
        assert process.wait(timeout=WAIT_S) == 0
    clean = inside(published.root, "verify", "--served", log).ok()
    assert clean.out.splitlines()[2].split() == ["weather@1", "9", "9", "0", "0", "0"]
    assert clean.out.endswith("9 records equal, no difference\n")

    key = encode_keys([pa.array(["JFK"])], list(weather().join_keys.values()))
    row = published.stored()[key[0].as_py()]
    published.online.overwrite("weather@1", key, pa.array([row[:-16] + b"\1" * 8 + row[-8:]], pa.binary()))
    with served(published) as (process, client):
        ask(client)
        until(lambda: records(log) == 12)
        process.kill()  # what was written by then is there

    found = inside(published.root, "verify", "--served", log, "--json")
    assert found.code == 1
    assert {name: found.json[name] for name in ("equal", "files", "cut", "dropped")} == {
        "equal": False, "files": 2, "cut": 1, "dropped": 0,
    }  # fmt: skip
    (view,) = found.json["views"]
    assert (view["view"], view["records"], view["equal"]) == ("weather@1", 12, 11)
    assert view["faults"] == {"foreign write": 1}
    assert view["examples"][0]["key"] == {"origin": "JFK"}
    told = inside(published.root, "verify", "--served", log)
    assert told.code == 1
    assert "weather@1 foreign write: origin=JFK at 2024-03-01T13:00:00Z: PRESENT" in told.out
    assert "1 of 2 files are cut off" in told.out


def test_a_log_that_is_none_and_flags_that_do_not_fit_are_refused(inside: Run, published: SmallRepository) -> None:
    assert "No such file" in inside(published.root, "verify", "--served", "nowhere").err
    misfit = inside(published.root, "verify", "--served", "x", "--sample", "3", "--json")
    assert misfit.code == 2
    assert "belong to the online store" in json.loads(misfit.out)["error"]["message"]
