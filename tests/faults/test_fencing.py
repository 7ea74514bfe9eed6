"""A writer that stands still longer than its lease, and wakes up when another has taken over, writes nothing more.

The writer is a real process of the command line that stops itself (SIGSTOP) at a failpoint instead of dying there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featurestore.clock import SystemClock, to_us
from featurestore.errors import StoreBusy
from tests.fix_redis import RedisFarm
from tests.fix_repository import NOON, Row, SmallRepository, hours, weather
from tests.waiting import until

COMMAND = "materialize-incremental"
ROWS = 35
LEASE_S = 1.0
#: The command line, in which a failpoint stops the process and, once it is woken up, lets it go on. Never in the midst
#: of a renewal, which would keep the registry's write lock.
STOPPING = """
import os, signal, sys, threading, time
from featurestore.cli.main import main
from featurestore.registry.state import StateStore
renewing, renew = threading.Lock(), StateStore.renew_lease
def renewed(*arguments):
    with renewing:
        return renew(*arguments)
def stop(code):
    with renewing:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.2)  # a thread goes on for a moment before all of them stand still
StateStore.renew_lease, os._exit = renewed, stop
sys.exit(main(sys.argv[1:]))
"""


def some_rows() -> list[Row]:
    return [(f"A{n:03}", NOON - hours(1 + n % 3), float(n), n) for n in range(ROWS)]


@pytest.fixture(params=["embedded", "shared"])
def waiting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """A repository with short leases whose source waits to be read: 4 batches."""
    if request.param == "embedded":
        small = SmallRepository(tmp_path / "repository", lease_s=LEASE_S)
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        url: str = request.getfixturevalue("postgres_shared")
        project = f"fencing_{uuid.uuid4().hex}"
        root = tmp_path / "repository"
        small = SmallRepository.on_servers(root, project, url, farm.valkey.url, lease_s=LEASE_S)
    small.apply(weather())
    small.write("weather/a.parquet", some_rows())
    yield small
    small.close()


@contextmanager
def stopped(repository: SmallRepository, failpoint: str) -> Iterator[subprocess.Popen[str]]:
    """A job that stands still at the failpoint, its lease run out."""
    with repository.start_command(COMMAND, code=STOPPING, FEATURESTORE_FAILPOINT=failpoint) as job:
        try:
            status = os.waitid(os.P_PID, job.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert status is not None
            assert status.si_code == os.CLD_STOPPED
            until(lambda: expired(repository))
            yield job
        finally:
            job.kill()


def expired(repository: SmallRepository) -> bool:
    with repository.state.database.read() as connection:
        until_us: int = connection.exec_driver_sql("SELECT max(expires_at_us) FROM leases").scalar_one()
    return until_us < to_us(SystemClock().now())


def woken(job: subprocess.Popen[str]) -> str:
    """Let the job go on; it ends with exit code 4. What it said."""
    job.send_signal(signal.SIGCONT)
    out, errors = job.communicate(timeout=60)
    assert job.returncode == 4, (job.returncode, out, errors)
    assert "Traceback" not in errors
    return errors


def assert_of_one_writer(repository: SmallRepository) -> None:
    """Every row once, in the order in which one writer would have placed them; online its projection."""
    assert repository.history().column("seen").to_pylist() == list(range(ROWS))
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    repository.assert_verified()


@pytest.mark.parametrize(
    "failpoint",
    [
        "append.begin",
        "append.begin:3",
        "append.after_commit:2",
        "load.before_cursor",
        "materialize.between",
        "publish.after_batch:2",
        "publish.before_commit",
    ],
)
def test_a_paused_writer_that_wakes_up_after_another_finished_writes_nothing(
    waiting: SmallRepository, failpoint: str
) -> None:
    with stopped(waiting, failpoint) as job:
        waiting.done()
        finished = (waiting.history(), waiting.stored(), waiting.state.publish_log("weather@1"))

        errors = woken(job)

    assert "the lease of this job was taken over by" in errors
    assert "run it again to resume" in errors
    assert waiting.history().equals(finished[0])
    assert (waiting.stored(), waiting.state.publish_log("weather@1")) == finished[1:]
    assert_of_one_writer(waiting)


def test_a_writer_paused_inside_a_commit_keeps_others_out_of_history(waiting: SmallRepository) -> None:
    with stopped(waiting, "append.before_commit:2") as job:
        with pytest.raises(StoreBusy, match="held by"):
            waiting.done()

        woken(job)

    # What it had confirmed under the lock of the store was committed, and nothing after it.
    assert waiting.history().num_rows == 20
    waiting.done()
    assert_of_one_writer(waiting)


def test_of_two_jobs_at_once_on_one_view_one_is_told_who_works_on_it(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", some_rows())
    with repository.start_command(COMMAND, code=STOPPING, FEATURESTORE_FAILPOINT="append.after_commit") as first:
        try:
            os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            second = repository.run_command(COMMAND)
            first.send_signal(signal.SIGCONT)
            _, errors = first.communicate(timeout=60)
        finally:
            first.kill()  # it may stand still
    assert second.returncode == 4, second.stderr
    assert "is being written by" in second.stderr
    assert f"pid {first.pid}" in second.stderr
    assert first.returncode == 0, errors
    assert_of_one_writer(repository)
