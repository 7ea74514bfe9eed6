"""Sequence order: the same rows get the same numbers, whatever file or order they came in."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import (
    Bool,
    Bytes,
    Date,
    Entity,
    FeatureView,
    Field,
    FileSource,
    Float64,
    Int32,
    Int64,
    List,
    String,
)
from featurestore.arrow_types import TIMESTAMP, arrow_type
from featurestore.ingest.sequence import Sequenced, in_sequence
from tests.fix_properties import thoroughly
from tests.strategies import floats

T = datetime(2020, 1, 1, tzinfo=UTC)
VIEW = FeatureView(
    name="v",
    entities=[Entity(name="e", join_keys={"k": String, "n": Int32})],
    schema=[Field(name="x", dtype=Float64), Field(name="s", dtype=String), Field(name="l", dtype=List(Int64))],
    source=FileSource(path="s", timestamp_field="at"),
)
Row = tuple[Any, ...]
NAMES = ["k", "n", "event_timestamp", "created_timestamp", "x", "s", "l"]
TYPES = [pa.string(), pa.int32(), TIMESTAMP, TIMESTAMP, pa.float64(), pa.string(), pa.list_(pa.int64())]


def table(rows: Sequence[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(NAMES)
    return pa.table({name: pa.array(c, kind) for name, c, kind in zip(NAMES, columns, TYPES, strict=True)})


def numbered(sequenced: Sequenced) -> list[tuple[int, Any]]:
    """(sequence, row) with floats as bits, so that NaN and -0.0 compare."""
    rows = zip(*sequenced.rows.to_pydict().values(), strict=True)
    exact = [tuple(struct.pack(">d", value) if isinstance(value, float) else value for value in row) for row in rows]
    return list(zip(sequenced.offsets.tolist(), exact, strict=True))


def row(
    key: str = "a", number: int = 1, *, event: int = 0, created: int = 0, x: Any = 0.0, s: Any = "", ints: Any = ()
) -> Row:
    return (key, number, T + timedelta(seconds=event), T + timedelta(seconds=created), x, s, ints)


def test_rows_are_numbered_by_keys_then_event_then_created() -> None:
    ordered = [
        row("", 9),
        row("a", -1, event=9),
        row("a", 0, event=1, created=5),
        row("a", 0, event=1, created=6),
        row("a", 0, event=2, created=0),
        row("b", -9),
        row("é", -9),
    ]
    sequenced = in_sequence(VIEW, table(list(reversed(ordered))))
    assert sequenced.rows.equals(table(ordered))
    assert sequenced.offsets.tolist() == list(range(len(ordered)))
    assert (sequenced.repeated, sequenced.ambiguous) == (0, 0)


def test_identical_twins_are_dropped_and_counted() -> None:
    sequenced = in_sequence(VIEW, table([row(x=1.0), row("b"), row(x=1.0), row(x=1.0)]))
    assert sequenced.rows.equals(table([row(x=1.0), row("b")]))
    assert (sequenced.repeated, sequenced.ambiguous) == (2, 0)
    assert sequenced.offsets.tolist() == [0, 3]


def test_differing_twins_are_all_kept_in_the_order_of_their_value_bytes() -> None:
    twins = [row(x=1.0), row(x=2.0), row(x=None), row(x=1.0, s="b"), row(x=1.0, s=None)]
    orders = {repr(numbered(in_sequence(VIEW, table(random.Random(seed).sample(twins, 5))))) for seed in range(20)}
    assert len(orders) == 1
    sequenced = in_sequence(VIEW, table(twins))
    assert (sequenced.rows.num_rows, sequenced.repeated, sequenced.ambiguous) == (5, 0, 4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x": None}, {"x": 0.0}),
        ({"x": 0.0}, {"x": -0.0}),
        ({"x": float("nan")}, {"x": None}),
        ({"s": None}, {"s": ""}),
        ({"ints": None}, {"ints": []}),
        ({"ints": [0]}, {"ints": []}),
        ({"s": "a", "ints": [1]}, {"s": "a", "ints": [1, 1]}),
    ],
)
def test_values_that_differ_in_any_bit_are_no_repetition(first: dict[str, Any], second: dict[str, Any]) -> None:
    sequenced = in_sequence(VIEW, table([row(**first), row(**second)]))
    assert (sequenced.rows.num_rows, sequenced.repeated, sequenced.ambiguous) == (2, 0, 1)


def test_equal_nans_are_a_repetition() -> None:
    assert in_sequence(VIEW, table([row(x=float("nan"))] * 2)).repeated == 1


def test_different_keys_that_read_alike_are_different_rows() -> None:
    sequenced = in_sequence(VIEW, table([row("1", 11), row("11", 1), row("111", 1)]))
    assert (sequenced.rows.num_rows, sequenced.repeated, sequenced.ambiguous) == (3, 0, 0)


def test_no_rows_stay_no_rows() -> None:
    sequenced = in_sequence(VIEW, table([]))
    assert sequenced.rows.num_rows == 0
    assert sequenced.offsets.tolist() == []


@pytest.mark.parametrize(
    ("dtype", "ordered"),
    [
        (Bool, [False, True]),
        (Int64, [-(2**63), -1, 0, 2**53, 2**53 + 1]),
        (Bytes, [b"", b"\0", b"a", b"\xff"]),
        (Date, [date(1, 1, 1), date(1970, 1, 1), date(9999, 12, 31)]),
        (String, ["", "A", "a", "é", "🦀"]),
    ],
    ids=str,
)
def test_every_type_of_join_key_orders_rows(dtype: Any, ordered: list[Any]) -> None:
    view = FeatureView(
        name="v",
        entities=[Entity(name="e", join_keys={"k": dtype})],
        schema=[Field(name="x", dtype=Int64)],
        source=FileSource(path="s", timestamp_field="at"),
    )
    keys = pa.array([*reversed(ordered), ordered[0]], arrow_type(dtype))
    times = pa.array([T] * len(keys), TIMESTAMP)
    rows = pa.table({"k": keys, "event_timestamp": times, "created_timestamp": times, "x": pa.array([1] * len(keys))})
    sequenced = in_sequence(view, rows)
    assert sequenced.rows.column("k").to_pylist() == ordered
    assert sequenced.repeated == 1


FEW = st.tuples(
    st.sampled_from(["", "a", "b"]),
    st.integers(0, 1),
    st.sampled_from([T, T + timedelta(microseconds=1)]),
    st.sampled_from([T, T + timedelta(microseconds=1)]),
    st.one_of(st.none(), floats(64)),
    st.sampled_from([None, "", "a", "ab"]),
    st.sampled_from([None, [], [0], [0, 1]]),
)


@given(rows=st.lists(FEW, max_size=12), random_=st.randoms(use_true_random=False))
@thoroughly
def test_a_shuffle_changes_no_number(rows: list[Row], random_: random.Random) -> None:
    shuffled = random_.sample(rows, len(rows))

    first, second = in_sequence(VIEW, table(rows)), in_sequence(VIEW, table(shuffled))

    assert numbered(first) == numbered(second)
    assert (first.repeated, first.ambiguous) == (second.repeated, second.ambiguous)
    assert first.rows.num_rows + first.repeated == len(rows)
    assert len({repr(entry) for _, entry in numbered(first)}) == first.rows.num_rows
    assert first.offsets.tolist() == sorted(set(first.offsets.tolist()))
    identities = [entry[:4] for _, entry in numbered(first)]
    assert identities == sorted(identities)
    assert first.ambiguous == len(identities) - len(set(identities))
