"""The compiler: a readable order of passes, the same text every time, types and equality per engine as data."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pytest
from sqlglot import exp

from featurestore import Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, List, String, Timestamp, Vector
from featurestore.arrow_types import arrow_type
from featurestore.compiler import compile, names
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.dtypes import DType
from tests.fix_offline import ALL_TYPES, VALUES, bits, make_view

VIEW = make_view("two texts")


def join(fields: Sequence[str] = ("a_bool",), position: int = 7, knowledge: str = "created") -> PointInTimeJoin:
    return PointInTimeJoin(project="p", view=VIEW, fields=fields, position=position, knowledge=knowledge)


def test_the_passes_stand_in_the_order_of_their_steps() -> None:
    sql = compile.point_in_time_join(join(), DUCKDB)

    steps = ["_pinned", "_entities", "_asking", "_visible", "_leading", "_answers"]
    places = [sql.index(f"{step} AS ") for step in steps]
    assert places == sorted(places)
    assert [step.__name__ for step in compile.passes(DUCKDB)] == [
        "pinned_rows",
        "served_by_as_of",
        "asked_entities",
        "asked_rows",
        "leading_rows",
        "match",
        "break_ties",
        "fetch_fields",
    ]


def test_compiling_twice_gives_the_same_text_and_leaves_no_trace() -> None:
    first = compile.point_in_time_join(join(), DUCKDB)

    compile.point_in_time_join(join(knowledge="event", fields=list(ALL_TYPES), position=1), DUCKDB)

    assert compile.point_in_time_join(join(), DUCKDB) == first


@pytest.mark.parametrize(
    ("created", "knowledge", "steps"),
    [
        (True, "created", ("_leading",)),
        (True, "event", ("_matched", "_greatest")),
        (False, "created", ("_matched", "_greatest")),
    ],
)
def test_only_rows_that_become_known_late_pay_for_the_running_maximum(
    created: bool, knowledge: str, steps: tuple[str, ...]
) -> None:
    view = make_view("text", created=created)
    asked = PointInTimeJoin(project="p", view=view, fields=["a_bool"], position=1, knowledge=knowledge)

    sql = compile.point_in_time_join(asked, DUCKDB)
    assert tuple(step for step in ("_leading", "_matched", "_greatest") if f"{step} AS " in sql) == steps


def test_no_field_is_read_before_the_answers_are_known() -> None:
    sql = compile.point_in_time_join(join(fields=list(ALL_TYPES)), DUCKDB)

    before, _, after = sql.rpartition("\nSELECT\n")
    assert [name for name in ALL_TYPES if f'"{name}"' in before] == []
    assert [name for name in ALL_TYPES if f'"{name}"' in after] == list(ALL_TYPES)


def test_names_are_quoted_wherever_they_stand() -> None:
    view = make_view({"select": String}, {"group": Int64}, name="order")
    query = LatestRows(project="from", view=view, position_to=1, horizon_to_us=1)
    asked = PointInTimeJoin(project="from", view=view, fields=["group"], position=1)
    with duckdb.connect(":memory:") as connection:
        connection.execute('CREATE SCHEMA "from"')
        for statement in compile.history_ddl("from", view):
            connection.execute(statement)
        connection.register(names.SPINE, pa.table({"_row": [0], "select": ["a"], "_as_of": instant_array(1)}))
        for sql in (
            compile.latest(query, DUCKDB),
            compile.pending(query, DUCKDB),
            compile.entities(query, DUCKDB),
            compile.point_in_time_join(asked, DUCKDB),
        ):
            assert connection.sql(sql).to_arrow_table().num_columns > 0


def instant_array(us: int) -> pa.Array:
    return pa.array([us]).cast(pa.timestamp("us", "UTC"))


@pytest.mark.parametrize("us", [-62_135_596_800_000_000, -1, 0, 1, 253_402_300_799_999_999])
def test_an_instant_is_exact_as_a_literal(us: int) -> None:
    with duckdb.connect(":memory:") as connection:
        sql = f"SELECT epoch_us({DUCKDB.instant(us).sql(dialect='duckdb')})"
        assert connection.execute(sql).fetchall() == [(us,)]


def test_history_tables_are_named_after_view_and_version() -> None:
    assert names.history_name("weather@12") == "weather__v12"
    assert names.history("p", VIEW).sql(dialect="duckdb") == '"p"."leg__v1"'


# ------------------------------------------------------------------ DuckDB


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (Bool, "BOOLEAN"),
        (Int32, "INTEGER"),
        (Int64, "BIGINT"),
        (Float32, "FLOAT"),
        (Float64, "DOUBLE"),
        (String, "VARCHAR"),
        (Bytes, "BLOB"),
        (Timestamp, "TIMESTAMPTZ"),
        (Date, "DATE"),
        (Decimal(38, 4), "DECIMAL(38, 4)"),
        (List(Timestamp), "TIMESTAMPTZ[]"),
        (List(Decimal(9, 2)), "DECIMAL(9, 2)[]"),
        (Vector(Float32, 3), "FLOAT[3]"),
    ],
)
def test_every_type_has_a_duckdb_type(dtype: DType, text: str) -> None:
    assert DUCKDB.type_text(dtype) == text


@pytest.mark.parametrize(("name", "dtype"), ALL_TYPES.items())
def test_bits_equal_tells_values_apart_exactly_as_their_bits_do(name: str, dtype: DType) -> None:
    place = list(ALL_TYPES).index(name)
    values = [value[place] for value in VALUES if value[place] is not None]
    column = pa.array(values, arrow_type(dtype))
    left, right = (exp.column("x", table=side) for side in ("l", "r"))
    with duckdb.connect(":memory:") as connection:
        connection.register("pool", pa.table({"n": range(len(values)), "x": column}))
        equal = DUCKDB.bits_equal(dtype, left, right).sql(dialect="duckdb")
        pairs = connection.execute(f"SELECT l.n, r.n, {equal} FROM pool AS l, pool AS r").fetchall()

    stored = bits(column.to_pylist())
    assert len(pairs) == len(values) ** 2
    assert [(a, b) for a, b, same in pairs if same is not (stored[a] == stored[b])] == []
