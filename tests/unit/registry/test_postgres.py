"""What a registry in Postgres has that a file has not: lost connections, rights, turns, a schema for each project."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import conninfo

from featurestore.clock import SystemClock, to_us
from featurestore.errors import ConfigError, StoreBusy, StoreError, StoreUnreachable
from featurestore.registry import postgres as in_postgres
from featurestore.registry.database import Database
from featurestore.registry.postgres import open_server
from featurestore.registry.registry import open_state
from featurestore.registry.schema import metadata
from featurestore.registry.state import StateStore
from tests.fix_postgres import drop_schema, local_server, new_role
from tests.waiting import until

REF = "weather@1"


@pytest.fixture
def url(postgres_shared: str) -> str:
    """The address of a database without registries of ours."""
    for project in ("shop", "other"):
        drop_schema(postgres_shared, f"_registry_{project}")
    return postgres_shared


@contextmanager
def opened(url: str, project: str = "shop", *, wait_s: float = 5) -> Iterator[tuple[Database, StateStore]]:
    registry, state = open_state(url, project, wait_s=wait_s)
    try:
        yield registry.database, state
    finally:
        registry.close()


@contextmanager
def by_hand(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


#: Sessions of a registry in this database.
SESSIONS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'featurestore registry%'"


def end_sessions(url: str) -> None:
    """As a restart does, and a proxy that cuts what is idle."""
    with by_hand(url) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) {SESSIONS}")


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_connection_in_use_when_the_registry_closes_is_closed_after_it(url: str, kind: str) -> None:
    with opened(url) as (database, _), getattr(database, kind)() as connection:
        session = connection.connection.driver_connection
        database.close()
        assert not session.closed
    assert session.closed


# ------------------------------------------------------------------ where it lies


def test_each_project_has_a_schema_of_its_own(url: str) -> None:
    schemas = ["_registry_other", "_registry_shop"]
    with opened(url), opened(url, "other"), by_hand(url) as connection:
        found = connection.execute("SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY(%s)", [schemas])
        tables = {*metadata.tables, "alembic_version"}
        assert set(found) == {(schema, name) for schema in schemas for name in tables}


def test_a_name_that_postgres_would_cut_is_refused(url: str) -> None:
    """Two long names with one beginning would share a schema."""
    with opened(url, "p" * 53):
        pass
    with pytest.raises(ConfigError, match="too long for a registry in Postgres.*at most 53 letters"):
        open_server(url, None, "p" * 54)


def test_a_schema_of_something_else_is_left_alone(url: str) -> None:
    with by_hand(url) as connection:
        connection.execute("CREATE SCHEMA _registry_shop CREATE TABLE invoices (id int)")

    with pytest.raises(StoreError, match=r"registry Postgres.* schema _registry_shop .*it holds invoices.*url"):
        open_server(url, None, "shop")


def test_tables_of_a_newer_release_are_refused(url: str) -> None:
    with opened(url):
        pass
    with by_hand(url) as connection:
        connection.execute("UPDATE _registry_shop.alembic_version SET version_num = 'v9999'")

    with pytest.raises(StoreError, match=r"newer featurestore.*v9999.*upgrade featurestore"):
        open_server(url, None, "shop")


@pytest.fixture
def clerk(url: str) -> Iterator[str]:
    """The same database for a role that may do nothing but connect."""
    with new_role(url) as address:
        yield address


def test_who_lacks_a_right_is_told_the_grant(url: str, clerk: str) -> None:
    """Each refusal names what to grant, and with that granted the registry works."""
    named = conninfo.conninfo_to_dict(clerk)
    create = f'GRANT CONNECT, CREATE, TEMPORARY ON DATABASE "{named["dbname"]}" TO "{named["user"]}"'
    use = f'GRANT USAGE, CREATE ON SCHEMA "_registry_shop" TO "{named["user"]}"'
    write = 'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE "_registry_shop"."{}" TO ' + f'"{named["user"]}"'

    assert create in refused(clerk)
    with opened(url):  # its administrator makes it
        pass
    with by_hand(url) as connection:
        for missing in (use, write.format("alembic_version"), write.format("leases")):
            assert missing in refused(clerk)
            connection.execute(missing)
    with opened(clerk) as (_, state):
        assert state.acquire_lease(REF, "a", 60).fence == 1


def test_a_schema_that_an_administrator_made_needs_no_right_on_the_database(url: str, clerk: str) -> None:
    user = conninfo.conninfo_to_dict(clerk)["user"]
    with by_hand(url) as connection:
        connection.execute(f'CREATE SCHEMA _registry_shop AUTHORIZATION "{user}"')
    with opened(clerk) as (_, state):
        assert state.acquire_lease(REF, "a", 60).fence == 1


def refused(url: str) -> str:
    with pytest.raises(StoreError) as caught, opened(url) as (_, state):
        state.acquire_lease(REF, "a", 60)
    return str(caught.value)


def test_an_address_that_is_none_or_where_nobody_answers_names_the_setting(url: str) -> None:
    with pytest.raises(ConfigError, match=r"registry\.url is not an address of Postgres"):
        open_server("postgres//nowhere", None, "shop")
    with pytest.raises(StoreUnreachable, match=r"cannot reach Postgres.*start it, or mend registry\.url"):
        open_server(conninfo.make_conninfo(url, port=1), None, "shop")
    with pytest.raises(StoreError, match=r'"nowhere" does not exist; make it .*mend registry\.url'):
        open_server(conninfo.make_conninfo(url, dbname="nowhere"), None, "shop")


# ------------------------------------------------------------------ connections that are lost


def test_a_connection_cut_while_it_was_idle_is_not_noticed(url: str) -> None:
    with opened(url) as (_, state):
        assert state.take_sequences(REF, 5) == 1
        end_sessions(url)
        assert state.publish_log(REF) == []
        end_sessions(url)
        assert state.take_sequences(REF, 1) == 6


def test_a_connection_cut_in_a_write_leaves_nothing_and_the_next_call_works(url: str) -> None:
    with opened(url) as (database, state):
        with pytest.raises(StoreUnreachable, match=r"was lost.*run again"):
            note_revision(database, meanwhile=lambda: end_sessions(url))
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM projects").scalar() == 0
        assert state.take_sequences(REF, 1) == 1


def note_revision(database: Database, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Write, and do something else in the midst of it."""
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO projects VALUES ('shop', 7)")
        meanwhile()
        connection.exec_driver_sql("UPDATE projects SET revision = 8")


