"""Builders for offline tests: views of every type and key, rows in a given arrival order, spines, exact comparison."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as Number
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import (
    Bool,
    Bytes,
    Date,
    Decimal,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.compiler import nearest_rows
from featurestore.compiler.names import CREATED, EVENT, SEQUENCE
from featurestore.dtypes import DType
from featurestore.feature_view import ViewSelection
from featurestore.offline import postgres
from featurestore.offline.base import AppendCounts, ArrivedRows, OfflineStore
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.offline.manifest import make_manifest
from featurestore.offline.postgres import PostgresOfflineStore
from featurestore.offline.spine import Spine, read_spine
from featurestore.offline.training_set import TrainingSet, TrainingSetQuery, build_table
from featurestore.online.row_encoder import RowEncoder
from featurestore.outputs import common_join_keys
from tests.fix_postgres import drop_schema
from tests.oracle import Row

PROJECT = "flights"
#: Every engine gives the same answers; a test takes `engine` or a store of it.
ENGINES = ("duckdb", "postgres")
NAN, INF = math.nan, math.inf

ALL_TYPES: dict[str, DType] = {
    "a_bool": Bool,
    "an_int32": Int32,
    "an_int64": Int64,
    "a_float32": Float32,
    "a_float64": Float64,
    "a_string": String,
    "some_bytes": Bytes,
    "a_timestamp": Timestamp,
    "a_date": Date,
    "a_decimal": Decimal(38, 4),
    "some_floats": List(Float64),
    "some_strings": List(String),
    "a_vector": Vector(Float32, 2),
}

_EPOCH, _FIRST = datetime(1970, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)
_PLAIN = dict(
    zip(ALL_TYPES, (True, 1, 2**53, 0.0, 0.0, "", b"", _EPOCH, _EPOCH.date(), Number(0), [], [], [0, 0]), strict=True)
)


def _like_plain(**changes: Any) -> tuple[Any, ...]:
    return tuple((_PLAIN | changes).values())


#: Rows of ALL_TYPES that are near each other and differ in bits: nulls, NaN, signs of zero, 2^53 and its neighbour.
VALUES: tuple[tuple[Any, ...], ...] = (
    (None,) * len(ALL_TYPES),
    _like_plain(),
    _like_plain(a_float64=-0.0),
    _like_plain(a_float32=-0.0),
    _like_plain(an_int64=2**53 + 1),
    _like_plain(a_vector=[0, -0.0]),
    _like_plain(some_floats=[-0.0]),
    _like_plain(some_floats=[0.0], some_strings=[""]),
    _like_plain(a_float64=NAN, a_string="a|b", some_bytes=b"\0", a_vector=[NAN, 1], some_floats=[NAN, -0.0]),
    _like_plain(a_bool=False, an_int32=-(2**31), an_int64=-(2**63), a_float32=NAN, a_timestamp=_FIRST, a_date=date.min),
    _like_plain(a_decimal=Number("-1e33"), some_strings=["", "a"]),
    (None, 2**31 - 1, 2**63 - 1, INF, -INF, "é", b"\xff\0", _LAST, date.max)
    + (Number("0.0001"), [1e300], ["日本"], [INF, 1]),
    (False, None, None, None, NAN, *[None] * 8),
    (False, None, None, NAN, *[None] * 9),
)

#: Join keys by kind, each with a pool of keys that a careless encoding would mix up.
KEYS: dict[str, tuple[dict[str, DType], tuple[tuple[Any, ...], ...]]] = {
    "text": (
        {"carrier": String},
        (("",), ("a",), ("a|b",), ("a||b",), ("1",), ("12",), ("A",), ("é",), ("e\u0301",), ("a ",)),
    ),
    "two texts": (
        {"origin": String, "dest": String},
        (("a", "b"), ("a|b", ""), ("", "a|b"), ("a|", "b"), ("1", "23"), ("12", "3"), ("ab", ""), ("", "ab")),
    ),
    "numbers": (
        {"number": Int64},
        ((0,), (-1,), (2**53,), (2**53 + 1,), (-(2**63),), (2**63 - 1,)),
    ),
    "mixed": (
        {"number": Int32, "tail": Bytes, "day": Date, "late": Bool},
        (
            (1, b"", date(2013, 1, 1), False),
            (1, b"", date(2013, 1, 1), True),
            (1, b"\0", date(2013, 1, 1), False),
            (-1, b"\0\0", date(1, 1, 1), False),
            (2**31 - 1, b"|", date(9999, 12, 31), True),
        ),
    ),
}


def make_view(
    keys: Mapping[str, DType] | str = "text",
    fields: Mapping[str, DType] | None = None,
    *,
    name: str = "leg",
    version: int = 1,
    created: bool = True,
    ttl_us: int | None = None,
    **more: Any,
) -> FeatureView:
    """A view over `keys` (a kind of KEYS, or names and types) with fields of all types, or the ones given."""
    join_keys = KEYS[keys][0] if isinstance(keys, str) else keys
    return FeatureView(
        name=name,
        version=version,
        entities=[Entity(name="thing", join_keys=join_keys)],
        schema=[Field(name=field, dtype=dtype) for field, dtype in (fields or ALL_TYPES).items()],
        source=FileSource(
            path="rows.parquet", timestamp_field="at", created_timestamp_column="known_at" if created else None
        ),
        ttl=None if ttl_us is None else timedelta(microseconds=ttl_us),
        **more,
    )


def values_of(view: FeatureView, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of a row of VALUES, what the view has fields for."""
    places = {name: place for place, name in enumerate(ALL_TYPES)}
    return tuple(row[places[field.name]] for field in view.schema)


