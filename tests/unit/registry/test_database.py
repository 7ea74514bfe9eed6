"""The database of the registry: migrations, several processes, and files that are not ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from featurestore.errors import StoreBusy, StoreError
from featurestore.registry.database import Database, migrations
from featurestore.registry.holder import is_gone
from featurestore.registry.registry import Registry, open_state
from featurestore.registry.schema import REVISIONS, metadata
from featurestore.registry.sqlite import open_file
from featurestore.registry.state import StateStore
from tests.fix_registry import OPENING, on_both

REF = "weather@1"


@pytest.fixture
def database(opened: tuple[Registry, StateStore]) -> Database:
    return opened[0].database


@on_both
def test_metadata_equals_all_migrations(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_listed_revisions_are_the_scripts() -> None:
    scripts = ScriptDirectory.from_config(migrations())
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == REVISIONS


@on_both
def test_opening_again_keeps_what_is_there(where: Path | str, database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO projects VALUES ('shop', 7)")
    again, _ = open_state(where, "shop")
    assert again.revision() == 7
    again.close()


@on_both
def test_four_processes_may_open_it_for_the_first_time_at_once(where: Path | str) -> None:
    """Each starts only when all are ready, opens what is not there yet, takes 20 blocks of sequences, and the lease."""
    code = f"""
import sys, featurestore.registry.registry
print("ready", flush=True)
sys.stdin.readline()
{OPENING}
from featurestore.errors import StoreBusy
print(*(state.take_sequences("weather@1", 10) for _ in range(20)))
try:
    print(state.acquire_lease("weather@1", "somebody", 3600).fence)
except StoreBusy:
    print("busy")
"""
    command = [sys.executable, "-c", code, str(where)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, answers
    taken, leases = zip(*(out.splitlines() for out, _ in answers), strict=True)
    assert sorted(int(first) for line in taken for first in line.split()) == list(range(1, 801, 10))
    assert sorted(leases) == ["1", "busy", "busy", "busy"]


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_never_share_a_sequence(where: Path | str, state: StateStore) -> None:
    code = (
        OPENING
        + """
for count in range(1, 41):
    print(state.take_sequences("weather@1", count), count)
"""
    )
    processes = [run_python(code, str(where)) for _ in range(3)]
    blocks = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        blocks += [tuple(map(int, line.split())) for line in out.splitlines()]
    taken = [number for first, count in blocks for number in range(first, first + count)]
    assert len(blocks) == 120
    assert sorted(taken) == list(range(1, len(taken) + 1))
    assert state.take_sequences(REF, 1) == len(taken) + 1


def test_the_lease_of_a_killed_process_is_free_at_once(where: Path | str, state: StateStore) -> None:
    code = (
        OPENING
        + """
from featurestore.registry.holder import holder_name
state.acquire_lease("weather@1", holder_name("materialize"), 3600)
print(holder_name("materialize"), flush=True)
sys.stdin.readline()
"""
    )
    command = [sys.executable, "-c", code, str(where)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    holder = process.stdout.readline().strip()
    assert not is_gone(holder)
    with pytest.raises(StoreBusy, match=f"pid {process.pid}"):
        state.acquire_lease(REF, "b", 60)
    process.kill()
    process.communicate()
    assert is_gone(holder)
    assert state.acquire_lease(REF, "b", 60).fence == 2


def test_only_one_of_many_processes_gets_the_lease(where: Path | str) -> None:
    code = (
        OPENING
        + """
from featurestore.errors import StoreBusy
try:
    print(state.acquire_lease("weather@1", sys.argv[2], 3600).fence)
except StoreBusy:
    print("busy")
"""
    )
    processes = [run_python(code, str(where), f"worker {n}") for n in range(4)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert answers == ["1", "busy", "busy", "busy"]


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    open_file(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9999'")
    connection.close()
    with pytest.raises(StoreError, match=r"newer featurestore.*v9999.*upgrade featurestore"):
        open_file(path)


def test_a_corrupt_file_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match=r"registry\.db is not a readable SQLite file.*backup"):
        open_file(path)
    assert path.read_bytes() == b"this is no database" * 100


def test_a_file_cut_short_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    open_file(path).close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\xff" * 5000)
    with pytest.raises(StoreError, match="not a readable SQLite file"):
        open_file(path)


def test_the_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match="SQLite file of something else.*invoices"):
        open_file(path)


def test_a_path_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="folder cannot be made"):
        open_file(tmp_path / "file" / "registry.db")
    with pytest.raises(StoreError, match="cannot be opened"):
        open_file(tmp_path)


def test_a_place_that_takes_no_write_ahead_log_is_refused() -> None:
    """As a file system without shared memory; SQLite says so in its answer only."""
    with pytest.raises(StoreError, match=r":memory:: SQLite keeps no write-ahead log there.*on a local disk"):
        open_file(Path(":memory:"))


def test_waiting_for_a_writer_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    database = open_file(path, wait_s=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match="another process has been writing for 0.1 s"), database.write():
        pass
    with database.read() as connection:  # readers do not wait for writers
        assert connection.exec_driver_sql("SELECT count(*) FROM runs").scalar() == 0
    other.close()
    database.close()


@on_both
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_uses_a_connection_of_its_own(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO projects VALUES ('shop', 1)")
    child = os.fork()
    if child == 0:
        with database.write() as connection:
            connection.exec_driver_sql("UPDATE projects SET revision = revision + 1")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE projects SET revision = revision + 1")
        assert connection.exec_driver_sql("SELECT revision FROM projects").scalar() == 3
