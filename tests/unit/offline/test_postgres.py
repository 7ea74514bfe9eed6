"""What only the shared engine has to keep: turns of writers, restarts, privileges, tables altered by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import conninfo, sql

from featurestore import Field, Int64, String
from featurestore.compiler import compile, nearest_rows
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.errors import ConfigError, StoreBusy, StoreError, StoreFull, StoreUnreachable
from featurestore.offline import postgres as module
from featurestore.offline.base import AppendCounts
from featurestore.offline.postgres import PostgresOfflineStore
from tests.fix_offline import PROJECT, append, ask, make_view, select, times
from tests.fix_postgres import new_role
from tests.oracle import Row

VIEW = make_view("text", {"delay": Int64})
NOTES = make_view("text", {"note": String}, name="notes")

Make = Callable[..., PostgresOfflineStore]


@pytest.fixture
def make(postgres: str) -> Iterator[Make]:
    """Stores of this test's database, closed at its end."""
    made: list[PostgresOfflineStore] = []

    def at(url: str = postgres, **more: Any) -> PostgresOfflineStore:
        made.append(PostgresOfflineStore(url, more.pop("project", PROJECT), **{"wait_s": 0.3, **more}))
        return made[-1]

    yield at
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> PostgresOfflineStore:
    """A store with one committed row."""
    made = make()
    made.ensure_history(VIEW)
    append(made, VIEW, [leg("a", 1, 1)])
    return made


def leg(key: str, event: int, sequence: int, *, created: int | None = None) -> Row:
    known = event if created is None else created
    return Row(keys=(key,), event=event, created=known, sequence=sequence, value=(sequence,))


