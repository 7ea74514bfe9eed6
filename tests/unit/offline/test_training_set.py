"""Training sets: exactly the spine's rows and columns, in its order, beside what each view knew of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from featurestore import Bool, FeatureService, Field, Float32, Float64, Int32, Int64, String, Vector
from featurestore.digest import content_digest
from featurestore.errors import FeatureStoreError, InputError, SourceError
from featurestore.matrix import MatrixPlan, to_matrix
from featurestore.offline.base import OfflineStore
from tests.fix_offline import (
    ALL_TYPES,
    ENGINES,
    KEYS,
    VALUES,
    append,
    ask,
    assert_same_bits,
    bits,
    make_view,
    opened_engine,
    select,
    times,
    training_set,
    value_columns,
)
from tests.oracle import Row
from tests.unit.test_digest import FOREIGN

LEG = make_view({"carrier": String}, {"delay": Int64, "seats": Int32}, ttl_us=5)
WEATHER = make_view({"origin": String, "hour": Int32}, {"temp": Float64, "sky": String}, name="weather")
VIEWS = [LEG, WEATHER]
AS_OF = times([10, 11, 10, 12, 13, 9])


@pytest.fixture(params=ENGINES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def store(empty: OfflineStore) -> OfflineStore:
    for view in VIEWS:
        empty.ensure_history(view)
    append(empty, LEG, [row(("AA",), 5, (7, None)), row(("AA",), 6, (8, 9), known=11), row(("UA",), 10, (None, None))])
    append(empty, WEATHER, [row(("JFK", 1), 4, (20.5, "clear")), row(("JFK", 2), 4, (-0.0, None))])
    return empty


def row(keys: tuple[Any, ...], event: int, value: tuple[Any, ...], *, known: int | None = None) -> Row:
    return Row(keys=keys, event=event, created=event if known is None else known, sequence=event, value=value)


def spine(**more: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "carrier": ["AA", "AA", "AA", "AA", None, "UA"],
        "origin": ["JFK", "JFK", "JFK", None, "JFK", "LGA"],
        "hour": pa.array([1, 2, 1, 1, 2, 1], pa.int32()),
        "as_of": AS_OF,
    }
    return pa.table(columns | more)


# ------------------------------------------------------------------ rows and columns


def test_views_of_different_entities_answer_side_by_side_row_by_row(store: OfflineStore) -> None:
    got = ask(store, select(*VIEWS), VIEWS, spine(), with_status=True)

    assert got.column_names == [
        *("carrier", "origin", "hour", "as_of", "delay", "seats", "temp", "sky"),
        *("leg__status", "leg__age_us", "weather__status", "weather__age_us"),
    ]
    assert got.select(range(4, 12)).to_pylist() == [
        answered(7, None, 20.5, "clear", "PRESENT", 5, "PRESENT", 6),
        answered(8, 9, -0.0, None, "PRESENT", 5, "PRESENT", 7),
        answered(7, None, 20.5, "clear", "PRESENT", 5, "PRESENT", 6),
        answered(None, None, None, None, "EXPIRED", 6, "NOT_FOUND", None),
        answered(None, None, -0.0, None, "NOT_FOUND", None, "PRESENT", 9),
        answered(None, None, None, None, "NOT_FOUND", None, "NOT_FOUND", None),
    ]


def answered(*values: Any) -> dict[str, Any]:
    names = ("delay", "seats", "temp", "sky", "leg__status", "leg__age_us", "weather__status", "weather__age_us")
    return dict(zip(names, values, strict=True))


def test_a_row_of_nulls_is_found(store: OfflineStore) -> None:
    asked = pa.table({"carrier": ["UA"], "as_of": times([10])})

    got = ask(store, select(LEG), [LEG], asked, with_status=True)

    assert got.column("leg__status").to_pylist() == ["NULL"]


def test_null_means_that_the_fields_asked_for_are_null(store: OfflineStore) -> None:
    asked = pa.table({"carrier": ["AA"], "as_of": times([10])})

    got = ask(store, select(LEG["seats"]), [LEG], asked, with_status=True)

    assert got.column("leg__status").to_pylist() == ["NULL"]


def test_every_spine_column_comes_back_as_it_was(store: OfflineStore) -> None:
    asked = pa.table({"as_of": times([10] * 4), "carrier": ["AA", "AA", None, "zz"], **FOREIGN})

    got = ask(store, select(LEG), [LEG], asked)

    assert got.select(asked.column_names).schema.equals(asked.schema)
    for name in asked.column_names:
        assert bits(got.column(name).to_pylist()) == bits(asked.column(name).to_pylist()), name
    assert got.column("delay").to_pylist() == [7, 7, None, None]


@pytest.mark.parametrize("rows", [0, 1])
def test_small_spines_have_all_columns_and_types(store: OfflineStore, rows: int) -> None:
    got = ask(store, select(*VIEWS), VIEWS, spine().slice(0, rows), with_status=True)

    assert got.num_rows == rows
    assert got.schema.equals(ask(store, select(*VIEWS), VIEWS, spine(), with_status=True).schema)


def test_a_view_without_history_rows_answers_nothing(empty: OfflineStore) -> None:
    view = make_view({"carrier": String}, ALL_TYPES)
    empty.ensure_history(view)

    got = ask(
        empty, select(view), [view], pa.table({"carrier": ["AA", None], "as_of": times([1, 2])}), with_status=True
    )

    assert got.column("leg__status").to_pylist() == ["NOT_FOUND"] * 2
    assert [got.column(name).null_count for name in ALL_TYPES] == [2] * len(ALL_TYPES)


def test_chunked_and_dictionary_spines_ask_alike(store: OfflineStore) -> None:
    plain = spine()
    dictionary = plain.set_column(0, "carrier", plain.column("carrier").dictionary_encode())
    chunked = pa.concat_tables([dictionary.slice(0, 1), dictionary.slice(1, 4), plain.slice(5).cast(dictionary.schema)])

    got = ask(store, select(*VIEWS), VIEWS, chunked)

    assert content_digest(got) == content_digest(ask(store, select(*VIEWS), VIEWS, plain))


def test_integer_keys_of_any_width_ask_alike_and_beyond_a_view_find_nothing(store: OfflineStore) -> None:
    narrow = make_view({"n": Int32}, {"a": Int64}, name="narrow")
    wide = make_view({"n": Int64}, {"b": Int64}, name="wide")
    for view in (narrow, wide):
        store.ensure_history(view)
        append(store, view, [row((5,), 1, (50,))])
    append(store, wide, [row((2**40,), 1, (60,))])

    for kind in (pa.int64(), pa.uint64()):
        asked = pa.table({"n": pa.array([5, 2**40, None], kind), "as_of": times([1, 1, 1])})
        got = ask(store, select(narrow, wide), [narrow, wide], asked, with_status=True)
        assert got.column("a").to_pylist() == [50, None, None]
        assert got.column("b").to_pylist() == [50, 60, None]
        assert got.column("narrow__status").to_pylist() == ["PRESENT", "NOT_FOUND", "NOT_FOUND"]


# ------------------------------------------------------------------ names


def test_full_feature_names_carry_the_view(store: OfflineStore) -> None:
    got = ask(store, select(*VIEWS), VIEWS, spine(), full_feature_names=True)

    assert got.column_names[4:] == ["leg__delay", "leg__seats", "weather__temp", "weather__sky"]


def test_aliases_name_columns_and_one_field_may_come_twice(store: OfflineStore) -> None:
    service = select(LEG["delay"].alias(delay="first"), LEG["delay"])

    got = ask(store, service, [LEG], spine())

    assert got.column("first").equals(got.column("delay"))


def test_a_name_that_the_spine_has_too_is_refused_with_the_way_out(store: OfflineStore) -> None:
    with pytest.raises(InputError, match=r"'delay'.*rename it in the spine.*alias.*full feature names"):
        ask(store, select(LEG), [LEG], spine(delay=[1] * 6))
    ask(store, select(LEG), [LEG], spine(delay=[1] * 6), full_feature_names=True)


def test_status_columns_of_two_versions_of_a_view_stay_apart(store: OfflineStore) -> None:
    second = make_view({"carrier": String}, {"taxi": Int64}, version=2)
    store.ensure_history(second)
    append(store, second, [row(("UA",), 1, (3,))])

    got = ask(store, select(LEG["delay"], second), [LEG, second], spine(), with_status=True)

    statuses = [name for name in got.column_names if name.endswith("__status")]
    assert len(statuses) == 2
    assert [got.column(name)[5].as_py() for name in statuses] == ["NOT_FOUND", "PRESENT"]


# ------------------------------------------------------------------ request fields


def with_request(*fields: Field) -> FeatureService:
    return select(LEG, request_fields=fields)


def test_request_fields_pass_the_gate_and_take_their_declared_type(store: OfflineStore) -> None:
    service = with_request(Field(name="distance", dtype=Float32, ge=0), Field(name="stops", dtype=Int32))

    got = ask(store, service, [LEG], spine(distance=[1.5, None, 0.0, 2.0, 3.0, 4.0], stops=[1, 2, 3, 4, 5, None]))

    assert (got.schema.field("distance").type, got.schema.field("stops").type) == (pa.float32(), pa.int32())
    assert got.column("distance").to_pylist() == [1.5, None, 0.0, 2.0, 3.0, 4.0]
    assert got.column("stops").to_pylist() == [1, 2, 3, 4, 5, None]


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        (Field(name="distance", dtype=Float64, ge=0), [1.0, -1.0], r"'distance', row 1: distance is below"),
        (Field(name="distance", dtype=Float64, nullable=False), [None, 1.0], r"'distance', row 0: distance is null"),
        (Field(name="distance", dtype=Int32), [1, 2**31], r"'distance', row 1: 2147483648 has no exact int32"),
        (Field(name="distance", dtype=Int64), [1.0, 2.0], r"'distance' holds double, declared is int64"),
    ],
)
def test_a_request_field_that_breaks_its_contract_is_refused_with_its_row(
    store: OfflineStore, field: Field, values: list[Any], says: str
) -> None:
    asked = pa.table({"carrier": ["AA", "AA"], "as_of": times([1, 1]), "distance": values})

    with pytest.raises(InputError, match=says):
        ask(store, with_request(field), [LEG], asked)


def test_a_missing_request_field_is_named(store: OfflineStore) -> None:
    with pytest.raises(InputError, match="lacks the request field 'distance' of service 'model'"):
        ask(store, with_request(Field(name="distance", dtype=Int64)), [LEG], spine())


# ------------------------------------------------------------------ spines of every kind


def written(folder: Path, table: pa.Table) -> dict[str, object]:
    """The same spine as every kind of source."""
    import pandas as pd
    import polars as pl

    pq.write_table(table, folder / "spine.parquet", row_group_size=2)
    pa_csv.write_csv(table, folder / "spine.csv")
    with pa.OSFile(str(folder / "spine.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pa.OSFile(str(folder / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    frame.index = range(100, 100 + len(frame))
    return {
        "table": table,
        "batch": table.combine_chunks().to_batches()[0],
        "reader": table.to_reader(max_chunksize=2),
        "parquet": folder / "spine.parquet",
        "parquet by name": str(folder / "spine.parquet"),
        "arrow": folder / "spine.arrow",
        "arrow stream": folder / "stream.arrow",
        "csv": folder / "spine.csv",
        "pandas": frame,
        "plain pandas": table.to_pandas(),
        "polars": pl.from_arrow(table),
    }


def test_every_kind_of_spine_gives_the_same_digest(store: OfflineStore, tmp_path: Path) -> None:
    table = pa.table(
        {
            "carrier": ["AA", "AA", None, "UA", ""],
            "as_of": times([10, 11, 12, 13, 14]),
            "label": [True, False, True, False, True],
            "amount": [0.1, -0.0, 1e300, 5.5, 2.5],
            "id": [2**53 + 1, -1, 0, 1, 2**63 - 1],
        }
    )
    made = {kind: training_set(store, select(LEG), [LEG], source) for kind, source in written(tmp_path, table).items()}

    assert {kind: content_digest(one.spine.table) for kind, one in made.items()} == dict.fromkeys(
        made, content_digest(table)
    )
    assert len({one.digest for one in made.values()}) == 1


def test_as_of_wins_over_event_timestamp_which_stands_in_for_it(store: OfflineStore) -> None:
    early, late = times([5]), times([11])
    both = pa.table({"carrier": ["AA"], "event_timestamp": early, "as_of": late})
    one = pa.table({"carrier": ["AA"], "event_timestamp": early})

    assert ask(store, select(LEG), [LEG], both).column("delay").to_pylist() == [8]
    assert ask(store, select(LEG), [LEG], one).column("delay").to_pylist() == [7]


@pytest.mark.parametrize(("unit", "zone"), [("us", "America/New_York"), ("ns", "+02:00"), ("s", "UTC")])
def test_as_of_in_any_zone_and_unit_is_the_same_instant(store: OfflineStore, unit: str, zone: str) -> None:
    kind = pa.timestamp(unit, zone)
    seconds = pa.array([0, 1], pa.int64()).cast(pa.timestamp("s", "UTC")).cast(kind)

    got = ask(store, select(LEG), [LEG], pa.table({"carrier": ["AA", "AA"], "as_of": seconds}), with_status=True)

    assert got.column("leg__status").to_pylist() == ["NOT_FOUND", "EXPIRED"]
    assert got.schema.field("as_of").type == kind


# ------------------------------------------------------------------ spines that cannot ask

NAIVE = pa.array([1, 2], pa.timestamp("us"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"carrier": ["AA", "AA"], "as_of": NAIVE}, r"'as_of' holds timestamps without a time zone"),
        ({"carrier": ["AA", "AA"], "event_timestamp": NAIVE}, r"'event_timestamp' holds timestamps without"),
        (
            {"carrier": ["AA", "AA"], "at": times([1, 2])},
            r"no column as_of \(nor event_timestamp\).*it has: carrier, at",
        ),
        ({"carier": ["AA", "AA"], "as_of": times([1, 2])}, r"lacks the join key 'carrier'; did you mean 'carier'"),
        ({"carrier": ["AA", "AA"], "as_of": times([1, None])}, r"'as_of', row 1 is null; every row asks at a time"),
        ({"carrier": ["AA", "AA"], "as_of": [1, 2]}, r"'as_of' holds int64, declared is timestamp"),
        ({"carrier": [1, 2], "as_of": times([1, 2])}, r"'carrier' holds int64, declared is string"),
        ({"carrier": ["AA", "A\0"], "as_of": times([1, 2])}, r"'carrier', row 1: .* has no exact string value"),
        (
            {"carrier": ["A", "B"], "as_of": pa.array([1, 1001], pa.timestamp("ns", "UTC"))},
            r"'as_of', row 0: .*has no exact timestamp",
        ),
    ],
)
def test_a_spine_that_cannot_ask_is_refused_with_its_column(
    store: OfflineStore, columns: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        ask(store, select(LEG), [LEG], pa.table(columns))


def test_float_keys_are_refused_with_what_pandas_did(store: OfflineStore) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"hour": [1, None], "origin": ["JFK", "JFK"], "as_of": pd.to_datetime([0, 1], unit="s", utc=True)}
    )

    with pytest.raises(InputError, match=r"'hour' holds double, declared is int32.*pandas.*Int64"):
        ask(store, select(WEATHER), [WEATHER], frame)


def test_a_column_that_comes_twice_is_refused(store: OfflineStore) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), times([1])], names=["carrier", "carrier", "as_of"])

    with pytest.raises(InputError, match="several columns named carrier"):
        ask(store, select(LEG), [LEG], twice)


def test_something_else_is_no_spine(store: OfflineStore, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="a spine is a path, an Arrow table, a pandas or a polars frame; this is a list"
    ):
        ask(store, select(LEG), [LEG], [("AA", 1)])
    with pytest.raises(SourceError, match=r"there is no file .*none\.parquet"):
        ask(store, select(LEG), [LEG], tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(FeatureStoreError, match=r"bad\.parquet cannot be read"):
        ask(store, select(LEG), [LEG], tmp_path / "bad.parquet")


# ------------------------------------------------------------------ the matrix


def test_the_matrix_is_that_of_the_same_columns_and_fills_what_is_missing(store: OfflineStore) -> None:
    fields = {"on": Bool, "n": Int64, "x": Float64, "v": Vector(Float32, 2)}
    view = make_view({"carrier": String}, fields, name="numbers")
    store.ensure_history(view)
    append(store, view, [row(("AA",), 1, (True, 2**53 + 1, 0.1, [1.0, -0.0])), row(("UA",), 1, (None,) * 4)])
    service = FeatureService(
        name="model",
        features=[view.select_all().fill(n=-1.0, v=7.0)],
        request_fields=[Field(name="distance", dtype=Int32)],
    )
    asked = pa.table({"carrier": ["AA", "UA", "zz"], "as_of": times([5, 5, 5]), "distance": [3, None, 4]})

    made = training_set(store, service, [view], asked)

    nan = float("nan")
    expected = [[1, 2**53, np.float32(0.1), 1, -0.0, 3], [nan, -1, nan, 7, 7, nan], [nan, -1, nan, 7, 7, 4]]
    assert made.to_matrix().tobytes() == np.array(expected, dtype=np.float32).tobytes()
    plan = MatrixPlan.compile([(output.name, output.field, output.fill) for output in made.outputs])
    columns = [made.table.column(output.name).combine_chunks() for output in made.outputs]
    assert made.to_matrix().tobytes() == to_matrix(plan, columns).tobytes()


def test_frames_keep_integers_with_nulls_exact(store: OfflineStore) -> None:
    made = training_set(store, select(LEG), [LEG], spine())

    assert content_digest(pa.Table.from_pandas(made.to_pandas(), preserve_index=False)) == made.digest
    assert content_digest(made.to_polars().to_arrow()) == made.digest
    assert made.to_arrow() is made.table


def test_all_types_come_through_the_join_to_the_bit(store: OfflineStore) -> None:
    view = make_view("mixed", name="everything")
    keys = KEYS["mixed"][1]
    store.ensure_history(view)
    append(store, view, [row(key, 1, value) for key, value in zip(keys * 3, VALUES, strict=False)][: len(keys)])
    columns = {name: [key[place] for key in keys] for place, name in enumerate(view.join_keys)}
    types = dict(zip(view.join_keys, (pa.int32(), pa.binary(), pa.date32(), pa.bool_()), strict=True))
    asked = {name: pa.array(values, types[name]) for name, values in columns.items()}

    got = ask(store, select(view), [view], pa.table({**asked, "as_of": times([1] * len(keys))}))

    expected = pa.table(value_columns(view, list(VALUES[: len(keys)])))
    assert_same_bits(got.select(list(ALL_TYPES)), expected)
