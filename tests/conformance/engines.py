"""The corpus on the stores: a small adapter an engine, the real gate, sequence, append and publish, the real lookup.

To add an engine, add its line to OFFLINE or ONLINE, and a pair to serve from; no case can leave an engine out.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Entity, FeatureService, FeatureView, Field, FileSource, FixedClock
from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.clock import from_us
from featurestore.dtypes import DType
from featurestore.ingest.gate import Gate
from featurestore.ingest.load import Loader, WindowedBatch
from featurestore.ingest.publish import Published, Publisher
from featurestore.ingest.source_batch import RowWindow, SourceBatch
from featurestore.offline.base import OfflineStore
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.offline.postgres import PostgresOfflineStore
from featurestore.offline.spine import read_spine
from featurestore.offline.training_set import TrainingSetQuery, build_table
from featurestore.online.base import OnlineStore
from featurestore.online.redis import RedisOnlineStore
from featurestore.online.sqlite import SqliteOnlineStore
from featurestore.registry.state import PublishState
from featurestore.status import Status
from serving.lookup import OnlineLookup
from serving.plan import compile_plan
from tests.conformance.answers import Answer, shown
from tests.conformance.cases import COUNTS, Arrival, Ask, Case, CaseView, table_name
from tests.fix_postgres import drop_schema
from tests.fix_redis import RedisFarm

EVENT_COLUMN, CREATED_COLUMN = "at", "known_at"
#: Small, so that publishes go in several batches.
BATCH_ROWS = 2


@contextmanager
def _duckdb(_: pytest.FixtureRequest, folder: Path, project: str) -> Iterator[OfflineStore]:
    store = DuckDBOfflineStore(folder / "offline.duckdb", project, threads=1)
    with store.open(write=True):
        yield store


@contextmanager
def _duckdb_in_turns(_: pytest.FixtureRequest, folder: Path, project: str) -> Iterator[OfflineStore]:
    """Not kept open: a job commits in a thread of its own, which needs the file's turn."""
    yield DuckDBOfflineStore(folder / "offline.duckdb", project, threads=1)


@contextmanager
def _sqlite(_: pytest.FixtureRequest, folder: Path, project: str) -> Iterator[OnlineStore]:
    store = SqliteOnlineStore(folder / "online.db", project)
    yield store
    store.close()


@contextmanager
def _postgres(request: pytest.FixtureRequest, folder: Path, project: str) -> Iterator[OfflineStore]:
    url = request.getfixturevalue("postgres_shared")
    drop_schema(url, project)
    store = PostgresOfflineStore(url, project)
    yield store
    store.close()


@contextmanager
def _redis(request: pytest.FixtureRequest, folder: Path, project: str) -> Iterator[OnlineStore]:
    farm: RedisFarm = request.getfixturevalue("redis_farm")
    store = RedisOnlineStore(f"{project}_{uuid.uuid4().hex}", farm.address("valkey"))
    yield store
    store.close()


#: An engine's name -> a store for a project; `request` gives it the fixture of its server, of session scope.
OFFLINE: Mapping[str, Callable[[pytest.FixtureRequest, Path, str], AbstractContextManager[OfflineStore]]] = {
    "duckdb": _duckdb,
    "postgres": _postgres,
}
#: For whole jobs.
REPLAYING = {**OFFLINE, "duckdb": _duckdb_in_turns}
ONLINE: Mapping[str, Callable[[pytest.FixtureRequest, Path, str], AbstractContextManager[OnlineStore]]] = {
    "sqlite": _sqlite,
    "redis": _redis,
}
#: Which histories are published into which online stores; each engine stands in one pair at least.
PAIRS: Sequence[tuple[str, str]] = (("duckdb", "sqlite"), ("postgres", "redis"))


# ------------------------------------------------------------------ definitions


def feature_view(case: Case, ref: str, arrival: int | None = None) -> FeatureView:
    """A view of a case as a definition, under a name of its own; with the fields there are at that arrival, or all."""
    view = case.views[ref]
    name = table_name(case.name, view)
    return FeatureView(
        name=name,
        version=view.version,
        entities=[Entity(name=f"{name}_{view.version}", join_keys=view.keys)],
        schema=[
            Field(name=each.name, dtype=each.dtype, default=each.default)
            for each in (view.fields if arrival is None else view.fields_at(arrival))
        ],
        source=FileSource(
            path=f"data/{name}_{view.version}",
            timestamp_field=EVENT_COLUMN,
            created_timestamp_column=CREATED_COLUMN if view.created else None,
            timezone=view.timezone,
            ambiguous=view.ambiguous,
        ),
        ttl=None if view.ttl_us is None else timedelta(microseconds=view.ttl_us),
        on_violation="quarantine",
    )


