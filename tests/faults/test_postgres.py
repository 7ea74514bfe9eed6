"""Postgres goes away in the middle of a load, and with it history and registry: the run says so, the next one finishes,
nothing is lost or doubled.

The job is the real command; the server is one of this test's own, so that it can be stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from featurestore.failpoint import KILLED
from featurestore.ingest.load import LoadCounts
from featurestore.offline.postgres import PostgresOfflineStore
from featurestore.registry.registry import open_state
from materialization.lease import held_lease
from tests.faults.test_fencing import STOPPING
from tests.fix_postgres import LocalServer, drop_schema, local_server
from tests.fix_repository import NOON, PROJECT, Row, SmallRepository, hours, weather
from tests.waiting import WAIT_S, until

ROWS = 400
COMMAND = "materialize-incremental"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as started:
        yield started


@pytest.fixture
def shared(repository: SmallRepository, server: LocalServer) -> Iterator[SmallRepository]:
    """A repository whose history and registry lie in Postgres, and whose source waits to be read."""
    for schema in (PROJECT, f"_registry_{PROJECT}"):
        drop_schema(server.url, schema)
    repository.offline.close()
    repository.registry.close()
    repository.offline = PostgresOfflineStore(server.url, PROJECT, wait_s=10)
    repository.registry, repository.state = open_state(server.url, PROJECT)
    repository.offline_settings = repository.registry_settings = f'kind = "postgres"\nurl = "{server.url}"'
    repository.apply(weather())
    repository.write("weather/a.parquet", some_rows())
    yield repository
    repository.offline.close()


def some_rows() -> list[Row]:
    return [(f"A{n:03}", NOON - hours(1 + n % 3), float(n), n) for n in range(ROWS)]


def assert_whole(repository: SmallRepository, server: LocalServer) -> None:
    """Every source row once, positions without a gap, online what history says."""
    with psycopg.connect(server.url) as connection:
        connection.execute("SET timezone = 'UTC'")
        table = f"{PROJECT}.weather__v1"
        rows = connection.execute(f"SELECT origin, event_timestamp, temp, seen FROM {table} ORDER BY origin").fetchall()
        placed = connection.execute(f"SELECT _position, _sequence FROM {table} ORDER BY 1").fetchall()
    assert rows == some_rows()
    assert [position for position, _ in placed] == list(range(1, ROWS + 1))
    assert len({sequence for _, sequence in placed}) == ROWS
    assert repository.online.count("weather@1") == ROWS
    assert repository.state.publish_state("weather@1") is not None


#: Writers at a table: the registry waits for turns of its own, and autovacuum for tables.
WRITERS_WAITING = (
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND mode = 'RowExclusiveLock'"
)


@contextmanager
def writer_waiting(server: LocalServer, job: subprocess.Popen[str]) -> Iterator[None]:
    """Entered once the job, which stands still until then, is in the middle of a batch, at a table that somebody else
    has locked."""
    # No `with`: the server ends this session too.
    connection = psycopg.connect(server.url)
    try:
        connection.execute(f"LOCK TABLE {PROJECT}.weather__v1 IN EXCLUSIVE MODE")
        job.send_signal(signal.SIGCONT)
        until(lambda: connection.execute(WRITERS_WAITING).fetchone() != (0,))
        yield
    finally:
        connection.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut down", "crashed"])
def test_a_server_restarted_in_a_load_ends_it_clearly_and_the_next_run_finishes(
    shared: SmallRepository, server: LocalServer, how: signal.Signals
) -> None:
    with shared.start_command(COMMAND, code=STOPPING, FEATURESTORE_FAILPOINT="append.after_commit:5") as job:
        try:
            os.waitid(os.P_PID, job.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            with writer_waiting(server, job):
                server.stop(how)
            server.start()
            _, errors = job.communicate(timeout=WAIT_S)
        finally:
            job.kill()

    assert job.returncode == 3, errors
    assert "Traceback" not in errors
    assert "was lost" in errors
    settled = shared.offline.history_rows("weather@1")
    assert settled == 50
    assert shared.done().loaded == LoadCounts(read=ROWS - settled, added=ROWS - settled)
    assert_whole(shared, server)


def test_a_lease_is_renewed_again_once_the_server_is_back(shared: SmallRepository, server: LocalServer) -> None:
    with held_lease(shared.state, "weather@1", life_s=0.3) as held:
        server.stop()
        threading.Event().wait(0.3)  # renewals that find nobody
        server.start()
        until_us = held.lease.expires_at_us
        until(lambda: held.lease.expires_at_us > until_us)
        held.check()


@pytest.mark.parametrize("failpoint", ["append.before_commit:3", "append.after_commit:3"])
def test_a_job_killed_at_a_commit_is_finished_by_the_next(
    shared: SmallRepository, server: LocalServer, failpoint: str
) -> None:
    with shared.start_command(COMMAND, FEATURESTORE_FAILPOINT=failpoint) as job:
        _, errors = job.communicate(timeout=WAIT_S)
    assert job.returncode == KILLED, errors

    settled = 20 if "before" in failpoint else 30
    assert shared.offline.history_rows("weather@1") == settled
    assert shared.done().loaded == LoadCounts(read=ROWS - settled, added=ROWS - settled)
    assert_whole(shared, server)


def test_a_server_restarted_between_runs_is_met_again(shared: SmallRepository, server: LocalServer) -> None:
    assert shared.offline.position("weather@1") == 0
    server.stop()
    server.start()

    assert shared.done().loaded == LoadCounts(read=ROWS, added=ROWS)
    assert_whole(shared, server)
