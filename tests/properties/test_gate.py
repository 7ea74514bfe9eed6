"""The gate against a checker that looks at one value at a time, for any schema, contract and source values."""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal as Number
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import (
    Decimal,
    Entity,
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
from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featurestore.dtypes import DType
from featurestore.errors import ContractViolation
from featurestore.ingest.gate import Gate
from featurestore.ingest.source_batch import SourceBatch
from tests.fix_properties import thoroughly
from tests.strategies import bits, floats, integers, texts

NONE, FAULT = None, object()
NOW_NS = 1_600_000_000_000_000_000
SMALL = st.integers(-3, 3)
#: Patterns whose meaning RE2 and Python share.
PATTERNS = (r"\d+", "a|bc", "[^|]*", "(?s:.*)", ".*", "", "[a-z]{1,3}", r"\s*")


@dataclass(frozen=True)
class Kind:
    """A declared type, the looser Arrow type its source writes, values of that, and bounds to declare."""

    dtype: DType
    written: pa.DataType
    values: st.SearchStrategy[Any]
    bounds: st.SearchStrategy[Any] | None = None


KINDS = [
    Kind(Int32, pa.int64(), st.one_of(SMALL, integers(32), integers(64)), SMALL),
    Kind(Int64, pa.uint64(), st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1)), SMALL),
    Kind(Int64, pa.int64(), st.one_of(SMALL, integers(64)), integers(64)),
    Kind(Float32, pa.float64(), st.one_of(SMALL.map(float), floats(32), floats(64)), st.sampled_from([0, 0.1, -1.5])),
    Kind(Float64, pa.float64(), st.one_of(SMALL.map(float), floats(64)), st.sampled_from([0, 0.1, -1.5])),
    Kind(Float64, pa.int64(), st.one_of(SMALL, integers(64)), SMALL),
    Kind(Float32, pa.int32(), st.one_of(SMALL, integers(32)), SMALL),
    Kind(
        Decimal(4, 1),
        pa.decimal128(8, 3),
        st.one_of(SMALL.map(Number), st.integers(-(10**8) + 1, 10**8 - 1).map(lambda number: Number(number) / 1000)),
        st.sampled_from([Number("0.1"), Number(-1), Number(2)]),
    ),
    Kind(String, pa.string(), st.one_of(texts(), st.sampled_from(["12", "12\n", "a\0", "١", "bc"]))),
    Kind(Timestamp, pa.timestamp("ns", "UTC"), st.one_of(SMALL, integers(64), SMALL.map(lambda count: count * 1000))),
    Kind(Timestamp, pa.timestamp("s", "UTC"), st.one_of(SMALL, integers(64), st.integers(-(10**12), 10**12))),
    Kind(List(Int32), pa.list_(pa.int64()), st.lists(st.one_of(st.none(), SMALL, integers(64)), max_size=3)),
    Kind(
        Vector(Float32, 2), pa.list_(pa.float64()), st.lists(st.one_of(st.none(), floats(32), floats(64)), max_size=3)
    ),
]


# ------------------------------------------------------------------ the checker, one value at a time


def canonical(value: Any, dtype: DType, written: pa.DataType) -> Any:
    """The value in the declared type; FAULT when it has none."""
    if value is None:
        return None
    match dtype:
        case List(element) | Vector(element):
            elements = [canonical(inner, element, written.value_type) for inner in value]
            if None in elements or FAULT in elements:
                return FAULT
            return FAULT if isinstance(dtype, Vector) and len(elements) != dtype.length else elements
        case Decimal(precision, scale):
            scaled = value.scaleb(scale)
            return value if scaled == int(scaled) and abs(scaled) < 10**precision else FAULT
    if dtype in (Int32, Int64):
        limit = 2**31 if dtype == Int32 else 2**63
        return value if -limit <= value < limit else FAULT
    if dtype in (Float32, Float64):
        return _exact_float(value, dtype)
    if dtype == String:
        return FAULT if "\0" in value else value
    assert dtype == Timestamp
    if written.unit == "ns" and value % 1000:
        return FAULT
    count = value // 1000 if written.unit == "ns" else value * 10**6
    return count if TIMESTAMP_MIN_US <= count <= TIMESTAMP_MAX_US else FAULT


def _exact_float(value: int | float, dtype: DType) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return value
    try:
        near = float(value) if dtype == Float64 else struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return FAULT
    return near if near == value else FAULT


def broken_rules(field: Field, value: Any) -> Iterator[str]:
    """The names of the rules that a canonical value breaks, in the order in which they are named."""
    if value is None:
        if not field.nullable:
            yield "not_null"
        return
    nan = isinstance(value, float) and math.isnan(value)
    for name, holds in (
        ("ge", lambda bound: value >= bound),
        ("gt", lambda bound: value > bound),
        ("le", lambda bound: value <= bound),
        ("lt", lambda bound: value < bound),
    ):
        bound = getattr(field, name)
        if bound is not None and not (field.allow_nan if nan else holds(bound)):
            yield name
    if field.allowed_values is not None and value not in field.allowed_values:
        yield "allowed_values"
    if field.pattern is not None and not re.fullmatch(field.pattern, value, re.ASCII):
        yield "pattern"
    if field.min_length is not None and len(value) < field.min_length:
        yield "min_length"
    if field.max_length is not None and len(value) > field.max_length:
        yield "max_length"


# ------------------------------------------------------------------ contracts and batches