@contextmanager
def by_hand(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def altered(url: str, statement: str) -> None:
    with by_hand(url) as connection:
        connection.execute(statement)


# ------------------------------------------------------------------ writers take turns


@contextmanager
def paused_before_commit(
    monkeypatch: pytest.MonkeyPatch, writer: Callable[[], object]
) -> Iterator[tuple[threading.Thread, threading.Event]]:
    """A writer that stands before its commit, and what lets it go on; only the first one that comes there waits."""
    reached, go_on, first = threading.Event(), threading.Event(), threading.Lock()

    def stop(name: str) -> None:
        if name == "append.before_commit" and first.acquire(blocking=False):
            reached.set()
            assert go_on.wait(30)

    monkeypatch.setattr(module, "failpoint", stop)
    thread = threading.Thread(target=writer)
    thread.start()
    assert reached.wait(30)
    try:
        yield thread, go_on
    finally:
        go_on.set()
        thread.join(30)


def test_a_writer_that_commits_late_keeps_later_positions_back(
    make: Make, store: PostgresOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, second, reader = make(wait_s=30), make(wait_s=30), make()

    with paused_before_commit(monkeypatch, lambda: append(late, VIEW, [leg("b", 1, 2)])) as (first, go_on):
        other = threading.Thread(target=append, args=(second, VIEW, [leg("c", 1, 3), leg("d", 1, 4)]))
        other.start()
        other.join(0.5)
        assert other.is_alive(), "the second writer did not wait for the first"
        assert (reader.position(VIEW.ref), reader.history_rows(VIEW.ref)) == (1, 1)
        go_on.set()
        first.join(30)
        other.join(30)

    assert sequences(reader, 1, 2) == [2]
    assert sequences(reader, 2, 4) == [3, 4]


def sequences(store: PostgresOfflineStore, low: int, high: int) -> list[int]:
    query = LatestRows(
        project=PROJECT, view=VIEW, position_to=high, horizon_to_us=1000, position_from=low, horizon_from_us=1000
    )
    with store.latest(query, 10) as reader:
        return sorted(reader.read_all().column("_sequence").to_pylist())


def test_the_same_row_from_two_writers_at_once_is_kept_once(
    make: Make, store: PostgresOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, second, counts = make(wait_s=30), make(wait_s=30), list[AppendCounts]()

    with paused_before_commit(monkeypatch, lambda: append(late, VIEW, [leg("b", 1, 2)])) as (_, go_on):
        again = replace(leg("b", 1, 9), value=(2,))
        other = threading.Thread(target=lambda: counts.append(append(second, VIEW, [again])))
        other.start()
        go_on.set()
        other.join(30)

    assert counts == [AppendCounts(duplicates=1)]
    assert store.history_rows(VIEW.ref) == store.position(VIEW.ref) == 2


def test_a_held_view_is_busy_and_the_holder_is_named(
    make: Make, store: PostgresOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = make(wait_s=30), make(wait_s=0.2)

    with paused_before_commit(monkeypatch, lambda: append(late, VIEW, [leg("b", 1, 2)])):
        with pytest.raises(StoreBusy, match=r"leg@1 .* held by featurestore flights \(process \d+ on .*waited 0.2 s"):
            append(other, VIEW, [leg("c", 1, 3)])
        other.ensure_history(NOTES)
        assert append(other, NOTES, [Row(keys=("a",), event=1, created=1, sequence=1, value=("x",))]).added == 1

    assert append(other, VIEW, [leg("c", 1, 3)]) == AppendCounts(added=1)
    assert store.position(VIEW.ref) == 3


def test_many_writers_give_every_position_once(make: Make, store: PostgresOfflineStore, postgres: str) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for event in range(8):
                append(stores[number], VIEW, [leg(f"k{number}", event, 100 * number + event)])
        except StoreError as error:
            failures.append(error)

    stores = [make(wait_s=60) for _ in range(3)]
    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with by_hand(postgres) as connection:
        rows = connection.execute(f'SELECT _position FROM "{PROJECT}"."leg__v1" ORDER BY 1').fetchall()
    assert rows == [(position,) for position in range(1, 26)]


def test_a_question_may_be_asked_while_rows_are_streamed(store: PostgresOfflineStore) -> None:
    append(store, VIEW, [leg(f"k{n}", 1, n) for n in range(2, 50)])
    query = LatestRows(project=PROJECT, view=VIEW, position_to=49, horizon_to_us=10)

    with store.latest(query, 10) as reader:
        found = [store.rows_of(VIEW, batch.column("_sequence")).num_rows for batch in reader]

    assert found == [10, 10, 10, 10, 9]


def test_a_stream_that_is_left_early_harms_nothing(store: PostgresOfflineStore) -> None:
    append(store, VIEW, [leg(f"k{n}", 1, n) for n in range(2, 5000)])
    query = LatestRows(project=PROJECT, view=VIEW, position_to=5000, horizon_to_us=10)

    with store.latest(query, 10) as reader:
        assert reader.read_next_batch().num_rows == 10
    with pytest.raises(KeyError), store.latest(query, 10):
        raise KeyError("the reader failed")

    assert store.history_rows(VIEW.ref) == 4999


# ------------------------------------------------------------------ lookups and the long way


def test_rows_whose_answer_lies_far_are_answered_too(
    make: Make, store: PostgresOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `a` most rows become known only at 500; at 400 the answer lies behind all of them."""
    passed = nearest_rows.ROWS_PASSED_MAX
    rows = [leg("a", event, event, created=500) for event in range(2, 2 * passed)]
    append(store, VIEW, [*rows, leg("b", 1, 9999)])
    spine = pa.table({"carrier": ["a", "b", "a", "c", "a"], "as_of": times([400, 400, 1, 400, 500])})
    long_ways: list[PointInTimeJoin] = []

    def long_way(join: PointInTimeJoin, dialect: Dialect) -> str:
        long_ways.append(join)
        return over_all_rows(join, dialect)

    over_all_rows = compile.point_in_time_join
    monkeypatch.setattr(compile, "point_in_time_join", long_way)

    got = ask(store, select(VIEW), [VIEW], spine)

    assert got.column("delay").to_pylist() == [1, 9999, 1, None, 2 * passed - 1]
    assert len(long_ways) == 1


# ------------------------------------------------------------------ who cannot be reached

UNREACHABLE = [
    ({"port": "1"}, StoreUnreachable, "cannot reach Postgres database '.*' at 127.0.0.1:1: .*refused"),
    ({"host": "nowhere.invalid"}, StoreUnreachable, "nowhere.invalid.*mend the host in offline.url"),
    ({"dbname": "nothing"}, StoreError, r"database \"nothing\" does not exist; make it \(CREATE DATABASE\)"),
    ({"user": "nobody_here"}, StoreError, r"nobody_here.*(make it \(CREATE ROLE|FEATURESTORE_OFFLINE_PASSWORD)"),
    ({"sslmode": "verify-full", "sslrootcert": "none.pem"}, StoreError, "set sslmode and sslrootcert in offline.url"),
    ({"sslmode": "require"}, StoreError, "server does not support SSL.*set sslmode and sslrootcert in offline.url"),
]


@pytest.mark.parametrize(("parts", "kind", "says"), UNREACHABLE, ids=lambda value: str(value)[:30])
def test_a_store_that_cannot_be_reached_says_why_and_the_way_out(
    make: Make, postgres: str, parts: dict[str, str], kind: type[StoreError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        make(conninfo.make_conninfo(postgres, **parts), password="s3cret").position(VIEW.ref)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://user:s3cret@host:port/db", "user:s3cret@host", "postgres//x:s3cret@y"])
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"offline.url is not an address.*postgresql://user@host") as caught:
        PostgresOfflineStore(url, PROJECT)

    assert "s3cret" not in repr(caught.value) + repr(caught.value.__cause__)


def test_a_database_in_another_encoding_is_refused(make: Make, postgres_server: str) -> None:
    with by_hand(postgres_server) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0")
        try:
            with pytest.raises(StoreError, match="is encoded in LATIN1.*ENCODING 'UTF8'"):
                make(conninfo.make_conninfo(postgres_server, dbname="latin")).position(VIEW.ref)
        finally:
            connection.execute("DROP DATABASE latin WITH (FORCE)")


def test_a_session_that_was_ended_between_operations_is_replaced(store: PostgresOfflineStore, postgres: str) -> None:
    assert store.position(VIEW.ref) == 1
    altered(
        postgres,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )

    assert store.position(VIEW.ref) == 1
    assert append(store, VIEW, [leg("b", 1, 2)]) == AppendCounts(added=1)


def test_a_session_that_is_ended_in_an_append_keeps_nothing_of_it(
    store: PostgresOfflineStore, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_session(name: str) -> None:
        if name == "append.before_commit":
            monkeypatch.undo()
            altered(
                postgres,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )

    monkeypatch.setattr(module, "failpoint", end_session)
    with pytest.raises(StoreUnreachable, match="the connection to Postgres database .* was lost.*run again"):
        append(store, VIEW, [leg("b", 1, 2)])

    assert (store.position(VIEW.ref), store.history_rows(VIEW.ref)) == (1, 1)
    assert append(store, VIEW, [leg("b", 1, 2)]) == AppendCounts(added=1)


# ------------------------------------------------------------------ privileges


@pytest.fixture
def reader(postgres: str) -> Iterator[str]:
    """The address of the same database for a role that may do nothing but connect."""
    with new_role(postgres) as address:
        yield address


def test_missing_privileges_name_their_grant(make: Make, store: PostgresOfflineStore, reader: str) -> None:
    other = make(reader)

    with pytest.raises(StoreError, match=r"permission denied for schema flights; .*GRANT USAGE, CREATE ON SCHEMA"):
        append(other, VIEW, [leg("b", 1, 2)])
    with pytest.raises(StoreError, match=r"permission denied for database .*GRANT CONNECT, CREATE, TEMPORARY ON DATAB"):
        make(reader, project="theirs").ensure_history(VIEW)


def test_a_role_that_may_not_write_says_which_table(
    make: Make, store: PostgresOfflineStore, reader: str, postgres: str
) -> None:
    user = conninfo.conninfo_to_dict(reader)["user"]
    altered(postgres, f'GRANT USAGE ON SCHEMA {PROJECT} TO "{user}"; GRANT SELECT ON TABLE flights.leg__v1 TO "{user}"')

    assert make(reader).history_rows(VIEW.ref) == 1
    with pytest.raises(StoreError, match=r"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE"):
        append(make(reader), VIEW, [leg("b", 1, 2)])


# ------------------------------------------------------------------ tables altered by hand


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DROP COLUMN delay", "has no column delay, featurestore made it bigint"),
        ("ALTER COLUMN delay TYPE integer", "holds delay as integer, featurestore made it bigint"),
        ("ALTER COLUMN carrier TYPE text COLLATE pg_catalog.default", 'holds carrier as text, .* text COLLATE "C"'),
        ("RENAME COLUMN _sequence TO sequence", "has no column _sequence, featurestore made it bigint"),
        ("ALTER COLUMN _schema TYPE bigint", "holds _schema as bigint, featurestore made it integer"),
    ],
)
def test_a_table_altered_by_hand_is_named_with_its_column(
    store: PostgresOfflineStore, postgres: str, statement: str, says: str
) -> None:
    altered(postgres, f"ALTER TABLE {PROJECT}.leg__v1 {statement}")
    query = LatestRows(project=PROJECT, view=VIEW, position_to=1, horizon_to_us=10)

    for question in (lambda: append(store, VIEW, [leg("b", 1, 2)]), lambda: store.pending(query)):
        with pytest.raises(StoreError, match=rf"table flights.leg__v1 .* {says}.*undo what was altered"):
            question()


def test_a_dropped_book_keeping_table_is_named(store: PostgresOfflineStore, postgres: str) -> None:
    altered(postgres, f"DROP TABLE {PROJECT}._positions")

    with pytest.raises(StoreError, match=r"_positions.*undo what was altered"):
        append(store, VIEW, [leg("b", 1, 2)])
    assert store.history_rows(VIEW.ref) == 1


def test_an_index_dropped_by_hand_comes_back_with_the_next_apply(store: PostgresOfflineStore, postgres: str) -> None:
    with by_hand(postgres) as connection:
        listed = "SELECT indexname FROM pg_indexes WHERE schemaname = 'flights' AND tablename = 'leg__v1' ORDER BY 1"
        before = connection.execute(listed).fetchall()
        assert len(before) == 3
        for (name,) in before:
            connection.execute(sql.SQL("DROP INDEX flights.{}").format(sql.Identifier(name)))

        store.ensure_history(VIEW)

        assert connection.execute(listed).fetchall() == before


# ------------------------------------------------------------------ limits

#: What the server raises when its disk is full, by a trigger; a disk that is full cannot be had everywhere.
FULL = """
CREATE FUNCTION flights.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file "base/5/1": No space left on device' USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON flights.leg__v1 EXECUTE FUNCTION flights.full_disk();
"""


def test_a_full_disk_is_an_error_and_history_stays(store: PostgresOfflineStore, postgres: str) -> None:
    altered(postgres, FULL)

    with pytest.raises(StoreFull, match="no space left for Postgres database .*No space left on device; free space"):
        append(store, VIEW, [leg("b", 1, 2)], load_id="load", rows_done=2)

    altered(postgres, "DROP TRIGGER full_disk ON flights.leg__v1")
    assert (store.position(VIEW.ref), store.rows_done("load")) == (1, 0)
    assert append(store, VIEW, [leg("b", 1, 2)]) == AppendCounts(added=1)


def test_a_table_locked_by_hand_is_busy_within_bounds(store: PostgresOfflineStore, postgres: str) -> None:
    with by_hand(postgres) as connection, connection.transaction():
        connection.execute("LOCK TABLE flights.leg__v1 IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreBusy, match="held by another session; waited 0.3 s"):
            append(store, VIEW, [leg("b", 1, 2)])

    assert append(store, VIEW, [leg("b", 1, 2)]) == AppendCounts(added=1)


def test_a_field_that_joins_keeps_the_order_of_nobody(make: Make, store: PostgresOfflineStore) -> None:
    """Columns are met by name: two stores may have added their fields in another order."""
    wide = replace(VIEW, schema=[Field(name="added", dtype=String), *VIEW.schema])
    store.ensure_history(wide)
    append(store, wide, [Row(keys=("b",), event=1, created=1, sequence=2, value=("x", 5))])

    query = LatestRows(project=PROJECT, view=wide, position_to=2, horizon_to_us=10)
    with store.latest(query, 10) as reader:
        rows = reader.read_all().sort_by("carrier").select(["carrier", "added", "delay"]).to_pylist()
    assert rows == [{"carrier": "a", "added": None, "delay": 1}, {"carrier": "b", "added": "x", "delay": 5}]