def output(view: CaseView, name: str) -> str:
    """The output of a field: versions of one view have the same field names."""
    return f"{view.name}_{view.version}_{name}"


def service_of(case: Case) -> FeatureService:
    """All fields of all views of a case."""
    selections = [
        feature_view(case, ref).select_all().alias(**{each.name: output(view, each.name) for each in view.fields})
        for ref, view in case.views.items()
    ]
    return FeatureService(name=case.name, features=selections)


# ------------------------------------------------------------------ rows


def source_table(view: CaseView, arrival: Arrival) -> pa.Table:
    """An arrival's rows as its source holds them."""
    kind = TIMESTAMP if view.timezone is None else pa.timestamp("us")
    columns = _columns(view.keys, [dict(zip(view.keys, row.keys, strict=True)) for row in arrival.rows])
    columns[EVENT_COLUMN] = pa.array([row.event for row in arrival.rows], kind)
    if view.created:
        columns[CREATED_COLUMN] = pa.array([row.created for row in arrival.rows], kind)
    fields = {each.name: each.dtype for each in view.fields_at(arrival.number)}
    return pa.table(columns | _columns(fields, [row.values for row in arrival.rows]))


def spine_table(case: Case, asks: Sequence[Ask]) -> pa.Table:
    """Spine rows as a table."""
    as_of = pa.array([ask.as_of_us for ask in asks], pa.int64()).cast(TIMESTAMP)
    return pa.table({"as_of": as_of, **_columns(case.keys, [ask.keys for ask in asks])})