def test_a_restarted_server_is_found_again_and_leases_hold_meanwhile() -> None:
    with local_server() as server, opened(server.url, wait_s=2) as (_, state):
        lease = state.acquire_lease(REF, "a", 60)
        server.stop(signal.SIGINT)
        with pytest.raises(StoreUnreachable):
            state.check_lease(lease)
        state.release_lease(lease)  # a warning: nobody is there to be told
        server.start()

        state.check_lease(lease)
        with pytest.raises(StoreBusy, match="is being written by a since"):
            state.acquire_lease(REF, "b", 60)
        state.release_lease(lease)
        assert state.acquire_lease(REF, "b", 60).fence == 2


# ------------------------------------------------------------------ turns


def test_writers_of_a_project_wait_bounded_and_those_of_another_and_readers_do_not(url: str) -> None:
    def meanwhile() -> None:
        with pytest.raises(StoreBusy, match=r"held by another session; waited 0\.1 s; .*raise registry\.wait_s"):
            second.take_sequences(REF, 1)
        assert second.publish_log(REF) == []
        assert other.take_sequences(REF, 1) == 1

    with opened(url) as (database, _), opened(url, wait_s=0.1) as (_, second), opened(url, "other") as (_, other):
        note_revision(database, meanwhile)
        assert second.take_sequences(REF, 1) == 1


def test_a_turn_that_does_not_come_keeps_no_connection(url: str) -> None:
    """Nor does it where the kept connection had been cut, and the turn was waited for on another."""

    def meanwhile() -> None:
        with second.read() as connection:
            kept = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with by_hand(url) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 60000)", [kept])
        with pytest.raises(StoreBusy) as busy, second.write():
            pass
        assert busy.value.__traceback__ is not None, "which names all that its calls held"
        assert second._reader.pool.checkedout() == 0  # type: ignore[attr-defined]

    with opened(url) as (database, _), opened(url, wait_s=0.1) as (second, _):
        note_revision(database, meanwhile)


def test_a_read_sees_one_state(url: str) -> None:
    with opened(url) as (database, _), database.read() as reading:
        assert reading.exec_driver_sql("SELECT count(*) FROM projects").scalar() == 0
        note_revision(database)
        assert reading.exec_driver_sql("SELECT count(*) FROM projects").scalar() == 0


def test_a_writer_that_stands_still_gives_its_turn_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is paused in the midst of a transaction, or whose host is cut off."""
    with opened(url, wait_s=60) as (_, state):
        monkeypatch.setattr(in_postgres, "IDLE_IN_TRANSACTION_S_MAX", 1)
        with opened(url) as (paused, _), pytest.raises(StoreError, match="ended the work"):
            note_revision(paused, meanwhile=lambda: state.take_sequences(REF, 1))  # waits for its turn
        assert state.take_sequences(REF, 1) == 2


def test_leases_run_by_the_clock_of_the_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is a day ahead takes no lease that holds."""
    with opened(url) as (_, state):
        state.acquire_lease(REF, "a", 60)
        ahead_us = to_us(SystemClock().now()) + 86_400_000_000
        monkeypatch.setattr("featurestore.registry.state.to_us", lambda _: ahead_us)
        monkeypatch.setattr("featurestore.registry.database.to_us", lambda _: ahead_us)
        with pytest.raises(StoreBusy):
            state.acquire_lease(REF, "b", 60)


def test_processes_that_end_leave_no_session(url: str) -> None:
    with opened(url):
        pass
    with by_hand(url) as connection:
        until(lambda: connection.execute(f"SELECT count(*) {SESSIONS}").fetchone() == (0,))
