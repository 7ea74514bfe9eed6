"""The command `featurestore` as a user runs it, and what it left behind.

`run` starts a process of its own; the fixture `cli` is `run`, and `inside` the same command line in this process (no
start-up time, the same exit code and streams, taken at the file descriptors so that engines are heard too). Both work
in a folder, without settings of the caller. `Contents.of` is what registry, history and online store hold.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import duckdb
import pytest

from featurestore.cli.main import main

COMMAND = (sys.executable, "-m", "featurestore.cli.main")
TIMEOUT_S = 120.0

Argument = str | Path


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error a failed command reports under --json."""
        return self.json["error"]

    def ok(self) -> Done:
        """Itself, when the command succeeded."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


Run = Callable[..., Done]


def clean_environment(**more: str) -> dict[str, str]:
    """The caller's environment without settings of the caller, and with `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")} | more


def start(folder: Path, *arguments: Argument, **environment: str) -> subprocess.Popen[str]:
    """The command as a process that leads a group of its own, as a shell starts it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for a process; one that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return Done(code=process.returncode, out=out, err=err)


def run(folder: Path, *arguments: Argument, **environment: str) -> Done:
    """The command in a process of its own, to its end."""
    return finish(start(folder, *arguments, **environment))


def prepare(folder: Path, *arguments: Argument) -> None:
    """The command in this process, for fixtures of a wider scope than `inside`; it must succeed."""
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as err,
    ):
        _without_settings(patched)
        code = main(["-C", str(folder), *map(str, arguments)])
    Done(code=code, out=out.getvalue(), err=err.getvalue()).ok()


def _without_settings(patched: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
        patched.delenv(name)


@pytest.fixture
def cli() -> Run:
    """`cli(folder, *arguments, **environment)`: the command in a process of its own."""
    return run


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`inside(folder, *arguments, **environment)`: the command in this process."""
    _without_settings(monkeypatch)

    def inside(folder: Path, *arguments: Argument, **environment: str) -> Done:
        capfd.readouterr()
        with monkeypatch.context() as patched:
            patched.chdir(folder)
            for name, value in environment.items():
                patched.setenv(name, value)
            code = main([str(argument) for argument in arguments])
        written = capfd.readouterr()
        return Done(code=code, out=written.out, err=written.err)

    return inside


# ------------------------------------------------------------------ what the stores hold

#: What a job may leave in the registry without having changed anything: its log, its lease, what it has reserved.
NOTES = ("runs", "leases", "sequences", "cursors", "readers")
Rows = Mapping[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Every row of registry, history and online store, by table; `notes` are the tables named so."""

    registry: Rows
    notes: Rows
    online: Rows
    #: DuckDB's file and its log; a file that is the same holds the same rows, and opening it costs a tenth of a second.
    duckdb_files: Mapping[str, bytes]

    @staticmethod
    def of(folder: Path) -> Contents:
        """The contents of a repository; a store that is not there is empty."""
        registry = _sqlite_rows(folder / "data" / "registry.db")
        return Contents(
            registry={name: rows for name, rows in registry.items() if name not in NOTES},
            notes={name: rows for name, rows in registry.items() if name in NOTES},
            online=_sqlite_rows(folder / "data" / "online.db"),
            duckdb_files={
                path.name: path.read_bytes() for path in folder.glob("data/offline.duckdb*") if path.is_file()
            },
        )

    @cached_property
    def history(self) -> Rows:
        """The rows of the offline store."""
        with tempfile.TemporaryDirectory() as copied:
            for name, content in self.duckdb_files.items():
                (Path(copied) / name).write_bytes(content)
            return _duckdb_rows(Path(copied) / "offline.duckdb")

    def assert_kept(self, folder: Path) -> None:
        """Registry, history and online store of a folder hold exactly these rows; notes of jobs may differ."""
        now = Contents.of(folder)
        assert now.registry == self.registry
        assert now.online == self.online
        if now.duckdb_files != self.duckdb_files:
            assert now.history == self.history


def _sqlite_rows(path: Path) -> dict[str, list[Any]]:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: sorted(connection.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in names}


def _duckdb_rows(path: Path) -> dict[str, list[Any]]:
    if not path.exists():
        return {}
    with duckdb.connect(str(path)) as connection:  # a log beside it is replayed
        connection.execute("SET TimeZone = 'UTC'")
        tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables() ORDER BY ALL").fetchall()
        return {
            f"{schema}.{name}": connection.sql(f'SELECT * FROM "{schema}"."{name}" ORDER BY ALL')
            .to_arrow_table()
            .to_pylist()
            for schema, name in tables
        }


# ------------------------------------------------------------------ what a refusal is


def assert_told(done: Done, code: int, said: Sequence[str]) -> None:
    """The exit code, every one of the words on stderr, and nothing that only a programmer reads."""
    assert done.code == code, f"{done.code}\n{done.out}\n{done.err}"
    assert [words for words in said if words not in done.err] == [], done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.startswith("featurestore: ")


def assert_refused(inside: Run, folder: Path, arguments: Sequence[Argument], said: Sequence[str]) -> None:
    """The command fails as wrong input, with these words alone; registry, history and online store are kept."""
    before = Contents.of(folder)
    done = inside(folder, *arguments)
    assert_told(done, 2, said)
    assert done.out == ""
    before.assert_kept(folder)