@st.composite
def contracts(draw: st.DrawFn, kind: Kind, name: str) -> Field:
    rules: dict[str, Any] = {"nullable": draw(st.booleans())}
    if kind.bounds is not None:
        for bound in draw(st.sets(st.sampled_from(["ge", "gt", "le", "lt"]), max_size=2)):
            rules[bound] = draw(kind.bounds)
        rules["allow_nan"] = kind.dtype in (Float32, Float64) and draw(st.booleans())
    if kind.dtype in (String, Int32) and draw(st.booleans()):
        rules["allowed_values"] = draw(st.lists(SMALL if kind.dtype == Int32 else texts(), min_size=1, max_size=3))
    if kind.dtype == String and draw(st.booleans()):
        rules["pattern"] = draw(st.sampled_from(PATTERNS))
    if kind.dtype == String or isinstance(kind.dtype, List):
        for length in draw(st.sets(st.sampled_from(["min_length", "max_length"]))):
            rules[length] = draw(st.integers(0, 3))
    return Field(name=name, dtype=kind.dtype, **rules)


@dataclass(frozen=True)
class Case:
    """A view, how its source writes each field, and rows."""

    view: FeatureView
    kinds: tuple[Kind, ...]
    rows: tuple[tuple[Any, ...], ...]
    """(key, event in nanoseconds, fields...)"""

    def batch(self) -> SourceBatch:
        types = [pa.int64(), pa.timestamp("ns", "UTC"), *(kind.written for kind in self.kinds)]
        names = ["k", "at", *self.view.fields]
        columns = list(zip(*self.rows, strict=True)) or [()] * len(names)
        arrays = [_written(values, kind) for values, kind in zip(columns, types, strict=True)]
        return SourceBatch(
            rows=pa.table(dict(zip(names, arrays, strict=True))), source="s", row_numbers=np.arange(len(self.rows))
        )


def _written(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return pa.array(values, kind)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kinds = tuple(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)))
    schema = [draw(contracts(kind, f"f{place}")) for place, kind in enumerate(kinds)]
    keys = st.one_of(st.none(), SMALL, integers(64))
    events = st.one_of(st.none(), st.sampled_from([NOW_NS, NOW_NS + 1, NOW_NS + 1000]))
    row = st.tuples(keys, events, *(st.one_of(st.none(), kind.values) for kind in kinds))
    view = FeatureView(
        name="v",
        entities=[Entity(name="e", join_keys={"k": Int32})],
        schema=schema,
        source=FileSource(path="s", timestamp_field="at"),
        on_violation=draw(st.sampled_from(["quarantine", "warn", "reject"])),
    )
    return Case(view=view, kinds=kinds, rows=tuple(draw(st.lists(row, max_size=8))))


@dataclass
class Verdict:
    """What must become of a batch."""

    kept: list[list[Any]]
    aside: list[tuple[int, str, str]]
    counts: Counter[str]
    warned: int


def verdict(case: Case) -> Verdict:
    result = Verdict([], [], Counter(), 0)
    for number, (key, event, *values) in enumerate(case.rows):
        plain = [
            canonical(key, Int32, pa.int64()),
            canonical(event, Timestamp, pa.timestamp("ns", "UTC")),
            *(canonical(value, kind.dtype, kind.written) for value, kind in zip(values, case.kinds, strict=True)),
        ]
        breaches: list[tuple[str, str, bool]] = []
        for name, value in zip(("k", "at"), plain, strict=False):
            if value is FAULT or value is None:
                breaches.append((name, "dtype" if value is FAULT else "not_null", True))
        for field, value in zip(case.view.schema, plain[2:], strict=True):
            if value is FAULT:
                breaches.append((field.name, "dtype", True))
            else:
                breaches += [(field.name, rule, False) for rule in broken_rules(field, value)]
        result.counts.update(f"{column}:{rule}" for column, rule, _ in breaches)
        refusing = [b for b in breaches if b[2] or case.view.on_violation == "quarantine"]
        if refusing:
            result.aside.append((number, *refusing[0][:2]))
        else:
            result.kept.append(plain)
            result.warned += bool(breaches)
    return result


def assert_kept(rows: pa.Table, view: FeatureView, expected: list[list[Any]]) -> None:
    names = ["k", "event_timestamp", *view.fields]
    for place, name in enumerate(names):
        column = rows.column(name).combine_chunks()
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        assert bits(column) == bits(pa.array([row[place] for row in expected], column.type)), name


@given(case=cases())
@thoroughly
def test_every_row_is_kept_or_set_aside_as_the_checker_says(case: Case) -> None:
    expected = verdict(case)
    gate = Gate(case.view, "run", 0)
    if case.view.on_violation == "reject" and expected.counts:
        with pytest.raises(ContractViolation) as caught:
            gate.check(case.batch())
        assert caught.value.counts == dict(expected.counts)
        return

    passed = gate.check(case.batch())

    assert_kept(passed.rows, case.view, expected.kept)
    refused = [] if passed.refused is None else passed.refused.to_pylist()
    assert [(row["source_row"], row["field"], row["rule"]) for row in refused] == expected.aside
    assert passed.breaches == dict(expected.counts)
    assert passed.warned == expected.warned


def test_the_checker_knows_what_it_talks_about() -> None:
    """The oracle's own edges, so that gate and oracle are not wrong together."""
    assert canonical(0.1, Float32, pa.float64()) is FAULT
    assert canonical(2**53 + 1, Float64, pa.int64()) is FAULT
    assert canonical(Number("99.95"), Decimal(4, 1), pa.decimal128(8, 3)) is FAULT
    assert canonical(Number("1000"), Decimal(4, 1), pa.decimal128(8, 3)) is FAULT
    assert list(broken_rules(Field(name="x", dtype=Float32, le=0.1), float(np.float32(0.1)))) == []
    assert list(broken_rules(Field(name="x", dtype=Float32, le=0.1), math.nan)) == ["le"]
    assert list(broken_rules(Field(name="x", dtype=String, pattern=r"\d+"), "12\n")) == ["pattern"]