def times(us: Sequence[int | None]) -> pa.Array:
    """Microseconds as canonical timestamps."""
    return pa.array(us, pa.int64()).cast(TIMESTAMP)


def key_columns(view: FeatureView, keys: Sequence[tuple[Any, ...]]) -> dict[str, pa.Array]:
    """Key tuples as columns in canonical types."""
    return {
        name: pa.array([key[place] for key in keys], arrow_type(dtype))
        for place, (name, dtype) in enumerate(view.join_keys.items())
    }


def value_columns(view: FeatureView, values: Sequence[tuple[Any, ...] | None]) -> dict[str, pa.Array]:
    """Value tuples as columns in canonical types; None is a row of nulls."""
    return {
        field.name: pa.array([None if row is None else row[place] for row in values], arrow_type(field.dtype))
        for place, field in enumerate(view.schema)
    }


def history_table(view: FeatureView, rows: Sequence[Row]) -> pa.Table:
    """Oracle rows, their `value` a tuple of the view's fields, as rows ready for history."""
    return pa.table(
        {
            **key_columns(view, [row.keys for row in rows]),
            EVENT: times([row.event for row in rows]),
            CREATED: times([row.created for row in rows]),
            SEQUENCE: pa.array([row.sequence for row in rows], pa.int64()),
            **value_columns(view, [row.value for row in rows]),
        }
    )


def append(store: OfflineStore, view: FeatureView, rows: Sequence[Row], **more: Any) -> AppendCounts:
    """Commit rows as one batch, in the given order, with the sequences they have."""
    return store.append(view, ArrivedRows(rows=history_table(view, rows), schema_id=more.pop("schema_id", 1), **more))


@contextmanager
def opened_store(folder: Path, project: str = PROJECT, *, threads: int = 2) -> Iterator[DuckDBOfflineStore]:
    """A store that keeps its file open for the block: many examples, one connection."""
    store = DuckDBOfflineStore(folder / "offline.duckdb", project, threads=threads)
    with store.open(write=True):
        yield store


#: The ways Postgres answers a join -> (history rows per ask up to which it reads all, rows that a lookup sees).
#: A lookup that sees one row answers little, and the join over all rows answers the others.
POSTGRES_PLANS = {"over all rows": (1 << 40, 100), "by lookups": (0, 100), "by short lookups": (0, 1)}


