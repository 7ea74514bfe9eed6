"""Two processes at one file, kills in the middle of a commit, full disks and broken files: history stays whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from featurestore import Int64, String
from featurestore.errors import StoreBusy, StoreError, StoreFull, StoreUnreachable
from featurestore.failpoint import KILLED, VARIABLE
from featurestore.offline.base import AppendCounts
from featurestore.offline.duckdb import DuckDBOfflineStore
from tests.fix_offline import PROJECT, append, make_view
from tests.oracle import Row

ROOT = Path(__file__).resolve().parents[3]
VIEW = make_view("text", {"delay": Int64})
TEXTS = make_view("text", {"note": String})

PREAMBLE = """
import sys
from pathlib import Path
from featurestore import Int64, String
from featurestore.errors import FeatureStoreError
from featurestore.offline.duckdb import DuckDBOfflineStore
from tests.fix_offline import PROJECT, append, make_view
from tests.oracle import Row
VIEW, TEXTS = make_view("text", {"delay": Int64}), make_view("text", {"note": String})
store = DuckDBOfflineStore(Path(sys.argv[1]), PROJECT, wait_s=0.2)
"""


def leg(key: str, event: int, sequence: int) -> Row:
    return Row(keys=(key,), event=event, created=event, sequence=sequence, value=(sequence,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one committed row."""
    file = tmp_path / "offline.duckdb"
    made = store_at(file)
    made.ensure_history(VIEW)
    append(made, VIEW, [leg("a", 1, 1)], load_id="load", rows_done=1)
    return file


def store_at(path: Path, **more: float) -> DuckDBOfflineStore:
    return DuckDBOfflineStore(path, PROJECT, wait_s=more.pop("wait_s", 0.2))


def child(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + code, str(path)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def holding(path: Path, *, write: bool) -> Iterator[int]:
    """The pid of another process that has the file open."""
    code = f"with store.open(write={write}):\n    print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process.pid
        process.communicate("")


# ------------------------------------------------------------------ sharing


def test_a_file_held_by_a_writing_process_is_busy_and_names_it(path: Path) -> None:
    with holding(path, write=True) as pid:
        with pytest.raises(StoreBusy, match=rf"process {pid} .*waited 0.2 s"):
            store_at(path).position(VIEW.ref)
        with pytest.raises(StoreBusy, match=rf"process {pid} .*waited 0.2 s"):
            append(store_at(path), VIEW, [leg("b", 1, 2)])

    assert append(store_at(path), VIEW, [leg("b", 1, 2)]) == AppendCounts(added=1)


def test_two_processes_read_at_once_and_keep_a_writer_out(path: Path) -> None:
    with holding(path, write=False) as pid:
        assert store_at(path).position(VIEW.ref) == 1
        with pytest.raises(StoreBusy, match=rf"process {pid} "):
            append(store_at(path), VIEW, [leg("b", 1, 2)])


def test_waiting_ends_when_the_holder_lets_go(path: Path) -> None:
    with holding(path, write=True):
        waiting = threading.Thread(target=append, args=(store_at(path, wait_s=30), VIEW, [leg("b", 1, 2)]))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30)

    assert store_at(path).position(VIEW.ref) == 2


def test_two_stores_of_one_process_write_in_turn(path: Path) -> None:
    stores = [store_at(path, wait_s=60) for _ in range(3)]
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for event in range(8):
                append(stores[number], VIEW, [leg(f"k{number}", event, 100 * number + event)])
        except (StoreError, duckdb.Error) as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.execute(f'SELECT _position FROM "{PROJECT}"."leg__v1" ORDER BY 1').fetchall()
    assert rows == [(position,) for position in range(1, 26)]


