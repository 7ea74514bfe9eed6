"""Golden SQL: what the compiler writes is compared as text, and then run on a tiny history with stated answers.

A golden can therefore not bless a wrong rewrite. After a change that is meant, write the files anew with
`python -m tests.test_golden` and read their diff like code; nothing else ever writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal as Number
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from featurestore import Bool, Bytes, Decimal, FeatureView, Field, Float32, Float64, Int64, List, String, Vector
from featurestore.compiler import compile, history_table
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import (
    AS_OF,
    INCOMING,
    POSITION,
    PUBLISH,
    PUBLISHED_HORIZONS,
    PUBLISHED_POSITIONS,
    ROW,
    SCHEMA_ID,
    SEQUENCE,
    SPINE,
    UP_TO,
)
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from tests.fix_offline import ALL_TYPES, bits, key_columns, make_view, times
from tests.fix_offline import history_table as rows_table
from tests.oracle import Row

GOLDEN = Path(__file__).parent / "golden"
PROJECT = "p"
HISTORY = '"p"."leg__v1"'

Answers = list[tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One file: `case` below the folder of its pass, why it stands there, the text, and what running it must give."""

    step: str
    case: str
    why: str
    sql: str
    run: Callable[[duckdb.DuckDBPyConnection, str], Any]
    gives: Any

    @property
    def path(self) -> Path:
        return GOLDEN / self.step / f"{self.case}.sql"

    @property
    def text(self) -> str:
        return f"-- case: {self.case}\n-- why: {self.why}\n{self.sql};\n"


KNOWN = make_view("text", {"delay": Int64})
AT_EVENT = make_view("text", {"delay": Int64}, created=False)
ROUTE = make_view("two texts", {"delay": Int64})


def row(key: str | tuple[str, ...], event: int, created: int, sequence: int, position: int, value: Any) -> Row:
    keys = key if isinstance(key, tuple) else (key,)
    return Row(keys=keys, event=event, created=created, sequence=sequence, position=position, value=(value,))


def on_history(
    view: FeatureView,
    rows: Sequence[Row],
    *,
    spine: Sequence[tuple[int, tuple[str, ...], int]] = (),
    served: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]] | None = None,
) -> Callable[[duckdb.DuckDBPyConnection, str], Answers]:
    """Runs a query over `rows` and a spine of (row number, keys, as_of).

    `served` are (position, publish) and (horizon, publish); as_of then counts publishes.
    """

    def run(connection: duckdb.DuckDBPyConnection, sql: str) -> Answers:
        fill(connection, view, rows)
        asked = {
            ROW: pa.array([number for number, _, _ in spine], pa.int64()),
            **key_columns(view, [keys for _, keys, _ in spine]),
            AS_OF: pa.array([at for _, _, at in spine], pa.int64()) if served else times([at for _, _, at in spine]),
        }
        if served:
            positions, horizons = (list(zip(*reached, strict=True)) for reached in served)
            register = {PUBLISHED_POSITIONS: pa.array(positions[0]), PUBLISHED_HORIZONS: times(list(horizons[0]))}
            for (name, up_to), publishes in zip(register.items(), (positions[1], horizons[1]), strict=True):
                connection.register(name, pa.table({UP_TO: up_to, PUBLISH: pa.array(publishes)}))
        connection.register(SPINE, pa.table(asked))
        return answers(connection, sql)

    return run


def fill(connection: duckdb.DuckDBPyConnection, view: FeatureView, rows: Sequence[Row]) -> None:
    """A history table holding exactly `rows`, at the positions they have."""
    connection.execute('CREATE SCHEMA "p"')
    for statement in compile.history_ddl(PROJECT, view):
        connection.execute(statement)
    table = rows_table(view, rows).append_column(POSITION, pa.array([r.position for r in rows], pa.int64()))
    connection.register("filling", table.append_column(SCHEMA_ID, pa.array([7] * len(rows), pa.int32())))
    connection.execute(f"INSERT INTO {HISTORY} BY NAME SELECT * FROM filling")


def answers(connection: duckdb.DuckDBPyConnection, sql: str) -> Answers:
    """The query's rows, sorted, timestamps in microseconds."""
    table = connection.sql(sql).to_arrow_table()
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in table.columns]
    return sorted(zip(*(column.to_pylist() for column in columns), strict=True))


def described(connection: duckdb.DuckDBPyConnection) -> Answers:
    """Columns of the history: (name, type, may be null)."""
    rows = connection.execute(f"DESCRIBE {HISTORY}").fetchall()
    return [(name, kind, null == "YES") for name, kind, null, *_ in rows]


