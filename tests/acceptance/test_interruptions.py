"""A full disk, Ctrl-C, and other processes at work: told in words, with nothing lost and the way on open.

Exit code 3 for a disk that is full, 4 for what another process holds, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.acceptance.shop import NOW, VIEWS, at, declare_shop, write_spending
from tests.fix_cli import COMMAND, Contents, Done, Run, clean_environment, finish, prepare, run, start
from tests.waiting import WAIT_S

ROWS = 8_000
#: So many batches that a job can be met in the middle of its work.
SMALL_BATCHES = {"FEATURESTORE_MATERIALIZATION_BATCH_ROWS": "200"}
LARGE_BATCHES = {"FEATURESTORE_MATERIALIZATION_BATCH_ROWS": "2000"}
LOAD = ["materialize-incremental", "--views", "spending", "--json", "--now", NOW]


def many_rows() -> list:
    """A row of spending for each of many customers."""
    return [
        (100 + number, at("01 00:00") + timedelta(seconds=number), at("01 12:00"), number / 7, "new")
        for number in range(ROWS)
    ]


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop with many customers, applied and not materialized; never changed."""
    folder = declare_shop(tmp_path_factory.mktemp("declared") / "shop")
    write_spending(folder, many_rows())
    prepare(folder, "apply")
    return folder