def test_a_thread_that_holds_the_file_is_waited_for_within_bounds(path: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store_at(path).open(write=True):
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    try:
        with pytest.raises(StoreBusy, match=rf"another thread of this process \({os.getpid()}\)"):
            store_at(path).position(VIEW.ref)
    finally:
        done.set()
        holder.join()


def test_one_process_cannot_read_and_write_at_once_and_says_so(path: Path) -> None:
    with (
        store_at(path).open(write=False),
        pytest.raises(StoreBusy, match=rf"another connection of this process \({os.getpid()}\)"),
    ):
        append(store_at(path), VIEW, [leg("b", 1, 2)])


# ------------------------------------------------------------------ kills


@pytest.mark.parametrize(("where", "rows"), [("append.before_commit", 1), ("append.after_commit", 2)])
def test_a_kill_in_the_middle_of_an_append_leaves_history_as_before_or_after(path: Path, where: str, rows: int) -> None:
    code = """
row = Row(keys=("b",), event=2, created=2, sequence=2, value=(2,))
append(store, VIEW, [row], load_id="load", rows_done=2)
"""

    assert child(code, path, **{VARIABLE: where}).returncode == KILLED

    store = store_at(path)
    assert (store.history_rows(VIEW.ref), store.position(VIEW.ref), store.rows_done("load")) == (rows, rows, rows)
    again = append(store, VIEW, [leg("b", 2, 2)], load_id="load", rows_done=2)
    assert again == (AppendCounts(added=1) if rows == 1 else AppendCounts(duplicates=1))
    assert (store.position(VIEW.ref), store.rows_done("load")) == (2, 2)


def test_an_open_block_killed_after_some_commits_keeps_them(path: Path) -> None:
    code = """
with store.open(write=True):
    for number in range(2, 9):
        append(store, VIEW, [Row(keys=("b",), event=number, created=number, sequence=number, value=(number,))])
"""
    assert child(code, path, **{VARIABLE: "append.before_commit:5"}).returncode == KILLED

    assert (store_at(path).history_rows(VIEW.ref), store_at(path).position(VIEW.ref)) == (5, 5)


# ------------------------------------------------------------------ full disks


def test_a_full_disk_is_an_error_and_history_stays(path: Path) -> None:
    code = """
import random, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + (1 << 20), size + (1 << 20)))
noise = random.Random(1)
rows = [Row(keys=(f"k{n}",), event=n, created=n, sequence=n, value=(noise.randbytes(2000).hex(),)) for n in range(3000)]
try:
    append(store, TEXTS, rows)
except FeatureStoreError as error:
    print(type(error).__name__, error)
"""
    store_at(path).drop_history(VIEW.ref)
    store_at(path).ensure_history(TEXTS)
    append(store_at(path), TEXTS, [Row(keys=("a",), event=1, created=1, sequence=1, value=("x",))])

    answer = child(code, path)

    assert answer.stdout.startswith(("StoreFull ", "StoreError ")), answer.stderr
    assert (store_at(path).history_rows(TEXTS.ref), store_at(path).position(TEXTS.ref)) == (1, 1)
    again = append(store_at(path), TEXTS, [Row(keys=("b",), event=1, created=1, sequence=2, value=("y",))])
    assert again == AppendCounts(added=1)


# ------------------------------------------------------------------ broken files


def test_a_file_that_is_not_duckdb_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "offline.duckdb"
    file.write_bytes(b"carrier,delay\nAA,1\n" * 500)

    for ask in (lambda: store_at(file).position(VIEW.ref), lambda: store_at(file).ensure_history(VIEW)):
        with pytest.raises(StoreError, match="is not a DuckDB file.*point offline.path at another file"):
            ask()

    assert file.read_bytes() == b"carrier,delay\nAA,1\n" * 500


def test_a_damaged_file_is_named(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:12288] + b"\xff" * (len(content) - 12288))

    with pytest.raises(StoreError, match=r"offline\.duckdb cannot be read.*restore it"):
        store_at(path).history_rows(VIEW.ref)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(StoreUnreachable, match=r"taken"):
        store_at(tmp_path / "taken" / "offline.duckdb").ensure_history(VIEW)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/self")  # whoever may write everywhere still cannot write here

    with pytest.raises(StoreUnreachable, match=r"cannot open the offline store"):
        store_at(folder / "offline.duckdb").ensure_history(VIEW)


def test_running_out_of_memory_says_which_setting_helps(path: Path) -> None:
    small = DuckDBOfflineStore(path, PROJECT, memory_limit="1MB")

    rows = [Row(keys=(f"k{n}",), event=n, created=n, sequence=n, value=(n,)) for n in range(20_000)]

    with pytest.raises(StoreFull, match="memory_limit"):
        append(small, VIEW, rows)

    assert store_at(path).history_rows(VIEW.ref) == 1