def plan_of_postgres(patch: pytest.MonkeyPatch, plan: str) -> None:
    """Answer in that way, whatever the sizes."""
    history_rows, looked_at = POSTGRES_PLANS[plan]
    patch.setattr(postgres, "HISTORY_ROWS_PER_ASK", history_rows)
    patch.setattr(nearest_rows, "ROWS_PASSED_MAX", looked_at)


@contextmanager
def opened_engine(request: pytest.FixtureRequest, engine: str, folder: Path) -> Iterator[OfflineStore]:
    """An empty store of an engine, kept open for the block."""
    if engine == "duckdb":
        with opened_store(folder) as embedded:
            yield embedded
        return
    url = request.getfixturevalue("postgres_shared")
    drop_schema(url, PROJECT)
    shared = PostgresOfflineStore(url, PROJECT)
    yield shared
    shared.close()


def select(*views: FeatureView | ViewSelection, **more: Any) -> FeatureService:
    """A service of all fields of some views."""
    return FeatureService(name="model", features=list(views), **more)


def ask(
    store: OfflineStore,
    service: FeatureService,
    views: Sequence[FeatureView],
    spine: object,
    *,
    project: str = PROJECT,
    positions: Mapping[str, int] | None = None,
    **more: Any,
) -> pa.Table:
    """The training set's table, at the newest positions unless some are given."""
    query, made = asking(store, service, views, spine, project=project, positions=positions, **more)
    return build_table(store, query, made)[0]


def asking(
    store: OfflineStore,
    service: FeatureService,
    views: Sequence[FeatureView],
    spine: object,
    *,
    project: str = PROJECT,
    positions: Mapping[str, int] | None = None,
    **more: Any,
) -> tuple[TrainingSetQuery, Spine]:
    """The query and the spine as the facade makes them."""
    request = {field.name: field.dtype for field in service.request_fields}
    read = read_spine(spine, common_join_keys(views), request)
    query = TrainingSetQuery(
        project=project,
        service=service,
        views={view.ref: view for view in views},
        positions={view.ref: store.position(view.ref) for view in views} if positions is None else positions,
        **more,
    )
    return query, read


def training_set(
    store: OfflineStore, service: FeatureService, views: Sequence[FeatureView], spine: object, **more: Any
) -> TrainingSet:
    """A training set with its manifest, as the facade makes it."""
    query, read = asking(store, service, views, spine, **more)
    table, outputs = build_table(store, query, read)
    made_at = "2013-12-01T00:00:00+00:00"
    describe = partial(make_manifest, query, read, table, outputs, store.engine, made_at=made_at, as_of=None)
    return TrainingSet(table=table, outputs=outputs, query=query, spine=read, describe=describe)


def payload(view: FeatureView, value: tuple[Any, ...]) -> bytes:
    """The canonical bytes of a value tuple: what orders the twins of a batch."""
    return RowEncoder(0, view.schema).payload(list(value_columns(view, [value]).values()))[0].as_py()


def bits(value: Any) -> Any:
    """A value that equals another only when their bits do: NaN is NaN, -0.0 is not 0.0."""
    match value:
        case float():
            return struct.pack(">d", value)
        case list():
            return [bits(item) for item in value]
        case tuple():
            return tuple(bits(item) for item in value)
        case _:
            return value


def assert_same_bits(got: pa.Table, expected: pa.Table) -> None:
    """Same columns, same types, same values bit for bit, same order."""
    assert got.column_names == expected.column_names
    assert [field.type for field in got.schema] == [field.type for field in expected.schema]
    for name in expected.column_names:
        assert bits(got.column(name).to_pylist()) == bits(expected.column(name).to_pylist()), name


def shuffled(table: pa.Table, seed: int) -> pa.Table:
    """The rows in another order."""
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))
