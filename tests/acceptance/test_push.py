"""Pushing as users do: the command with files, and clients of a serving process, which never takes the DuckDB file."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from featurestore_client import FeatureClient, RequestFailed
from tests.acceptance.test_serve import NOW, served
from tests.fix_cli import Done, Run

HEADER = "station,measured_at,temperature,humidity\n"
FRESH = "south,2024-05-01T19:00:00Z,21.5,40\n"
HOT = "south,2024-05-01T19:30:00Z,99.0,40\n"
INSTANT = datetime(2024, 5, 1, 19, 15, tzinfo=UTC)


@pytest.fixture
def repository(tmp_path: Path, inside: Run) -> Path:
    """The small template, applied and materialized."""
    folder = tmp_path / "store"
    inside(tmp_path, "init", "store", "--template", "minimal").ok()
    inside(folder, "apply").ok()
    inside(folder, "--now", NOW, "materialize-incremental").ok()
    return folder


def push(inside: Run, repository: Path, content: str, name: str = "rows.csv") -> Done:
    """Push a file."""
    (repository / name).write_text(content)
    return inside(repository, "--now", NOW, "--json", "push", "readings", str(repository / name))


def verified(inside: Run, repository: Path) -> Any:
    """What `verify` finds after one more publish."""
    inside(repository, "--now", NOW, "materialize-incremental").ok()
    return inside(repository, "--now", NOW, "--json", "verify").ok().json


def test_a_file_is_pushed_row_by_row_and_the_exit_code_tells_of_rejected_rows(repository: Path, inside: Run) -> None:
    done = push(inside, repository, HEADER + FRESH + HOT)

    assert done.code == 2
    counts = {name: done.json[name] for name in ("rows", "accepted", "duplicate", "correction", "pending", "rejected")}
    assert counts == {"rows": 2, "accepted": 1, "duplicate": 0, "correction": 0, "pending": 0, "rejected": 1}
    (rejection,) = done.json["rejections"]
    assert (rejection["row"], rejection["field"], rejection["rule"]) == (1, "temperature", "le")
    assert push(inside, repository, HEADER + FRESH).ok().json["duplicate"] == 1
    shown = inside(
        repository, "--now", NOW, "--json", "get-online-features", "--service", "comfort",
        "--key", "station=south",
    )  # fmt: skip
    assert 21.5 in [value for values in shown.json.values() for value in values]
    assert verified(inside, repository)["equal"]


def test_a_file_that_cannot_be_pushed_is_the_users_fault(repository: Path, inside: Run) -> None:
    assert push(inside, repository, "station,measured_at\nsouth,2024-05-01T19:00:00Z\n").code == 2
    assert push(inside, repository, HEADER, "rows.txt").code == 2
    missing = inside(repository, "push", "readings", "nowhere.csv")
    assert (missing.code, "there is no file" in missing.err) == (2, True)
    assert push(inside, repository, HEADER).ok().json["rows"] == 0


def rows(count: int) -> dict[str, list[Any]]:
    return {
        "station": [f"s{number}" for number in range(count)],
        "measured_at": [INSTANT + timedelta(seconds=number) for number in range(count)],
        "temperature": [float(number) for number in range(count)],
        "humidity": list(range(count)),
    }


def test_a_client_pushes_while_somebody_else_holds_the_history(repository: Path, inside: Run) -> None:
    hold = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(repository / "data" / "offline.duckdb")]
    with (
        served(repository) as (_, address),
        FeatureClient(address) as client,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        answer = client.push("readings", rows(3))
        assert (answer.view, answer.statuses.tolist(), answer.pending_reason) == ("readings@1", [1, 1, 1], "")
        reply = client.get_online_features("comfort", {"station": ["s0", "s2"]})
        assert [0.0, 2.0] in [values.tolist() for values in reply.to_numpy().values()]
        assert client.push("readings", rows(3)).statuses.tolist() == [2, 2, 2]
        holder.communicate("")
        # The serving process is up, and the file is free for whoever comes.
        duckdb.connect(str(repository / "data" / "offline.duckdb")).close()
    assert verified(inside, repository)["equal"]


def test_refusals_tell_the_client_what_to_mend(repository: Path) -> None:
    bad = {**rows(2), "temperature": [1.0, 99.0], "station": [None, "s1"]}
    with served(repository) as (_, address), FeatureClient(address) as client:
        answer = client.push("readings", bad)
        assert answer.statuses.tolist() == [5, 5]
        told = [(r.row, r.field, r.rule, r.value) for r in answer.rejections]
        assert told == [(0, "station", "not_null", "null"), (1, "temperature", "le", "99.0")]
        with pytest.raises(RequestFailed, match=r"NOT_FOUND: no feature view named 'reading'.*did you mean"):
            client.push("reading", rows(1))
        with pytest.raises(RequestFailed, match="INVALID_ARGUMENT: .* lacks the column 'humidity'"):
            client.push("readings", {name: column for name, column in rows(1).items() if name != "humidity"})
        with pytest.raises(RequestFailed, match=r"INVALID_ARGUMENT: .* different lengths"):
            client.push("readings", {**rows(2), "station": ["a"]})
        with pytest.raises(RequestFailed, match=r"INVALID_ARGUMENT: .* at most 10000 fit"):
            client.push("readings", rows(10_001))
