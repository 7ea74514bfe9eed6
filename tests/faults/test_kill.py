"""A job that is killed anywhere: the next run ends where an uninterrupted one ends, none lost, none twice.

The jobs are real processes of the command line; failpoints end them as SIGKILL would.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import pytest

from featurestore import SqlSource
from featurestore.failpoint import KILLED
from featurestore.ingest.load import LoadCounts
from tests.fix_repository import BATCH_ROWS, NOON, Row, SmallRepository, hours, weather

ROWS = 35
COMMAND = "materialize-incremental"
#: Python ends a process by the signal itself where it met it in an import; to a shell both are 130.
INTERRUPTED = (130, -signal.SIGINT)


def some_rows(count: int = ROWS) -> list[Row]:
    """As many entities as rows, so that publishing takes as many batches as loading."""
    return [(f"A{n:03}", NOON - hours(1 + n % 3), float(n), n) for n in range(count)]


@pytest.fixture
def loaded(repository: SmallRepository) -> SmallRepository:
    """A repository whose source waits to be read: 4 batches."""
    repository.apply(weather())
    rows = some_rows()
    repository.write("weather/a.parquet", rows[:25])
    repository.write("weather/b.parquet", rows[25:])
    return repository


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The history of a run that nobody killed."""
    small = SmallRepository(tmp_path_factory.mktemp("uninterrupted"))
    small.apply(weather())
    rows = some_rows()
    small.write("weather/a.parquet", rows[:25])
    small.write("weather/b.parquet", rows[25:])
    small.done()
    history = small.history().drop_columns(["_sequence"]).to_pylist()
    small.close()
    return history


def assert_as_uninterrupted(repository: SmallRepository, uninterrupted: list[dict[str, Any]]) -> None:
    """History is the same row by row and position by position, and the online store is its projection."""
    history = repository.history()
    assert history.drop_columns(["_sequence"]).to_pylist() == uninterrupted
    sequences = history.column("_sequence").to_pylist()
    assert sequences == sorted(set(sequences))
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()


def killed(repository: SmallRepository, failpoint: str) -> None:
    """A run of the command that a failpoint ends."""
    ended = repository.run_command(COMMAND, FEATURESTORE_FAILPOINT=failpoint)
    assert ended.returncode == KILLED, ended.stderr


# Where the job is killed -> rows that are history by then.
KILLS = {
    "append.before_commit": 0,
    "append.before_commit:2": 10,
    "append.before_commit:4": 25 + 5,
    "append.after_commit": 10,
    "append.after_commit:3": 25,
    "append.after_commit:4": 35,
    "load.before_cursor": 35,
    "materialize.between": 35,
    "publish.after_batch": 35,
    "publish.after_batch:3": 35,
    "publish.before_commit": 35,
}


def settled_before(failpoint: str) -> int:
    """Batches are 10, 10, 5 (the end of the first file) and 10."""
    name, _, nth = failpoint.partition(":")
    commits = {"append.before_commit": int(nth or 1) - 1, "append.after_commit": int(nth or 1)}.get(name, 4)
    return [0, 10, 20, 25, 35][commits]


@pytest.mark.parametrize("failpoint", KILLS)
def test_the_next_run_finishes_what_a_killed_one_began(
    failpoint: str, loaded: SmallRepository, uninterrupted: list[dict[str, Any]]
) -> None:
    killed(loaded, failpoint)
    settled = settled_before(failpoint)
    assert loaded.history().num_rows == settled
    assert loaded.state.publish_state("weather@1") is None

    outcome = loaded.done()

    assert_as_uninterrupted(loaded, uninterrupted)
    # What the killed run had read and not committed is one batch at most, and is all that is read again.
    assert outcome.loaded is not None
    assert outcome.loaded.read == outcome.loaded.added == ROWS - settled
    assert loaded.done().loaded == LoadCounts()
    assert [run.state for run in loaded.state.runs()] == ["succeeded", "succeeded", "running"]


@pytest.mark.parametrize("failpoint", ["append.after_commit", "append.before_commit:2", "publish.after_batch:2"])
def test_a_job_that_is_killed_again_and_again_gets_there(
    failpoint: str, loaded: SmallRepository, uninterrupted: list[dict[str, Any]]
) -> None:
    before = -1
    for _ in range(10):
        ended = loaded.run_command(COMMAND, FEATURESTORE_FAILPOINT=failpoint)
        if ended.returncode == 0:
            break
        assert ended.returncode == KILLED, ended.stderr
        progress = loaded.history().num_rows + loaded.online.count("weather@1")
        assert progress > before or failpoint.startswith("publish")
        before = progress
        if failpoint.startswith("publish"):
            break  # publishing begins anew every time, and is safe to
    loaded.done()
    assert_as_uninterrupted(loaded, uninterrupted)


@pytest.mark.parametrize("failpoint", ["append.before_commit:2", "append.after_commit:2", "load.before_cursor"])
def test_a_killed_load_of_a_span_is_resumed_by_the_same_command(
    failpoint: str, loaded: SmallRepository, uninterrupted: list[dict[str, Any]]
) -> None:
    span = [(NOON - hours(9)).isoformat(), NOON.isoformat()]
    ended = loaded.run_command("materialize", *span, FEATURESTORE_FAILPOINT=failpoint)
    assert ended.returncode == KILLED, ended.stderr
    assert loaded.run_command("materialize", *span).returncode == 0
    assert_as_uninterrupted(loaded, uninterrupted)


