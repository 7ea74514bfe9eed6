"""The SQLite online store: the later row wins, whoever writes and however often; every fault has its own error."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import StoreBusy, StoreError, StoreFull, StoreUnreachable  # noqa: F401  # StoreFull: in a subprocess
from featurestore.online import sqlite as sqlite_module
from featurestore.online import sqlite_statements
from featurestore.online.sqlite import SqliteOnlineStore
from tests.fix_online_store import ALL_BUCKETS, VIEW, buckets, keys_of, raised, rows_at, values_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteOnlineStore]:
    opened = SqliteOnlineStore(path, "flights")
    yield opened
    opened.close()


def test_more_keys_than_one_statement_reads_come_back_in_order(
    store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "_RECORDS_BYTES_MAX", 5_000)
    rng = np.random.default_rng(7)
    present = rng.permutation(20_000)[:12_000].tolist()
    store.write(VIEW, keys_of(*present), rows_at(1, *present))
    asked = rng.integers(0, 20_000, 15_000).tolist()

    rows = store.read(VIEW, keys_of(*asked))

    known = set(present)
    assert values_of(rows) == [number if number in known else None for number in asked]


def test_a_batch_too_large_for_one_value_is_scanned_in_smaller_ones(path: Path, store: SqliteOnlineStore) -> None:
    numbers = list(range(300))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))
    whole = list(store.scan(VIEW, 300))

    with store.reading() as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000)  # of the one connection there is
    parts = list(store.scan(VIEW, 300))

    assert len(whole) == 1
    assert len(parts) > 10
    for place in (0, 1):
        assert pa.concat_arrays([part[place] for part in parts]).equals(whole[0][place])


def test_rows_that_others_wrote_are_scanned_as_the_bytes_they_are(store: SqliteOnlineStore) -> None:
    store.write(VIEW, keys_of(1, 2), rows_at(1, 1, 2))
    own = dict(zip(*(column.to_pylist() for column in next(store.scan(VIEW, 10))), strict=True))

    with store.transaction() as connection:
        foreign = [(1, b"\7", "tëxt"), (1, b"\7\7", b""), (1, b"\7\7\0key", b"\0row\0")]
        connection.executemany("INSERT INTO online_row VALUES (?, ?, ?)", foreign)

    ((keys, rows),) = store.scan(VIEW, 10)
    found = list(zip(keys.to_pylist(), rows.to_pylist(), strict=True))
    theirs = [(b"", "tëxt".encode()), (b"", b""), (b"\0key", b"\0row\0")]
    assert sorted(found) == sorted([*own.items(), *theirs])


def test_a_batch_cut_into_pieces_behaves_as_one(store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "_RECORDS_BYTES_MAX", 150)
    numbers = list(range(40))

    assert store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers)) == 40
    assert values_of(store.read(VIEW, keys_of(*numbers))) == numbers
    monkeypatch.setattr(sqlite_module, "_RECORDS_BYTES_MAX", 40)
    with pytest.raises(StoreError, match="an online row takes .* at most 40 fit"):
        store.write(VIEW, keys_of(99), rows_at(1, 99))
    assert store.count(VIEW) == 40


def test_drop_takes_every_row_in_bounded_steps_and_raises_their_tokens(
    store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "DROP_ROWS_MAX", 30)
    store.write(VIEW, keys_of(*range(100)), rows_at(1, *range(100)))
    store.write("weather@2", keys_of(1), rows_at(1, 1))
    before = store.tokens(VIEW, ALL_BUCKETS)

    assert store.drop(VIEW) == 100
    assert store.count(VIEW) == 0
    assert store.count("weather@2") == 1
    assert raised(store, before) == buckets(*range(100))
    assert store.drop(VIEW) == 0
    assert store.drop("unknown@1") == 0


def open_at_once(path: Path, barrier: threading.Barrier) -> None:
    """In a process of its own."""
    barrier.wait()
    SqliteOnlineStore(path, "flights", busy_timeout_s=60).close()


def test_processes_that_make_one_file_at_once_all_find_it_made(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    makers = [spawn.Process(target=open_at_once, args=(path, barrier)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(120)
        assert maker.exitcode == 0

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def in_another_process(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` after the names of this module, with `store` on the file at `path`."""
    head = (
        "from tests.unit.online.test_sqlite import *\nimport sys\nstore = SqliteOnlineStore(sys.argv[1], 'flights')\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(code), str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_a_killed_writer_leaves_whole_batches_only(path: Path) -> None:
    done = in_another_process(
        """
        store.write(VIEW, keys_of(1, 2), rows_at(1, 10, 20))
        connection = store._taken()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM online_row")
        os.kill(os.getpid(), 9)
        """,
        path,
    )
    assert done.returncode == -9, done.stderr

    store = SqliteOnlineStore(path, "flights")
    assert values_of(store.read(VIEW, keys_of(1, 2))) == [10, 20]
    store.close()


def test_a_held_file_is_busy_after_the_timeout_for_writers_and_open_to_readers(path: Path) -> None:
    store = SqliteOnlineStore(path, "flights", busy_timeout_s=0.2)
    store.write(VIEW, keys_of(1), rows_at(1, 10))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusy, match=r"online\.db: another process has been writing for 0\.2 s"):
        store.write(VIEW, keys_of(1), rows_at(2, 11))
    assert values_of(store.read(VIEW, keys_of(1))) == [10]

    holder.execute("ROLLBACK")
    holder.close()
    assert store.write(VIEW, keys_of(1), rows_at(2, 11)) == 1
    store.close()


