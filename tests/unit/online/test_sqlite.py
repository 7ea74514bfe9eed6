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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.dtypes import Int64, String
from featurestore.errors import StoreBusy, StoreError, StoreFull, StoreUnreachable  # noqa: F401  # StoreFull: in a subprocess
from featurestore.field import Field
from featurestore.online import sqlite as sqlite_module
from featurestore.online import sqlite_statements
from featurestore.online.keys import BUCKETS, bucket_of, encode_keys
from featurestore.online.row_codec import OrderKeys, RowDecoder, RowEncoder
from featurestore.online.sqlite import SqliteOnlineStore

ROOT = Path(__file__).parents[3]
VIEW = "weather@1"
FIELDS = [Field(name="value", dtype=Int64), Field(name="text", dtype=String)]
ALL_BUCKETS = np.arange(BUCKETS, dtype=np.uint16)


def keys_of(*numbers: int | None) -> pa.BinaryArray:
    return encode_keys([pa.array(numbers, pa.int64())], [Int64])


def rows_at(sequence: int, *values: int) -> pa.BinaryArray:
    """Rows of one event time, ordered by sequence alone; their texts have different lengths."""
    same = np.zeros(len(values), dtype=np.int64)
    order = OrderKeys(same, same, np.full(len(values), sequence, dtype=np.int64))
    return RowEncoder(1, FIELDS).encode(order, [pa.array(values), pa.array(["x" * (value % 7) for value in values])])


def values_of(rows: pa.BinaryArray) -> list[int | None]:
    return RowDecoder({1: FIELDS}, FIELDS[:1]).decode(rows).columns[0].to_pylist()


def buckets(*numbers: int) -> set[int]:
    return set(bucket_of(keys_of(*numbers)).tolist())


def raised(store: SqliteOnlineStore, before: np.ndarray, ref: str = VIEW) -> set[int]:
    """The buckets whose token is another than before; a token never falls."""
    now = store.tokens(ref, ALL_BUCKETS)
    assert (now >= before).all()
    return set(np.flatnonzero(now != before).tolist())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteOnlineStore]:
    opened = SqliteOnlineStore(path, "flights")
    yield opened
    opened.close()


def test_rows_come_back_in_the_order_asked_with_nulls_and_repeats(store: SqliteOnlineStore) -> None:
    assert store.write(VIEW, keys_of(1, 2, 3), rows_at(1, 10, 20, 30)) == 3

    rows = store.read(VIEW, keys_of(3, None, 9, 1, 3, 2, None))

    assert values_of(rows) == [30, None, None, 10, 30, 20, None]
    assert store.read(VIEW, keys_of()).equals(pa.array([], pa.binary()))
    assert store.read(VIEW, keys_of(None, None)).to_pylist() == [None, None]
    assert store.read("unknown@1", keys_of(1, None)).to_pylist() == [None, None]


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


def test_only_a_later_row_replaces_and_the_winners_are_counted(store: SqliteOnlineStore) -> None:
    assert store.write(VIEW, keys_of(1, 2), rows_at(5, 10, 20)) == 2
    assert store.write(VIEW, keys_of(1, 2), rows_at(5, 10, 20)) == 0
    assert store.write(VIEW, keys_of(1, 2, 3), rows_at(4, 11, 21, 31)) == 1
    assert store.write(VIEW, keys_of(1), rows_at(6, 12)) == 1

    assert values_of(store.read(VIEW, keys_of(1, 2, 3))) == [12, 20, 31]


def test_negative_times_and_sequences_order_below_positive_ones(store: SqliteOnlineStore) -> None:
    encoder = RowEncoder(1, FIELDS)

    def row(event_us: int, created_us: int, sequence: int, value: int) -> pa.BinaryArray:
        order = OrderKeys(*(np.array([number], dtype=np.int64) for number in (event_us, created_us, sequence)))
        return encoder.encode(order, [pa.array([value]), pa.array([""])])

    ascending = [(-(2**62), 5, 9), (-1, 9, 9), (0, -1, 9), (0, 0, 1), (0, 0, 2), (0, 1, 1), (1, -5, 1), (2**62, -9, 1)]
    for value, order in enumerate(ascending):
        assert store.write(VIEW, keys_of(1), row(*order, value)) == 1
    for value, order in enumerate(ascending):
        assert store.write(VIEW, keys_of(1), row(*order, value)) == 0
    assert values_of(store.read(VIEW, keys_of(1))) == [len(ascending) - 1]