def test_a_source_that_changed_after_the_kill_is_read_anew_and_nothing_is_twice(loaded: SmallRepository) -> None:
    killed(loaded, "append.after_commit:3")
    late: Row = ("A000", NOON - hours(900), 7.0, 7)
    loaded.write("weather/0.parquet", [late])
    outcome = loaded.done()
    assert outcome.loaded == LoadCounts(read=36, added=11, duplicates=25)
    assert loaded.history().num_rows == 36
    loaded.assert_positions_contiguous()
    loaded.assert_online_is_projection()


def test_killing_a_publish_of_corrections_leaves_no_older_row(loaded: SmallRepository) -> None:
    loaded.done()
    loaded.write("weather/c.parquet", [(key, at, -temp, seen) for key, at, temp, seen in some_rows() if temp])
    killed(loaded, "publish.after_batch:2")
    loaded.at(NOON + hours(1)).done()
    corrected = [row for row in loaded.history().to_pylist() if row["temp"] < 0]
    assert len(corrected) == ROWS - 1
    loaded.assert_online_is_projection()


def test_a_kill_by_the_system_at_any_moment_loses_nothing_and_doubles_nothing(repository: SmallRepository) -> None:
    """SIGKILL, sent whenever the job has taken the numbers of another few batches."""
    repository.apply(weather())
    rows = some_rows(500)
    repository.write("weather/a.parquet", rows)
    cut_off = 0
    for _ in range(3):
        with repository.start_command(COMMAND) as job:
            enough = next_sequence(repository) + 7 * BATCH_ROWS
            while next_sequence(repository) < enough and job.poll() is None:
                wait()
            job.send_signal(signal.SIGKILL)
            job.communicate()
        assert job.returncode in (-signal.SIGKILL, 0)  # the last may be quicker, where this process has to wait
        cut_off += 0 < repository.history().num_rows < len(rows)
    assert cut_off > 0
    repository.done()
    assert repository.values() == sorted(((key, at, at, temp, seen) for key, at, temp, seen in rows), key=repr)
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()


@pytest.mark.parametrize("batches", [1, 6])
def test_ctrl_c_ends_a_load_with_130_and_the_next_run_resumes_it(batches: int, repository: SmallRepository) -> None:
    repository.apply(weather())
    rows = some_rows(300)
    repository.write("weather/a.parquet", rows)
    with repository.start_command(COMMAND, "--json") as job:
        enough = next_sequence(repository) + batches * BATCH_ROWS
        while next_sequence(repository) < enough and job.poll() is None:
            wait()
        job.send_signal(signal.SIGINT)
        out, errors = job.communicate(timeout=60)
    assert job.returncode in INTERRUPTED, errors
    assert '"exit_code": 130' in out
    assert "Traceback" not in errors
    run = repository.state.runs()[0]
    assert run.state == "interrupted"
    assert run.finished_at_us is not None
    settled = repository.history().num_rows
    assert settled < len(rows)

    outcome = repository.done()

    assert outcome.loaded is not None
    assert outcome.loaded.duplicates == 0
    assert outcome.loaded.added == outcome.loaded.read == len(rows) - settled
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()


def wait() -> None:
    """A moment, in which the job can work."""
    threading.Event().wait(0.01)


def next_sequence(repository: SmallRepository) -> int:
    """How far the view's numbers are given out: tells from outside how far a job is."""
    with repository.state.database.read() as connection:
        return connection.exec_driver_sql("SELECT coalesce(max(next), 1) FROM sequences").scalar_one()


HOLDER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("holding", flush=True)
sys.stdin.read()
"""


def test_a_second_process_holding_the_history_file_is_named(loaded: SmallRepository) -> None:
    hold = [sys.executable, "-c", HOLDER, str(loaded.root / "offline.duckdb")]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        ended = loaded.run_command(COMMAND)
        holder.communicate("")
    assert ended.returncode == 4
    assert f"is held by process {holder.pid}" in ended.stderr
    assert loaded.done().loaded == LoadCounts(read=ROWS, added=ROWS)


SLOW_QUERY = """
SELECT 'JFK' AS origin, TIMESTAMPTZ '2024-01-01' AS at, sum(sqrt(a.range * b.range)) AS temp, 1::BIGINT AS seen
FROM range(200000) AS a, range(200000) AS b GROUP BY ALL
"""


def test_ctrl_c_stops_a_query_that_would_run_for_long(repository: SmallRepository) -> None:
    repository.write("weather/a.parquet", some_rows(1))
    source = SqlSource(query=SLOW_QUERY, inputs={"rows": "data/weather"}, timestamp_field="at")
    repository.apply(weather(source=source))
    with repository.start_command(COMMAND) as job:
        while repository.state.cursor("weather@1") is None and job.poll() is None:
            wait()
        # The cursor is noted just before the query starts; a signal that comes too early is met as well.
        with suppress(subprocess.TimeoutExpired):
            job.wait(timeout=1)
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=60)
    assert job.returncode in INTERRUPTED, errors
    assert "defect" not in errors
    assert repository.state.runs()[0].state == "interrupted"
