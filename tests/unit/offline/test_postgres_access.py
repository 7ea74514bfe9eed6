"""A Postgres that lets in by certificate and password only: what fits gets in, all else is told what lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import trustme
from psycopg import conninfo

from featurestore import Int64
from featurestore.errors import StoreBusy, StoreError
from featurestore.offline import postgres_connection
from featurestore.offline.base import AppendCounts
from featurestore.offline.postgres import PostgresOfflineStore
from featurestore.registry.registry import open_state
from tests.fix_offline import PROJECT, append, make_view
from tests.fix_postgres import local_server
from tests.fix_proxy import PostgresProxy
from tests.oracle import Row

VIEW = make_view("text", {"delay": Int64})
#: The superuser comes in for the test's own sake; everybody else by password, and nobody to another database.
RULES = b"""host all postgres 127.0.0.1/32 trust
host kept keeper 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class Guarded:
    """The address of a guarded server for the role `keeper`, and that of its superuser."""

    url: str
    superuser: str


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("access")
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    settings, files = "password_encryption=scram-sha-256", {"pg_hba.conf": RULES}
    # TLS is the proxy's: not every Postgres was built with it, and it is our settings that are tested.
    with local_server(settings, files=files) as server, PostgresProxy(server.port, issued) as proxy:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE keeper LOGIN PASSWORD 's3cret'")
            connection.execute("CREATE DATABASE kept OWNER keeper")
        verified = {"sslmode": "verify-full", "sslrootcert": str(folder / "ca.pem")}
        url = conninfo.make_conninfo(server.url, port=proxy.port, user="keeper", dbname="kept", **verified)
        yield Guarded(url=url, superuser=server.url)


def fault(url: str, password: str | None) -> str:
    store = PostgresOfflineStore(url, PROJECT, password=password, wait_s=2)
    with pytest.raises(StoreError) as caught:
        store.position(VIEW.ref)
    assert "s3cret" not in str(caught.value)
    return str(caught.value)


def test_certificate_and_password_that_fit_get_in(guarded: Guarded) -> None:
    store = PostgresOfflineStore(guarded.url, PROJECT, password="s3cret")
    store.ensure_history(VIEW)

    row = Row(keys=("a",), event=1, created=1, sequence=1, value=(1,))
    assert append(store, VIEW, [row]) == AppendCounts(added=1)
    store.close()


@pytest.mark.parametrize("password", ["s3cret_not", None, ""])
def test_a_wrong_or_missing_password_names_the_setting(guarded: Guarded, password: str | None) -> None:
    says = fault(guarded.url, password)

    assert "password" in says
    assert "set offline.password (FEATURESTORE_OFFLINE_PASSWORD, or its _FILE) to the password of 'keeper'" in says


def test_the_registry_is_told_its_own_setting(guarded: Guarded) -> None:
    with pytest.raises(StoreError, match=r"set registry\.password \(FEATURESTORE_REGISTRY_PASSWORD, or its _FILE\)"):
        open_state(guarded.url, PROJECT, password="s3cret_not")
    registry, _ = open_state(guarded.url, PROJECT, password="s3cret")
    assert registry.revision() == 0
    registry.close()


def test_a_certificate_of_another_authority_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")

    says = fault(conninfo.make_conninfo(guarded.url, sslrootcert=str(tmp_path / "other.pem")), "s3cret")

    assert "certificate verify failed" in says
    assert "set sslmode and sslrootcert in offline.url" in says


def test_a_connection_that_no_rule_lets_in_is_told_of_pg_hba(guarded: Guarded) -> None:
    assert "pg_hba.conf" in fault(conninfo.make_conninfo(guarded.url, dbname="postgres"), "s3cret")


def test_a_role_without_a_connection_left_is_busy(guarded: Guarded) -> None:
    with psycopg.connect(guarded.superuser, autocommit=True) as connection:
        connection.execute("ALTER ROLE keeper CONNECTION LIMIT 0")
        try:
            with pytest.raises(StoreBusy, match="too many connections.*raise max_connections"):
                PostgresOfflineStore(guarded.url, PROJECT, password="s3cret").position(VIEW.ref)
        finally:
            connection.execute("ALTER ROLE keeper CONNECTION LIMIT -1")


def test_a_server_that_is_too_old_is_refused(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connection, "VERSION_MIN", 99)

    assert "99 or newer is needed, upgrade it" in fault(guarded.url, "s3cret")


@pytest.mark.parametrize("handed_over", ["DISCARD ALL", "SELECT set_config('featurestore.session', 'another', false)"])
def test_a_pooler_that_hands_out_other_sessions_is_named(postgres_shared: str, handed_over: str) -> None:
    """What a connection finds whose next transaction went to another server process: nothing it had set, or theirs."""
    connections = postgres_connection.Connections(postgres_shared, None, wait_s=2, name="featurestore shop")
    for _ in range(2):
        with connections.lent() as connection:
            assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    with connections.lent() as connection:
        connection.execute(handed_over)

    named = r"pools transactions.*let it pool sessions, or point offline.url past it"
    with pytest.raises(StoreError, match=named), connections.lent():
        pass

    with connections.lent() as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",), "the next one is a new one"
    connections.close()