def test_of_a_key_twice_in_one_batch_the_later_row_stays(store: SqliteOnlineStore) -> None:
    rows = pa.concat_arrays([rows_at(2, 20), rows_at(3, 30), rows_at(1, 10)])

    store.write(VIEW, keys_of(1, 1, 1), rows)

    assert values_of(store.read(VIEW, keys_of(1))) == [30]
    assert store.count(VIEW) == 1


def test_tokens_rise_only_in_buckets_where_something_was_written(store: SqliteOnlineStore) -> None:
    nothing = store.tokens(VIEW, ALL_BUCKETS)
    assert not nothing.any()
    store.write(VIEW, keys_of(*range(50)), rows_at(5, *range(50)))
    written = store.tokens(VIEW, ALL_BUCKETS)
    assert set(np.flatnonzero(written).tolist()) == buckets(*range(50))

    store.write(VIEW, keys_of(*range(50)), rows_at(5, *range(50)))
    assert raised(store, written) == set()

    mixed = pa.concat_arrays([rows_at(4, *range(40)), rows_at(6, *range(40, 50))])
    assert store.write(VIEW, keys_of(*range(50)), mixed) == 10
    assert raised(store, written) == buckets(*range(40, 50))
    assert not store.tokens("other@1", ALL_BUCKETS).any()


def test_tokens_are_aligned_with_the_buckets_asked_for(store: SqliteOnlineStore) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 1))
    store.write(VIEW, keys_of(1), rows_at(2, 1))
    (bucket,) = buckets(1)
    other = (bucket + 1) % BUCKETS

    asked = np.array([other, bucket, bucket, other], dtype=np.uint16)

    assert store.tokens(VIEW, asked).tolist() == [0, 2, 2, 0]
    assert store.tokens(VIEW, asked[:0]).tolist() == []


def test_a_batch_cut_into_pieces_behaves_as_one(store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "_RECORDS_BYTES_MAX", 150)
    numbers = list(range(40))

    assert store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers)) == 40
    assert values_of(store.read(VIEW, keys_of(*numbers))) == numbers
    monkeypatch.setattr(sqlite_module, "_RECORDS_BYTES_MAX", 40)
    with pytest.raises(StoreError, match="an online row takes .* at most 40 fit"):
        store.write(VIEW, keys_of(99), rows_at(1, 99))
    assert store.count(VIEW) == 40


def test_views_and_projects_in_one_file_do_not_see_each_other(store: SqliteOnlineStore, path: Path) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 10))
    store.write("weather@2", keys_of(1), rows_at(1, 20))
    other = SqliteOnlineStore(path, "staging")
    other.write(VIEW, keys_of(1), rows_at(1, 30))

    assert values_of(store.read(VIEW, keys_of(1))) == [10]
    assert values_of(store.read("weather@2", keys_of(1))) == [20]
    assert values_of(other.read(VIEW, keys_of(1))) == [30]
    assert other.drop(VIEW) == 1
    assert store.count(VIEW) == 1
    other.close()


def test_scan_gives_every_row_once_by_bucket_then_key(store: SqliteOnlineStore) -> None:
    numbers = list(range(500))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))

    batches = list(store.scan(VIEW, 70))

    assert [len(keys) for keys, _ in batches] == [70] * 7 + [10]
    keys = pa.concat_arrays([keys for keys, _ in batches])
    rows = pa.concat_arrays([rows for _, rows in batches])
    order = list(zip(bucket_of(keys).tolist(), keys.to_pylist(), strict=True))
    assert order == sorted(order)
    assert sorted(keys.to_pylist()) == sorted(keys_of(*numbers).to_pylist())
    assert store.read(VIEW, keys).equals(rows)
    assert list(store.scan("unknown@1", 10)) == []