def _columns(types: Mapping[str, DType], rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    return {name: pa.array([row[name] for row in rows], arrow_type(dtype)) for name, dtype in types.items()}


# ------------------------------------------------------------------ from source to online


@dataclass
class Histories:
    """An offline store that holds the history of one case at a time; engines look names up slower among hundreds."""

    store: OfflineStore
    project: str
    _sequences: dict[str, int] = field(default_factory=dict)
    #: The schema of each view's history, 0 before it has one.
    _schemas: dict[str, int] = field(default_factory=dict)

    def begin(self, case: Case) -> None:
        """Forget the case before, and begin this one with nothing."""
        for ref in self._schemas:
            self.store.drop_history(ref)
        self._schemas = {feature_view(case, ref).ref: 0 for ref in case.views}
        self._sequences = dict.fromkeys(self._schemas, 1)

    def load_all(self, case: Case) -> dict[int, dict[str, int]]:
        """Load every arrival of a case; number of the arrival -> what was counted."""
        counts = {arrival.number: self.load(case, arrival) for arrival in case.arrivals}
        self.complete(case)
        return counts

    def load(self, case: Case, arrival: Arrival) -> dict[str, int]:
        """Bring one arrival through gate, sequence and append, as its view is by then; what was counted."""
        view = feature_view(case, arrival.view, arrival.number)
        self._ensure(view)
        rows = source_table(case.views[arrival.view], arrival)
        batch = SourceBatch(rows=rows, source="rows", row_numbers=np.arange(rows.num_rows))
        loader = Loader(
            view=view,
            schema_id=schema_id(view),
            store=self.store,
            take_sequences=lambda count: self._take(view.ref, count),
            gate=Gate(view, run="run", at_us=0),
        )
        settled = loader.settle(WindowedBatch(batch=batch, window=RowWindow()))
        return {name: getattr(settled.counts, name) for name in COUNTS}

    def complete(self, case: Case) -> None:
        """Give every view its last fields, and a history where nothing has arrived."""
        for ref in case.views:
            self._ensure(feature_view(case, ref))

    def _ensure(self, view: FeatureView) -> None:
        if self._schemas[view.ref] != schema_id(view):
            self.store.ensure_history(view)
            self._schemas[view.ref] = schema_id(view)

    def _take(self, ref: str, count: int) -> int:
        first = self._sequences[ref]
        self._sequences[ref] = first + count
        return first

    def training_set(self, case: Case, knowledge: str) -> dict[int, dict[str, Answer]]:
        """Spine row -> ref -> answer, from a training set."""
        views = {view.ref: view for view in (feature_view(case, ref) for ref in case.views)}
        query = TrainingSetQuery(
            project=self.project,
            service=service_of(case),
            views=views,
            positions={ref: self.store.position(ref) for ref in views},
            knowledge=knowledge,
            with_status=True,
        )
        table, _ = build_table(self.store, query, read_spine(spine_table(case, case.spine), case.keys, {}))
        return training_answers(case, table)


def schema_id(view: FeatureView) -> int:
    """Fields are only ever added, so their number tells the schemas of a view apart."""
    return len(view.schema)


def training_answers(case: Case, table: pa.Table) -> dict[int, dict[str, Answer]]:
    """Spine row -> ref -> answer, from the table of a training set with statuses."""
    columns = {name: table.column(name) for name in table.column_names}
    statuses = {ref: columns[about(case, ref, "status")].to_pylist() for ref in case.views}
    return _answers(case, len(case.spine), statuses, columns)


def about(case: Case, ref: str, what: str) -> str:
    """The column of a training set that tells of a view's answers; it names the version where there are several."""
    view = feature_view(case, ref)
    versions = [other for other in case.views.values() if other.name == case.views[ref].name]
    return f"{view.name if len(versions) == 1 else view.ref}__{what}"


def _answers(
    case: Case, rows: int, statuses: Mapping[str, Sequence[str]], columns: Mapping[str, Any]
) -> dict[int, dict[str, Answer]]:
    for view in case.views.values():
        for each in view.fields:
            assert columns[output(view, each.name)].type == arrow_type(each.dtype)
    values = {
        ref: {each.name: columns[output(view, each.name)].to_pylist() for each in view.fields}
        for ref, view in case.views.items()
    }
    return {
        row: {
            ref: shown(view.fields, statuses[ref][row], {name: of[row] for name, of in values[ref].items()})
            for ref, view in case.views.items()
        }
        for row in range(rows)
    }


@dataclass
class Projection:
    """The views of one case in an online store, published from its histories."""

    case: Case
    histories: Histories
    online: OnlineStore
    published: dict[str, PublishState] = field(default_factory=dict)

    def empty(self) -> None:
        """Begin with a store that holds nothing."""
        self.published = {}
        for ref in self.case.views:
            name = feature_view(self.case, ref).ref
            self.online.drop(name)
            assert self.online.count(name) == 0

    def publish(self, ref: str, now_us: int, arrival: int | None = None) -> None:
        """Publish one view as of `now_us`, with the fields it has after an arrival, or all."""
        view = feature_view(self.case, ref, arrival)
        publisher = Publisher(
            project=self.histories.project,
            view=view,
            schema_id=schema_id(view),
            offline=self.histories.store,
            online=self.online,
            batch_rows=BATCH_ROWS,
            before_write=lambda: None,
            before_repair=lambda: None,
            on_rows=lambda rows: None,
        )
        self.published[ref] = _state(publisher.publish(self.published.get(ref), now_us))

    def publish_all(self, now_us: int) -> None:
        """Publish every view as of `now_us`."""
        for ref in self.case.views:
            self.publish(ref, now_us)

    def serve(self, now_us: int, asks: Mapping[int, Ask]) -> dict[int, dict[str, Answer]]:
        """Spine row -> ref -> what serving answers at `now_us`."""
        views = {ref: feature_view(self.case, ref) for ref in self.case.views}
        schemas = {view.ref: self._schemas(ref) for ref, view in views.items()}
        plan = compile_plan(service_of(self.case), {view.ref: view for view in views.values()}, schemas)
        lookup = OnlineLookup(plan, self.online, FixedClock(from_us(now_us)), _NoPromises())
        keys = spine_table(self.case, list(asks.values())).drop_columns(["as_of"])
        response = lookup.lookup({name: keys.column(name).combine_chunks() for name in keys.column_names})
        verdicts = {verdict.ref: verdict for verdict in response.views}
        statuses = {ref: [Status(status).name for status in verdicts[view.ref].statuses] for ref, view in views.items()}
        columns = {out.name: column for out, column in zip(plan.outputs, response.columns, strict=True)}
        answers = _answers(self.case, len(asks), statuses, columns)
        return {place: answers[row] for row, place in enumerate(asks)}

    def _schemas(self, ref: str) -> dict[int, Sequence[Field]]:
        views = [feature_view(self.case, ref, arrival.number) for arrival in self.case.arrivals]
        return {schema_id(view): view.schema for view in [*views, feature_view(self.case, ref)]}


class _NoPromises:
    """Views of the corpus promise no freshness, so nobody asks for watermarks."""

    def watermark_us(self, ref: str) -> int | None:
        """None."""
        return None


def _state(published: Published) -> PublishState:
    return PublishState(
        position=published.position,
        horizon_us=published.horizon_us,
        watermark_us=published.watermark_us,
        acknowledged_at_us=published.horizon_us,
    )