@pytest.fixture(scope="module")
def calm(declared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it that was materialized and not disturbed; never changed."""
    folder = Path(shutil.copytree(declared, tmp_path_factory.mktemp("calm") / "shop"))
    prepare(folder, *LOAD)
    return folder


@pytest.fixture
def shop(declared: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(declared, tmp_path / "shop"))


def settled(folder: Path) -> int:
    """How many rows of spending a job has taken sequences for; history itself is the job's alone while it runs."""
    with closing(sqlite3.connect(folder / "data" / "registry.db")) as connection:
        found = connection.execute("SELECT next - 1 FROM sequences WHERE view = 'spending@1'").fetchone()
    return found[0] if found else 0


def wait_until(reached, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert process.poll() is None, f"it ended too early\n{process.communicate()}"
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.005)


def assert_told(done: Done, code: int, *said: str) -> None:
    """The exit code, every one of the words in the one JSON document, and no traceback anywhere."""
    assert done.code == code, f"{done.code}\n{done.out}\n{done.err}"
    assert [words for words in said if words not in done.error["message"]] == [], done.error
    assert "Traceback" not in done.out + done.err


def without_sequences(contents: Contents) -> list[dict]:
    """History in the order of positions; a batch that was cut off may have cost sequences."""
    rows = sorted(contents.history["shop.spending__v1"], key=lambda row: row["_position"])
    return [{name: value for name, value in row.items() if name != "_sequence"} for row in rows]


def training_set(inside: Run, folder: Path) -> str:
    """The digest of what is known of every customer."""
    how = ["--service", "loyalty", "--as-of", NOW, "--out", folder.parent / "t.parquet", "--json"]
    return inside(folder, "get-historical-features", *how).ok().json["digest"]


def assert_as_if_never_interrupted(inside: Run, folder: Path, calm: Path) -> None:
    """History, its book-keeping, what is online and training sets equal those of a run that nobody disturbed."""
    here, there = Contents.of(folder), Contents.of(calm)
    assert without_sequences(here) == without_sequences(there)
    assert here.history["shop._positions"] == there.history["shop._positions"]
    assert training_set(inside, folder) == training_set(inside, calm)
    verified = inside(folder, "verify", "--service", "loyalty", "--json", "--now", NOW).ok().json["views"][0]
    assert (verified["equal"], verified["pending"]) == (ROWS, 0)


# ------------------------------------------------------------------ Ctrl-C and jobs under way


@contextmanager
def standing_still(process: subprocess.Popen[str], folder: Path) -> Iterator[None]:
    """The process stopped at a moment when it holds no lock on the registry file, which others need to look."""
    while True:
        os.killpg(process.pid, signal.SIGSTOP)
        with closing(sqlite3.connect(folder / "data" / "registry.db", timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                break
            except sqlite3.OperationalError:
                os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.01)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def test_a_job_under_way_keeps_others_out_and_resumes_after_ctrl_c(inside: Run, shop: Path, calm: Path) -> None:
    job = start(shop, *LOAD, **SMALL_BATCHES)
    wait_until(lambda: settled(shop) >= 1_000, job)
    with standing_still(job, shop):
        second = inside(shop, *LOAD, **SMALL_BATCHES)
        dropped = inside(shop, "teardown", "--yes", "--json")
    os.killpg(job.pid, signal.SIGINT)
    interrupted = finish(job)

    assert_told(second, 4, "spending@1 is being written by", f"pid {job.pid} (materialize)", "wait for it to finish")
    assert second.error["retryable"] is True
    assert_told(dropped, 4, str(job.pid))
    assert_told(interrupted, 130, "interrupted; what was begun is finished or resumed by the next command")
    runs = inside(shop, "list", "runs", "--json").ok().json
    assert sorted(run["state"] for run in runs) == ["failed", "interrupted"]
    left = len(Contents.of(shop).history["shop.spending__v1"])
    assert 0 < left < ROWS

    resumed = inside(shop, *LOAD, **SMALL_BATCHES).ok().json["views"]["spending@1"]

    assert resumed["loaded"]["added"] == ROWS - left
    assert resumed["loaded"]["read"] == ROWS - left
    assert_as_if_never_interrupted(inside, shop, calm)


def test_ctrl_c_ends_a_long_query(shop: Path) -> None:
    """A query of a SQL source runs in the engine, where Python's own handling of signals does not reach."""
    source = 'FileSource(path="sources/spending.parquet", timestamp_field="at", created_timestamp_column="known")'
    query = (
        'SqlSource(query="SELECT * FROM s WHERE total < (SELECT sum(range) FROM range(1000000000000))", '
        'inputs={"s": "sources/spending.parquet"}, timestamp_field="at", created_timestamp_column="known")'
    )
    assert source in VIEWS
    text = VIEWS.replace(source, query).replace("FileSource,", "FileSource, SqlSource,")
    (shop / "definitions" / "views.py").write_text(text)
    prepare(shop, "apply")
    before = Contents.of(shop)
    job = start(shop, *LOAD)
    wait_until(lambda: lease_is_held(shop), job)
    time.sleep(0.5)
    os.killpg(job.pid, signal.SIGINT)
    began = time.monotonic()
    assert_told(finish(job), 130, "interrupted")
    assert time.monotonic() - began < 60, "the query went on"
    before.assert_kept(shop)
    assert not lease_is_held(shop)


def lease_is_held(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / "data" / "registry.db")) as connection:
        held = connection.execute("SELECT count(*) FROM leases WHERE view = 'spending@1' AND expires_at_us > 0")
        return bool(held.fetchone()[0])


# ------------------------------------------------------------------ other processes

HOLD = "import duckdb, sys; kept = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_process_that_holds_the_offline_store_is_named(inside: Run, shop: Path) -> None:
    file = shop / "data" / "offline.duckdb"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for command in (LOAD, ["verify", "--json"], ["teardown", "--json", "--yes"]):
            done = inside(shop, *command, FEATURESTORE_OFFLINE_WAIT_S="0.2")
            assert_told(done, 4, f"offline.duckdb is held by process {holder.pid}", "waited 0.2 s", "offline.wait_s")
        holder.communicate()
    assert inside(shop, *LOAD).ok().json["views"]["spending@1"]["loaded"]["added"] == ROWS


def test_of_two_applies_at_once_one_does_it_and_the_other_finds_it_done(tmp_path: Path) -> None:
    folder = declare_shop(tmp_path / "shop")
    patient = {"FEATURESTORE_REGISTRY_WAIT_S": "60", "FEATURESTORE_OFFLINE_WAIT_S": "60"}
    both = [start(folder, "apply", "--json", **patient) for _ in range(2)]
    done = [finish(process).ok().json for process in both]
    assert sorted(len(result["steps"]) for result in done) == [0, 8]
    assert [result["revision"] for result in done] == [1, 1]
    registry = Contents.of(folder).registry
    assert len(registry["applies"]) == 1
    assert len(registry["definitions"]) == 6


# ------------------------------------------------------------------ a full disk


def on_a_full_disk(folder: Path, limit_kib: int, *arguments: str, **environment: str) -> Done:
    """The command with a limit on the size of every file it writes: no file grows past it."""
    script = f'ulimit -f {limit_kib} && exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *COMMAND, *arguments],
        cwd=folder,
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finish(process)


def kib(path: Path) -> int:
    return path.stat().st_size // 1024


def test_a_load_that_fills_the_disk_is_told_and_resumes(inside: Run, shop: Path, calm: Path) -> None:
    limit = kib(shop / "data" / "offline.duckdb") + 150
    full = on_a_full_disk(shop, limit, *LOAD, **LARGE_BATCHES)
    assert_told(full, 3, "no space left for the offline store", "offline.duckdb", "free space and run again")
    assert full.error["retryable"] is True
    left = len(Contents.of(shop).history["shop.spending__v1"])
    assert 0 < left < ROWS
    resumed = inside(shop, *LOAD, **LARGE_BATCHES).ok().json["views"]["spending@1"]["loaded"]
    assert (resumed["read"], resumed["added"]) == (ROWS - left, ROWS - left)
    assert_as_if_never_interrupted(inside, shop, calm)


def test_a_publish_that_fills_the_disk_is_told_and_resumes(inside: Run, shop: Path, calm: Path) -> None:
    inside(shop, *LOAD, "--load-only").ok()
    before = Contents.of(shop)
    full = on_a_full_disk(shop, 256, *LOAD, "--publish-only")
    assert_told(full, 3, "online store", "online.db: no space left", "run this again")
    now = Contents.of(shop)
    assert now.history == before.history
    assert now.registry["publish_states"] == []
    inside(shop, *LOAD).ok()
    assert_as_if_never_interrupted(inside, shop, calm)


def test_an_export_that_fills_the_disk_is_told_and_leaves_what_was_there(
    inside: Run, calm: Path, tmp_path: Path
) -> None:
    shop = Path(shutil.copytree(calm, tmp_path / "shop"))
    export = ["get-historical-features", "--service", "loyalty", "--as-of", NOW, "--out", "t.csv", "--json"]
    (shop / "t.csv").write_text("what was there")
    files = sorted(shop.iterdir())
    before = Contents.of(shop)
    full = on_a_full_disk(shop, 256, *export)
    assert_told(full, 3, "cannot write t.csv", "nothing was changed there")
    assert (shop / "t.csv").read_text() == "what was there"
    assert sorted(shop.iterdir()) == files
    before.assert_kept(shop)
    inside(shop, *export).ok()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room; the test is skipped where one cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full_is_told_and_what_it_held_is_whole(
    inside: Run, declared: Path, small_disk: Path, calm: Path
) -> None:
    folder = Path(shutil.copytree(declared, small_disk / "shop"))
    with (small_disk / "ballast").open("wb") as ballast:
        room = os.statvfs(small_disk)
        ballast.write(b"\0" * (room.f_bavail * room.f_frsize - (250 << 10)))
    full = run(folder, *LOAD, **LARGE_BATCHES)
    assert_told(full, 3, "no space left")
    assert len(Contents.of(folder).history["shop.spending__v1"]) < ROWS
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    inside(folder, *LOAD, **LARGE_BATCHES).ok()
    assert_as_if_never_interrupted(inside, folder, calm)