def test_rows_written_during_a_scan_hide_no_other(store: SqliteOnlineStore) -> None:
    numbers = list(range(300))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))
    seen: list[bytes] = []

    for step, (keys, _) in enumerate(store.scan(VIEW, 50)):
        seen += keys.to_pylist()
        store.write(VIEW, keys_of(1000 + step), rows_at(1, 1))

    assert len(seen) == len(set(seen))
    assert set(keys_of(*numbers).to_pylist()) <= set(seen)


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


def test_delete_and_overwrite_repair_and_raise_tokens(store: SqliteOnlineStore) -> None:
    store.write(VIEW, keys_of(1, 2, 3), rows_at(5, 10, 20, 30))
    before = store.tokens(VIEW, ALL_BUCKETS)

    assert store.delete(VIEW, keys_of(1, 9, 1)) == 1
    assert raised(store, before) == buckets(1)
    assert values_of(store.read(VIEW, keys_of(1, 2))) == [None, 20]

    before = store.tokens(VIEW, ALL_BUCKETS)
    assert store.overwrite(VIEW, keys_of(2, 3), pa.concat_arrays([rows_at(1, 21), rows_at(5, 30)])) == 1
    assert raised(store, before) == buckets(2)
    assert values_of(store.read(VIEW, keys_of(2, 3))) == [21, 30]


def test_rows_and_tokens_are_there_when_the_file_is_opened_again(path: Path) -> None:
    for sequence in (1, 2):
        store = SqliteOnlineStore(path, "flights")
        store.write(VIEW, keys_of(1), rows_at(sequence, sequence))
        store.close()

    store = SqliteOnlineStore(path, "flights")
    assert values_of(store.read(VIEW, keys_of(1))) == [2]
    assert store.tokens(VIEW, bucket_of(keys_of(1))).tolist() == [2]
    store.close()


def test_many_threads_read_and_write_one_store(store: SqliteOnlineStore) -> None:
    numbers = list(range(200))
    store.write(VIEW, keys_of(*numbers), rows_at(0, *numbers))
    start = threading.Barrier(8)

    def work(sequence: int) -> list[int | None]:
        start.wait()
        for step in range(5):
            store.write(VIEW, keys_of(*numbers), rows_at(1 + sequence * 5 + step, *numbers))
            assert values_of(store.read(VIEW, keys_of(*numbers))) == numbers
        return values_of(store.read(VIEW, keys_of(*numbers)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [numbers] * 8


def write_shuffled(path: Path, seed: int, barrier: threading.Barrier) -> None:
    """In a process of its own: versions 1-4 of 2,000 rows in an order of its own, in small batches."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(4 * 2_000)
    numbers, sequences = places % 2_000, places // 2_000 + 1
    keys = keys_of(*numbers.tolist())
    none = np.zeros(len(places), dtype=np.int64)
    columns = [pa.array(sequences * 10_000 + numbers), pa.array(["x"] * len(places))]
    rows = RowEncoder(1, FIELDS).encode(OrderKeys(none, none, sequences), columns)
    barrier.wait()
    store = SqliteOnlineStore(path, "flights", busy_timeout_s=60)
    for first in range(0, len(places), 900):
        store.write(VIEW, keys.slice(first, 900), rows.slice(first, 900))
    store.close()


def test_processes_that_make_one_file_and_write_the_same_rows_shuffled_end_with_the_latest(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    writers = [spawn.Process(target=write_shuffled, args=(path, seed, barrier)) for seed in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0

    store = SqliteOnlineStore(path, "flights")
    assert store.count(VIEW) == 2_000
    assert values_of(store.read(VIEW, keys_of(*range(2_000)))) == [40_000 + number for number in range(2_000)]
    store.close()
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