def _creates(connection: duckdb.DuckDBPyConnection, sql: str) -> Answers:
    connection.execute('CREATE SCHEMA "p"')
    connection.execute(sql)
    connection.execute(sql)  # idempotent
    return described(connection)


def _adds(connection: duckdb.DuckDBPyConnection, sql: str) -> Answers:
    """The new column in a row written before it, and in one written afterwards without a value."""
    fill(connection, KNOWN, [row("a", 1, 1, 1, 1, 5)])
    connection.execute(sql)
    connection.execute(f"INSERT INTO {HISTORY} BY NAME SELECT * EXCLUDE (added) FROM {HISTORY}")
    return connection.execute(f"SELECT added FROM {HISTORY} ORDER BY rowid").fetchall()


def _drops(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    fill(connection, KNOWN, [])
    connection.execute(sql)
    connection.execute(sql)  # idempotent
    return len(connection.execute("SELECT 1 FROM duckdb_tables()").fetchall())


def add_column(field: Field) -> str:
    changes = history_table.add_column(PROJECT, KNOWN, field, DUCKDB)
    return ";\n".join(DUCKDB.sql(change) for change in changes)


def join(view: FeatureView, position: int = 99, **more: Any) -> str:
    asked = PointInTimeJoin(project=PROJECT, view=view, fields=["delay"], position=position, **more)
    return compile.point_in_time_join(asked, DUCKDB)


def at(view: FeatureView, position: int, horizon: int, **more: Any) -> LatestRows:
    return LatestRows(project=PROJECT, view=view, position_to=position, horizon_to_us=horizon, **more)


#: An entity told five times about two instants: known late, corrected, corrected again, and once before it was true.
LEGS = [
    row("a", 10, 10, 1, 1, 100),
    row("a", 20, 25, 2, 2, 200),
    row("a", 20, 25, 3, 3, 201),
    row("a", 20, 30, 4, 4, 202),
    row("a", 15, 5, 5, 5, 150),
    row("a", 12, 40, 6, 6, 120),
    row("b", 10, 10, 7, 7, None),
]
ASKED = [(n, ("a",), as_of) for n, as_of in enumerate([9, 10, 14, 15, 24, 25, 29, 30, 50])] + [(9, ("b",), 10)]

_FLOATS = {
    "f": Float64,
    "g": Float32,
    "l": List(Float64),
    "v": Vector(Float32, 2),
    "t": String,
    "b": Bytes,
    "k": Bool,
    "d": Decimal(9, 2),
}
BITS = make_view("text", _FLOATS)
_NAN = float("nan")
_KNOWN_VALUES = (_NAN, 0.0, [_NAN, 0.0], [0.0, 1.0], "", b"", False, Number("1.50"))


def _known(connection: duckdb.DuckDBPyConnection, sql: str) -> Answers:
    """Incoming rows against one known row: the row itself, the row with each value changed in bits, another time."""
    known = Row(keys=("a",), event=3, created=4, sequence=1, position=1, value=_KNOWN_VALUES)
    nulls = Row(keys=("n",), event=3, created=3, sequence=2, position=2, value=(None,) * 8)
    fill(connection, BITS, [known, nulls])
    changed = (0.0, -0.0, [_NAN, -0.0], [-0.0, 1.0], " ", b"\0", None, Number("1.51"))
    values = [_KNOWN_VALUES] + [
        (*_KNOWN_VALUES[:place], other, *_KNOWN_VALUES[place + 1 :]) for place, other in enumerate(changed)
    ]
    incoming = [Row(keys=("a",), event=3, created=4, value=value) for value in values]
    incoming += [Row(keys=("a",), event=3, created=5, value=_KNOWN_VALUES)]
    incoming += [Row(keys=("n",), event=3, created=3, value=(None,) * 8)]
    table = rows_table(BITS, incoming).drop_columns([SEQUENCE])
    connection.register(INCOMING, table.append_column(ROW, pa.array(range(len(incoming)), pa.int64())))
    moments = [datetime(1970, 1, 1, microsecond=us, tzinfo=UTC) for us in (3, 3)]
    return sorted(connection.execute(sql, moments).fetchall())


def _goldens() -> list[Golden]:
    return [*_tables(), *_joins(), *_served_joins(), *_projections(), *_resent()]


def _tables() -> list[Golden]:
    typed = make_view("mixed", ALL_TYPES)
    keys = [("number", "INTEGER"), ("tail", "BLOB"), ("day", "DATE"), ("late", "BOOLEAN")]
    required = [(name, kind, False) for name, kind in keys]
    system = [
        ("event_timestamp", "TIMESTAMP WITH TIME ZONE", False),
        ("created_timestamp", "TIMESTAMP WITH TIME ZONE", False),
        ("_sequence", "BIGINT", False),
        ("_position", "BIGINT", False),
        ("_schema", "INTEGER", False),
    ]
    scalars = ["BOOLEAN", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR", "BLOB", "TIMESTAMP WITH TIME ZONE", "DATE"]
    kinds = [*scalars, "DECIMAL(38,4)", "DOUBLE[]", "VARCHAR[]", "FLOAT[2]"]
    fields = [(name, kind, True) for name, kind in zip(ALL_TYPES, kinds, strict=True)]
    return [
        Golden(
            step="history_table",
            case="every_type",
            why="keys, times and the store's own numbers are required, fields may be null; no unique index",
            sql=compile.history_ddl(PROJECT, typed)[0],
            run=_creates,
            gives=[*required, *system, *fields],
        ),
        Golden(
            step="history_table",
            case="add_column",
            why="a field that joins later is null in the rows before it",
            sql=add_column(Field(name="added", dtype=Float64)),
            run=_adds,
            gives=[(None,), (None,)],
        ),
        Golden(
            step="history_table",
            case="add_column_with_default",
            why="the default fills the rows before the field, and only those",
            sql=add_column(Field(name="added", dtype=Int64, default=2**53 + 1)),
            run=_adds,
            gives=[(2**53 + 1,), (None,)],
        ),
        Golden(
            step="history_table",
            case="drop",
            why="removing a history twice is removing it once",
            sql=DUCKDB.sql(history_table.drop_history(PROJECT, "leg@1")),
            run=_drops,
            gives=0,
        ),
    ]


def _served_joins() -> list[Golden]:
    return [
        Golden(
            step="point_in_time_join",
            case="as_served",
            why="a row counts from the first publish that covers its position and its visibility",
            sql=join(KNOWN, knowledge="as_served"),
            run=on_history(
                KNOWN,
                [row("a", 10, 10, 2, 1, 1), row("a", 10, 10, 1, 2, 2), row("a", 20, 30, 3, 3, 3)],
                # Publish 0 reached position 1 at 15, publish 1 position 3 at 25, publish 2 the same at 30.
                spine=[(0, ("a",), 0), (1, ("a",), 1), (2, ("a",), 2), (3, ("z",), 2)],
                served=([(1, 0), (3, 1)], [(15, 0), (25, 1), (30, 2)]),
            ),
            gives=[(0, 10, 1), (1, 10, 1), (2, 20, 3)],
        ),
    ]


def _joins() -> list[Golden]:
    legs = on_history(KNOWN, LEGS, spine=ASKED)
    return [
        Golden(
            step="point_in_time_join",
            case="created",
            why="rules 1-4: visible from the later of both times; the greatest (event, created, sequence) answers",
            sql=join(KNOWN),
            run=legs,
            gives=[(1, 10, 100), (2, 10, 100), (3, 15, 150), (4, 15, 150), (5, 20, 201), (6, 20, 201), (7, 20, 202)]
            + [(8, 20, 202), (9, 10, None)],
        ),
        Golden(
            step="point_in_time_join",
            case="knowledge_event",
            why="an honest backfill: created_timestamp hides nothing but still orders rows of one event time",
            sql=join(KNOWN, knowledge="event"),
            run=legs,
            gives=[(1, 10, 100), (2, 12, 120), (3, 15, 150), (4, 20, 202), (5, 20, 202), (6, 20, 202), (7, 20, 202)]
            + [(8, 20, 202), (9, 10, None)],
        ),
        Golden(
            step="point_in_time_join",
            case="without_created",
            why="a view without created_timestamp needs no window: its rows are visible in the order they happened",
            sql=join(AT_EVENT),
            run=on_history(
                AT_EVENT,
                [row("a", 10, 10, 2, 1, 1), row("a", 10, 10, 1, 2, 2), row("a", 20, 20, 3, 3, 3)],
                spine=[(0, ("a",), 10), (1, ("a",), 19), (2, ("a",), 20), (3, ("z",), 20)],
            ),
            gives=[(0, 10, 1), (1, 10, 1), (2, 20, 3)],
        ),
        Golden(
            step="point_in_time_join",
            case="few_rows_ask",
            why="of a long history the rows of the few entities asked for are kept, and read twice",
            sql=join(AT_EVENT, position=10_000, asking=4),
            run=on_history(
                AT_EVENT,
                [row("a", 10, 10, 2, 1, 1), row("a", 10, 10, 1, 2, 2), row("a", 20, 20, 3, 3, 3)],
                spine=[(0, ("a",), 10), (1, ("a",), 19), (2, ("a",), 20), (3, ("z",), 20)],
            ),
            gives=[(0, 10, 1), (1, 10, 1), (2, 20, 3)],
        ),
        Golden(
            step="point_in_time_join",
            case="pinned_position",
            why="rows committed after the pinned position do not exist",
            sql=join(KNOWN, position=3),
            run=legs,
            gives=[(1, 10, 100), (2, 10, 100), (3, 10, 100), (4, 10, 100), (5, 20, 201), (6, 20, 201), (7, 20, 201)]
            + [(8, 20, 201)],
        ),
        Golden(
            step="point_in_time_join",
            case="composite_key",
            why="keys are compared column by column, so texts that would glue together alike stay apart",
            sql=join(ROUTE),
            run=on_history(
                ROUTE,
                [row(("a|b", ""), 1, 1, 1, 1, 1), row(("a", "b"), 1, 1, 2, 2, 2), row(("", "a|b"), 1, 1, 3, 3, 3)],
                spine=[(0, ("a", "b"), 1), (1, ("a|b", ""), 1), (2, ("", "a|b"), 1), (3, ("b", "a"), 1)],
            ),
            gives=[(0, 1, 2), (1, 1, 1), (2, 1, 3)],
        ),
    ]


def _projections() -> list[Golden]:
    legs = on_history(KNOWN, LEGS)
    since = at(KNOWN, 4, 30, position_from=2, horizon_from_us=24)
    return [
        Golden(
            step="latest_rows",
            case="state",
            why="rule 7 from nothing: per entity the greatest row visible at the horizon",
            sql=compile.latest(at(KNOWN, 99, 29), DUCKDB),
            run=legs,
            gives=[("a", 20, 25, 3, 7, 201), ("b", 10, 10, 7, 7, None)],
        ),
        Golden(
            step="latest_rows",
            case="increment",
            why="rule 7 since (2, 24): rows past position 2 that are due, and rows before it that became due after 24",
            sql=compile.latest(since, DUCKDB),
            run=legs,
            gives=[("a", 20, 30, 4, 7, 202)],
        ),
        Golden(
            step="latest_rows",
            case="without_created",
            why="the horizon is compared with the event time alone",
            sql=compile.latest(at(AT_EVENT, 99, 19), DUCKDB),
            run=on_history(AT_EVENT, [row("a", 10, 10, 2, 1, 1), row("a", 10, 10, 1, 2, 2), row("a", 20, 20, 3, 3, 3)]),
            gives=[("a", 10, 10, 2, 7, 1)],
        ),
        Golden(
            step="count_pending",
            case="increment",
            why="how many rows became due since (2, 24), the watermark they bring, and since when the first is due",
            sql=compile.pending(since, DUCKDB),
            run=legs,
            gives=[(3, 20, 25)],
        ),
        Golden(
            step="known_entities",
            case="as_of",
            why="one spine row per entity known at T",
            sql=compile.entities(at(KNOWN, 6, 10), DUCKDB),
            run=legs,
            gives=[("a",)],
        ),
    ]


def _resent() -> list[Golden]:
    return [
        Golden(
            step="known_rows",
            case="bits",
            why="rule 6: same keys and times are known, and the same only if every value is equal bit for bit",
            sql=compile.known_rows(PROJECT, BITS, DUCKDB),
            run=_known,
            gives=[(0, True), *((place, False) for place in range(1, 9)), (10, True)],
        )
    ]


GOLDENS = _goldens()


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: f"{golden.step}-{golden.case}")
def test_compiled_sql_is_the_golden_text_and_answers_right(golden: Golden) -> None:
    written = golden.path.read_text(encoding="utf-8")

    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        assert bits(golden.run(connection, written)) == bits(golden.gives)
    assert golden.text == written, "if the change is meant: python -m tests.test_golden, then read the diff"


def test_every_golden_file_has_its_case() -> None:
    ours = {path for path in GOLDEN.rglob("*.sql") if "postgres" not in path.relative_to(GOLDEN).parts}
    assert ours == {golden.path for golden in GOLDENS}


if __name__ == "__main__":
    for golden in GOLDENS:
        golden.path.parent.mkdir(parents=True, exist_ok=True)
        golden.path.write_text(golden.text, encoding="utf-8")
