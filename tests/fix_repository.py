"""A small real repository in a folder: registry, history, online store, Parquet sources, a clock to set.

`SmallRepository` is what a test works on; `repository` is the fixture. It stands on DuckDB and SQLite, or on what its
settings say (`on_servers`). Real processes work on the same folder through `run_command` (the command line) and
`start_holding` (this module, see `main`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from featurestore import Entity, FeatureStore, FeatureView, Field, FileSource, FixedClock, Float64, Int64, String
from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.clock import to_us
from featurestore.compiler.names import CREATED, EVENT
from featurestore.ingest.inbox import Inbox
from featurestore.ingest.projection import pack
from featurestore.offline.base import OfflineStore
from featurestore.online.base import OnlineStore
from featurestore.online.row_encoder import RowEncoder
from featurestore.registry.apply import apply
from featurestore.registry.definitions import Definitions
from featurestore.registry.registry import Registry
from featurestore.registry.state import StateStore
from featurestore.repository import Repository
from featurestore.settings import load_settings
from materialization.job import Materializer, Request, RunOutcome, ViewOutcome

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "small"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
BATCH_ROWS = 10

airport = Entity(name="airport", join_keys={"origin": String})
FIELDS = (Field(name="temp", dtype=Float64), Field(name="seen", dtype=Int64))

Row = tuple[str, datetime, float | None, int | None]
CreatedRow = tuple[str, datetime, datetime, float | None, int | None]


def weather(path: str = "data/weather", *, created: bool = False, **changes: Any) -> FeatureView:
    """The view most tests use: weather at an airport, from the files of a folder."""
    source = FileSource(path=path, timestamp_field="at", created_timestamp_column="known" if created else None)
    view = FeatureView(name="weather", entities=[airport], schema=FIELDS, source=source)
    return replace(view, **changes)


def rows_table(rows: Sequence[Row]) -> pa.Table:
    """(origin, at, temp, seen) as a source writes them."""
    schema = pa.schema([("origin", pa.string()), ("at", TIMESTAMP), ("temp", pa.float64()), ("seen", pa.int64())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def created_table(rows: Sequence[CreatedRow]) -> pa.Table:
    """(origin, at, known, temp, seen) as a source writes them."""
    plain = rows_table([(row[0], row[1], row[3], row[4]) for row in rows])
    return plain.add_column(2, "known", pa.array([row[2] for row in rows], TIMESTAMP))


def hours(count: float) -> timedelta:
    """That many hours."""
    return timedelta(hours=count)


@dataclass
class SmallRepository:
    """A folder that holds everything; the stores are open, `clock` stands where the test has put it."""

    root: Path
    batch_rows: int = BATCH_ROWS
    clock: FixedClock = field(default_factory=lambda: FixedClock(NOON))
    project: str = PROJECT
    lease_s: float = 60.0
    #: The sections of featurestore.toml, as commands read them.
    registry_settings: str = 'path = "registry.db"'
    offline_settings: str = 'path = "offline.duckdb"\nwait_s = 0.2'
    online_settings: str = 'path = "online.db"'

    def __post_init__(self) -> None:
        (self.root / "data").mkdir(parents=True, exist_ok=True)
        self.registry: Registry
        self.state: StateStore
        stores = self.opened()
        self.registry, self.state = stores.registry, stores.state
        self.offline: OfflineStore = stores.offline
        self.online: OnlineStore = stores.online
        self.inbox: Inbox | None = stores.inbox

    @staticmethod
    def on_servers(root: Path, project: str, postgres: str, redis: str, **changes: Any) -> SmallRepository:
        """One on Postgres and Redis; servers are shared, so `project` is nobody else's."""
        in_postgres = f'kind = "postgres"\nurl = "{postgres}"\n'
        settings = {
            "registry_settings": in_postgres,
            "offline_settings": in_postgres + "wait_s = 2",
            "online_settings": f'kind = "redis"\nurl = "{redis}"',
        }
        return SmallRepository(root, project=project, **(settings | changes))

    def close(self) -> None:
        """Close the stores."""
        if self.inbox is not None and self.inbox.file is not self.online:
            self.inbox.file.close()
        self.online.close()
        self.offline.close()
        self.registry.close()

    def opened(self) -> Repository:
        """The repository as a command opens it, but for settings in the environment of the tests."""
        self._write_settings()
        return Repository(load_settings(self.root, {}), self.clock)

    # ------------------------------------------------------------------ what a user does

    def apply(self, *views: FeatureView) -> None:
        """Make these the applied views."""
        entities = {entity.name: entity for view in views for entity in view.entities}
        definitions = Definitions(entities=entities, views={view.ref: view for view in views})
        stores = (self.registry, self.state, self.offline, self.online)
        apply(*stores, definitions, who="test", clock=self.clock, allow_data_loss=True, allow_in_use=True)

    def write(self, name: str, rows: pa.Table | Sequence[Row]) -> Path:
        """(Over)write a Parquet source file below data/."""
        path = self.root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows if isinstance(rows, pa.Table) else rows_table(rows), path)
        return path

    def at(self, now: datetime) -> SmallRepository:
        """Set the clock."""
        self.clock = FixedClock(now)
        return self

    def materializer(self) -> Materializer:
        """The jobs of this folder."""
        return Materializer(
            repository=self.root,
            registry=self.registry,
            state=self.state,
            offline=self.offline,
            online=self.online,
            clock=self.clock,
            batch_rows=self.batch_rows,
            lease_s=self.lease_s,
            inbox=self.inbox,
        )

    def run(self, request: Request | None = None, views: Sequence[str] = ()) -> RunOutcome:
        """Materialize all views (or those named) incrementally, or as `request` says."""
        chosen = [self.registry.view(name) for name in views] or list(self.registry.views().values())
        return self.materializer().run(chosen, request or Request())

    def done(self, request: Request | None = None) -> ViewOutcome:
        """`run` for the one view there is; its error is raised."""
        outcome = self.run(request)
        assert len(outcome.views) == 1
        if outcome.views[0].error is not None:
            raise outcome.views[0].error
        return outcome.views[0]

    # ------------------------------------------------------------------ what a test looks at

    def history(self, ref: str = "weather@1") -> pa.Table:
        """The whole history in the order of positions."""
        name = ref.replace("@", "__v")
        settings = load_settings(self.root, {}).offline
        if settings.kind == "postgres":
            rows = _postgres_rows(settings.url, self.project, name)
        else:
            with duckdb.connect(str(settings.path), read_only=True) as connection:
                connection.execute("SET TimeZone = 'UTC'")
                rows = connection.sql(f'SELECT * FROM "{self.project}"."{name}" ORDER BY _position').to_arrow_table()
        view = self.registry.view(ref)
        types = {**view.join_keys, **{declared.name: declared.dtype for declared in view.schema}}
        exact = pa.schema([(f.name, arrow_type(types[f.name]) if f.name in types else f.type) for f in rows.schema])
        return rows.cast(exact)

    def values(self, ref: str = "weather@1") -> list[tuple[Any, ...]]:
        """(join keys, event, created, fields) of every history row, sorted."""
        view = self.registry.view(ref)
        names = [*view.join_keys, EVENT, CREATED, *view.fields]
        columns = self.history(ref).select(names).to_pydict()
        return sorted(zip(*(columns[name] for name in names), strict=True), key=repr)

    def stored(self, ref: str = "weather@1") -> dict[bytes, bytes]:
        """What the online store holds: key -> packed row."""
        return {
            key: row
            for keys, rows in self.online.scan(ref, 1000)
            for key, row in zip(keys.to_pylist(), rows.to_pylist(), strict=True)
        }

    def projection(self, now: datetime, ref: str = "weather@1") -> dict[bytes, bytes]:
        """What the online store must hold at `now`, from history, row by row."""
        view, history = self.registry.view(ref), self.history(ref)
        newest: dict[tuple[Any, ...], tuple[tuple[Any, ...], int]] = {}
        for place, row in enumerate(history.to_pylist()):
            if max(row[EVENT], row[CREATED]) > now:
                continue
            key = tuple(row[name] for name in view.join_keys)
            order = (row[EVENT], row[CREATED], row["_sequence"])
            if key not in newest or order > newest[key][0]:
                newest[key] = (order, place)
        chosen = history.take(pa.array([place for _, place in newest.values()], pa.int64()))
        encoder = RowEncoder(self.registry.schema_id(ref), view.schema)
        keys, rows = pack(view, encoder, chosen)
        return dict(zip(keys.to_pylist(), rows.to_pylist(), strict=True))

    def assert_online_is_projection(self, ref: str = "weather@1") -> None:
        """The online store holds the projection at its published horizon, byte for byte."""
        state = self.state.publish_state(ref)
        assert state is not None
        now = self.clock.now()
        assert state.horizon_us == to_us(now)
        assert state.position == self.offline.position(ref)
        assert self.stored(ref) == self.projection(now, ref)

    def assert_positions_contiguous(self, ref: str = "weather@1") -> None:
        """Positions count the rows from 1; no sequence is given twice."""
        history = self.history(ref)
        assert history.column("_position").to_pylist() == list(range(1, history.num_rows + 1))
        sequences = history.column("_sequence").to_pylist()
        assert len(set(sequences)) == len(sequences)

    def assert_verified(self) -> None:
        """`verify` finds no fault, and nothing that waits."""
        with self.opened() as repository:
            for parity in FeatureStore.of(repository).verify():
                assert (parity.faults, parity.pending) == (Counter(), Counter()), parity
                assert parity.equal == parity.compared

    def assert_verified_but_pending(self) -> None:
        """`verify` finds no fault; rows may wait."""
        with self.opened() as repository:
            for parity in FeatureStore.of(repository).verify():
                assert parity.faults == Counter(), parity
                assert parity.equal == parity.compared

    # ------------------------------------------------------------------ other processes

    def start_command(self, *arguments: str, code: str | None = None, **environment: str) -> subprocess.Popen[str]:
        """`featurestore ARGUMENTS` in this repository, at the time of the clock, as a process of its own.

        `code` is run in place of the command, with its arguments.
        """
        self._write_settings()
        at = ["-C", str(self.root), "--now", self.clock.now().isoformat()]
        program = ("-m", "featurestore.cli.main") if code is None else ("-c", code)
        return self._start(*program, *at, *arguments, **environment)

    def run_command(
        self, *arguments: str, code: str | None = None, timeout_s: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`start_command` and its end."""
        with self.start_command(*arguments, code=code, **environment) as process:
            out, errors = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def start_holding(self) -> subprocess.Popen[str]:
        """A process that materializes this repository, and stops after the first batch until it is killed."""
        return self._start("-m", "tests.fix_repository", str(self.root), self.clock.now().isoformat())

    def _write_settings(self) -> None:
        settings = SETTINGS.format(
            project=self.project,
            registry=self.registry_settings,
            offline=self.offline_settings,
            online=self.online_settings,
            batch_rows=self.batch_rows,
            lease_s=self.lease_s,
        )
        (self.root / "featurestore.toml").write_text(settings)

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


SETTINGS = """project = "{project}"
[registry]
{registry}
[offline]
{offline}
[online]
{online}
[materialization]
batch_rows = {batch_rows}
lease_s = {lease_s}
"""


def _postgres_rows(url: str, project: str, table: str) -> pa.Table:
    """A table in the order of positions."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        chosen = sql.SQL("SELECT * FROM {} ORDER BY _position").format(sql.Identifier(project, table))
        cursor = connection.execute(chosen)
        names = [column.name for column in cursor.description or ()]
        rows = cursor.fetchall()
    system = {EVENT: TIMESTAMP, CREATED: TIMESTAMP, "_sequence": pa.int64(), "_position": pa.int64()}
    columns = [pa.array([row[place] for row in rows], system.get(name)) for place, name in enumerate(names)]
    return pa.table(columns, names=names)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[SmallRepository]:
    """An empty small repository."""
    small = SmallRepository(tmp_path / "repository")
    yield small
    small.close()


def _hold(view: str, step: str, rows: int) -> None:
    print(f"holding {view}", flush=True)
    threading.Event().wait()


def main(root: str, now: str) -> None:
    """Materialize all views of the repository in `root` at `now`, and stop for good after the first batch."""
    small = SmallRepository(Path(root)).at(datetime.fromisoformat(now))
    jobs = replace(small.materializer(), progress=_hold)
    jobs.run(list(small.registry.views().values()), Request())


if __name__ == "__main__":
    main(*sys.argv[1:])