def test_a_file_that_is_no_database_is_refused_and_kept(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough" * 200)
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"not a SQLite database.*publish again with --repair"):
        SqliteOnlineStore(path, "flights")
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_kept(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE registry (name TEXT)")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(StoreError, match="another program's SQLite database; name a file of its own"):
        SqliteOnlineStore(path, "flights")
    assert path.read_bytes() == before


def test_a_newer_format_is_refused_by_number(path: Path) -> None:
    SqliteOnlineStore(path, "flights").close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()

    with pytest.raises(StoreError, match="format 7, this featurestore knows 1; upgrade"):
        SqliteOnlineStore(path, "flights")


def test_a_path_that_cannot_be_opened_is_unreachable(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "folder" / "online.db", tmp_path):
        with pytest.raises(StoreUnreachable, match=r"cannot be opened.*check that its folder exists"):
            SqliteOnlineStore(path, "flights")


def test_a_full_disk_is_full_and_nothing_of_the_batch_is_kept(path: Path) -> None:
    done = in_another_process(
        """
        import resource
        store.write(VIEW, keys_of(1), rows_at(1, 10))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        numbers = range(20_000)
        try:
            store.write(VIEW, keys_of(*numbers), rows_at(2, *numbers))
        except StoreFull as error:
            print(error)
        assert values_of(store.read(VIEW, keys_of(1, 2))) == [10, None]
        store.close()
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    assert "no space left to write" in done.stdout

    store = SqliteOnlineStore(path, "flights")
    assert values_of(store.read(VIEW, keys_of(1, 2))) == [10, None]
    assert store.write(VIEW, keys_of(2), rows_at(2, 20)) == 1
    store.close()


def test_a_damaged_file_is_told_with_the_way_out(path: Path) -> None:
    store = SqliteOnlineStore(path, "flights")
    store.write(VIEW, keys_of(*range(2_000)), rows_at(1, *range(2_000)))
    store.close()
    data = bytearray(path.read_bytes())
    data[3 * sqlite_module.PAGE_BYTES :] = os.urandom(len(data) - 3 * sqlite_module.PAGE_BYTES)
    path.write_bytes(data)

    store = SqliteOnlineStore(path, "flights")
    with pytest.raises(StoreError, match="damaged.*move the file away"):
        store.read(VIEW, keys_of(*range(2_000)))
    store.close()


def test_a_failed_write_can_be_followed_by_others(store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sqlite_statements, "RAISE_TOKENS", "INSERT INTO no_such_table VALUES (:view, :buckets)")
        with pytest.raises(StoreError, match="no_such_table"):
            store.write(VIEW, keys_of(1), rows_at(1, 10))

    assert store.count(VIEW) == 0
    assert store.write(VIEW, keys_of(1), rows_at(1, 10)) == 1
    assert values_of(store.read(VIEW, keys_of(1))) == [10]


def test_a_store_on_a_copied_file_answers_alike(store: SqliteOnlineStore, path: Path, tmp_path: Path) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 10))
    store.close()
    shutil.copy(path, tmp_path / "copy.db")

    copy = SqliteOnlineStore(tmp_path / "copy.db", "flights")
    assert values_of(copy.read(VIEW, keys_of(1))) == [10]
    copy.close()
