"""Golden SQL of Postgres: cases of `test_golden.py` compiled for the other engine, run there, with the same answers.

After a change that is meant: `python -m tests.test_golden_postgres`, then read the diff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from featurestore import FeatureView
from featurestore.clock import from_us
from featurestore.compiler import compile, history_table
from featurestore.compiler.dialects.postgres import POSTGRES
from featurestore.compiler.names import AS_OF, CREATED, EVENT, POSITION, ROW, SCHEMA_ID, SEQUENCE
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from tests.fix_offline import ALL_TYPES, bits, make_view
from tests.oracle import Row
from tests.test_golden import _KNOWN_VALUES as KNOWN_VALUES
from tests.test_golden import _NAN as NAN
from tests.test_golden import ASKED, AT_EVENT, BITS, GOLDEN, HISTORY, KNOWN, LEGS, PROJECT, at, row

FOLDER = GOLDEN / "postgres"
Connection = psycopg.Connection[Any]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One file, as in `test_golden.py`."""

    step: str
    case: str
    why: str
    sql: str
    run: Callable[[Connection, str], Any]
    gives: Any

    @property
    def text(self) -> str:
        return f"-- case: {self.case}\n-- why: {self.why}\n{self.sql};\n"


def filled(
    view: FeatureView, rows: Sequence[Row], spine: Sequence[tuple[int, tuple[str, ...], int]] = ()
) -> Callable[[Connection, str], list[tuple[Any, ...]]]:
    """Runs a query over `rows` and a spine of (row number, keys, as_of)."""

    def run(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
        fill(connection, view, rows)
        keys = ", ".join(f'"{name}"' for name in view.join_keys)
        connection.execute(
            f"CREATE TEMPORARY TABLE _spine AS SELECT {SEQUENCE} AS {ROW}, {keys}, {EVENT} AS {AS_OF} FROM {HISTORY}"
            " WITH NO DATA"
        )
        insert(connection, "_spine", [(number, *asked, from_us(instant)) for number, asked, instant in spine])
        found = connection.execute(sql).fetchall()
        return sorted(tuple(_in_us(value) for value in values) for values in found)

    return run


def _in_us(value: Any) -> Any:
    return (value - datetime(1970, 1, 1, tzinfo=UTC)).microseconds if isinstance(value, datetime) else value


def fill(connection: Connection, view: FeatureView, rows: Sequence[Row]) -> None:
    """A history table holding exactly `rows`, at the positions they have."""
    connection.execute('CREATE SCHEMA "p"')
    for statement in compile.history_ddl(PROJECT, view, POSTGRES):
        connection.execute(statement)
    stored = [(*r.keys, from_us(r.event), from_us(r.created), r.sequence, r.position, 7, *r.value) for r in rows]
    insert(connection, HISTORY, stored)


def insert(connection: Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    for values in rows:
        places = ", ".join(f"${place + 1}" for place in range(len(values)))
        connection.execute(f"INSERT INTO {table} VALUES ({places})", values)


def _known(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    """Incoming rows against one known row: the row itself, the row with each value changed in bits, another time."""
    known = Row(keys=("a",), event=3, created=4, sequence=1, position=1, value=KNOWN_VALUES)
    nulls = Row(keys=("n",), event=3, created=3, sequence=2, position=2, value=(None,) * 8)
    fill(connection, BITS, [known, nulls])
    changed = (0.0, -0.0, [NAN, -0.0], [-0.0, 1.0], " ", b"\0", None, KNOWN_VALUES[7] + 1)
    values = [KNOWN_VALUES] + [
        (*KNOWN_VALUES[:place], other, *KNOWN_VALUES[place + 1 :]) for place, other in enumerate(changed)
    ]
    incoming = [("a", 3, 4, value) for value in values] + [("a", 3, 5, KNOWN_VALUES), ("n", 3, 3, (None,) * 8)]
    fields = ", ".join(f'"{name}"' for name in BITS.fields)
    connection.execute(
        f"CREATE TEMPORARY TABLE _incoming AS SELECT {SEQUENCE} AS {ROW}, carrier, {EVENT}, {CREATED}, {fields}"
        f" FROM {HISTORY} WITH NO DATA"
    )
    rows = [
        (number, key, from_us(event), from_us(created), *value)
        for number, (key, event, created, value) in enumerate(incoming)
    ]
    insert(connection, "_incoming", rows)
    return sorted(connection.execute(sql, (from_us(3), from_us(3))).fetchall())


def _creates(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    connection.execute('CREATE SCHEMA "p"')
    for _ in range(2):  # idempotent
        connection.execute(sql)
    return connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attcollation::regcollation::text"
        f" FROM pg_attribute WHERE attrelid = '{HISTORY}'::regclass AND attnum > 0 ORDER BY attnum"
    ).fetchall()


def join(view: FeatureView, **more: Any) -> PointInTimeJoin:
    return PointInTimeJoin(project=PROJECT, view=view, fields=["delay"], position=99, **more)


def _joins() -> list[Golden]:
    answers: list[tuple[Any, ...]] = [
        (1, 10, 100),
        (2, 10, 100),
        (3, 15, 150),
        (4, 15, 150),
        (5, 20, 201),
        (6, 20, 201),
        (7, 20, 202),
    ]
    answers += [(8, 20, 202), (9, 10, None)]
    at_event = [row("a", 10, 10, 2, 1, 1), row("a", 10, 10, 1, 2, 2), row("a", 20, 20, 3, 3, 3)]
    return [
        Golden(
            step="point_in_time_join",
            case="created",
            why="over all rows: the greatest order key so far, history and spine in one order of time",
            sql=compile.point_in_time_join(join(KNOWN), POSTGRES),
            run=filled(KNOWN, LEGS, ASKED),
            gives=answers,
        ),
        Golden(
            step="point_in_time_join",
            case="without_created",
            why="over all rows of a view that is known from its event times",
            sql=compile.point_in_time_join(join(AT_EVENT), POSTGRES),
            run=filled(AT_EVENT, at_event, [(0, ("a",), 10), (1, ("a",), 19), (2, ("a",), 20), (3, ("z",), 20)]),
            gives=[(0, 10, 1), (1, 10, 1), (2, 20, 3)],
        ),
        Golden(
            step="nearest_rows",
            case="created",
            why="by lookups: the first visible row from as_of down is the answer",
            sql=compile.nearest(join(KNOWN), POSTGRES),
            run=filled(KNOWN, LEGS, ASKED),
            gives=[(*answer, False) for answer in answers],
        ),
    ]


def _others() -> list[Golden]:
    since = at(KNOWN, 4, 30, position_from=2, horizon_from_us=24)
    return [
        Golden(
            step="history_table",
            case="every_type",
            why="text compares bytewise whatever the database's locale",
            sql=POSTGRES.sql(history_table.create_history(PROJECT, make_view("mixed", ALL_TYPES), POSTGRES)),
            run=_creates,
            gives=COLUMNS,
        ),
        Golden(
            step="latest_rows",
            case="increment",
            why="rule 7 since (2, 24): rows past position 2 that are due, and rows before it that became due after 24",
            sql=compile.latest(since, POSTGRES),
            run=filled(KNOWN, LEGS),
            gives=[("a", 20, 30, 4, 7, 202)],
        ),
        Golden(
            step="count_pending",
            case="increment",
            why="how many rows became due since (2, 24), and the watermark they bring",
            sql=compile.pending(since, POSTGRES),
            run=filled(KNOWN, LEGS),
            gives=[(3, 20, 25)],
        ),
        Golden(
            step="known_entities",
            case="as_of",
            why="one spine row per entity known at T",
            sql=compile.entities(at(KNOWN, 6, 10), POSTGRES),
            run=filled(KNOWN, LEGS),
            gives=[("a",)],
        ),
        Golden(
            step="known_rows",
            case="bits",
            why="rule 6: the same only if every value is equal bit for bit",
            sql=compile.known_rows(PROJECT, BITS, POSTGRES),
            run=_known,
            gives=[(0, True), *((place, False) for place in range(1, 9)), (10, True)],
        ),
    ]


_NO = "-"
COLUMNS = [
    ("number", "integer", True, _NO),
    ("tail", "bytea", True, _NO),
    ("day", "date", True, _NO),
    ("late", "boolean", True, _NO),
    (EVENT, "timestamp with time zone", True, _NO),
    (CREATED, "timestamp with time zone", True, _NO),
    (SEQUENCE, "bigint", True, _NO),
    (POSITION, "bigint", True, _NO),
    (SCHEMA_ID, "integer", True, _NO),
    ("a_bool", "boolean", False, _NO),
    ("an_int32", "integer", False, _NO),
    ("an_int64", "bigint", False, _NO),
    ("a_float32", "real", False, _NO),
    ("a_float64", "double precision", False, _NO),
    ("a_string", "text", False, '"C"'),
    ("some_bytes", "bytea", False, _NO),
    ("a_timestamp", "timestamp with time zone", False, _NO),
    ("a_date", "date", False, _NO),
    ("a_decimal", "numeric(38,4)", False, _NO),
    ("some_floats", "double precision[]", False, _NO),
    ("some_strings", "text[]", False, '"C"'),
    ("a_vector", "real[]", False, _NO),
]
GOLDENS = [*_joins(), *_others()]


@pytest.fixture
def connection(postgres: str) -> Iterator[Connection]:
    with psycopg.connect(postgres, autocommit=True, cursor_factory=psycopg.RawCursor) as opened:
        opened.execute("SET timezone = 'UTC'")
        yield opened


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: f"{golden.step}-{golden.case}")
def test_compiled_sql_is_the_golden_text_and_answers_right(golden: Golden, connection: Connection) -> None:
    written = (FOLDER / golden.step / f"{golden.case}.sql").read_text(encoding="utf-8")

    assert bits(golden.run(connection, written)) == bits(golden.gives)
    assert golden.text == written, "if the change is meant: python -m tests.test_golden_postgres, then read the diff"


def test_every_golden_file_has_its_case() -> None:
    assert set(FOLDER.rglob("*.sql")) == {FOLDER / golden.step / f"{golden.case}.sql" for golden in GOLDENS}


if __name__ == "__main__":
    for golden in GOLDENS:
        path = FOLDER / golden.step / f"{golden.case}.sql"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(golden.text, encoding="utf-8")
