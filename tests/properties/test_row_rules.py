"""The rules of whole rows, and who decides what becomes of a breach, against a checker of one row at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Condition, Entity, FeatureView, Field, FileSource, Float32, Int64, Reference, String
from featurestore.errors import ContractViolation
from featurestore.ingest.gate import Gate
from featurestore.ingest.source_batch import SourceBatch

NOW_US = 1_000
TENTH = float(np.float32(0.1))
GREATEST = 2**63 - 1
KNOWN = {"a", "١"}

Row = dict[str, Any]
Judge = Callable[[Row], bool | None]


def given_all(*values: Any) -> bool:
    return all(value is not None for value in values)


def nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


#: SQL, and what it says of a row; None where it is null.
CONDITIONS: dict[str, Judge] = {
    "n + k > 2": lambda r: r["n"] + r["k"] > 2 if given_all(r["n"], r["k"]) else None,
    "n * n * 4 >= 0": lambda r: None if r["n"] is None or abs(r["n"] * r["n"] * 4) >= 2**127 else True,
    "n / k >= 1": lambda r: r["n"] / r["k"] >= 1 if given_all(r["n"], r["k"]) and r["k"] else None,
    "n % k = 0": lambda r: (
        math.fmod(r["n"] % abs(r["k"]), 1) == 0 and r["n"] % abs(r["k"]) == 0
        if given_all(r["n"], r["k"]) and r["k"]
        else None
    ),
    "x <= 0.1": lambda r: nan_last(r["x"]) <= TENTH if r["x"] is not None else None,
    "NOT isnan(x) OR n IS NULL": lambda r: (
        (r["x"] is not None and not math.isnan(r["x"]) or r["n"] is None)
        if r["x"] is not None or r["n"] is None
        else None
    ),
    "coalesce(length(s), 0) <= 1": lambda r: len(r["s"] or "") <= 1,
    "s IN ('a', 'b\n')": lambda r: r["s"] in ("a", "b\n") if r["s"] is not None else None,
    "CASE WHEN k > 0 THEN s = 'a' ELSE n BETWEEN -1 AND 1 END": lambda r: (
        (r["s"] == "a" if r["s"] is not None else None)
        if r["k"] > 0
        else (-1 <= r["n"] <= 1 if r["n"] is not None else None)
    ),
    "event_timestamp - created_timestamp < INTERVAL 1 SECOND": lambda r: True,
    "s IS DISTINCT FROM upper(s)": lambda r: r["s"] != (r["s"].upper() if r["s"] is not None else None),
}
POLICIES = ("reject", "quarantine", "warn")
policies = st.none() | st.sampled_from(POLICIES)


@st.composite
def views(draw: st.DrawFn) -> FeatureView:
    chosen = draw(st.lists(st.sampled_from(sorted(CONDITIONS)), unique=True, max_size=3))
    return FeatureView(
        name="v",
        entities=[Entity(name="e", join_keys={"k": Int64})],
        schema=[
            Field(name="n", dtype=Int64, ge=-5, on_violation=draw(policies)),
            Field(name="x", dtype=Float32, le=0.1, allow_nan=True, on_violation=draw(policies)),
            Field(name="s", dtype=String, pattern=r"\w*", nullable=False, on_violation=draw(policies)),
        ],
        source=FileSource(path="s", timestamp_field="at"),
        on_violation=draw(st.sampled_from(POLICIES)),
        conditions=[Condition(name=f"c{n}", sql=sql, on_violation=draw(policies)) for n, sql in enumerate(chosen)],
        references=[Reference(view="o@1", columns={"code": "s"}, on_violation=draw(policies))]
        if draw(st.booleans())
        else [],
        unique=draw(st.booleans()),
        future_tolerance=draw(st.none() | st.sampled_from([timedelta(0), timedelta(microseconds=5)])),
    )


rows = st.lists(
    st.fixed_dictionaries(
        {
            "k": st.none() | st.integers(-2, 2),
            "at": st.sampled_from([NOW_US, NOW_US + 1, NOW_US + 5, NOW_US + 6]),
            "n": st.none() | st.integers(-7, 3) | st.sampled_from([GREATEST, -(2**63)]),
            "x": st.none() | st.sampled_from([0.0, -0.0, math.nan, TENTH, 0.25, math.inf, 0.1]),
            "s": st.none() | st.sampled_from(["a", "b\n", "١", "bc", ""]),
        }
    ),
    max_size=7,
)


@dataclass(frozen=True)
class Found:
    """A breach of one row: "column:rule", its policy, whether the row cannot be stored."""

    rule: str
    policy: str
    structural: bool = False

    @property
    def refuses(self) -> bool:
        return self.structural or self.policy != "warn"


def breaches(view: FeatureView, batch: Sequence[Row]) -> list[list[Found]]:
    """What each row breaks, in the order in which breaches are named."""
    return [_of_row(view, row, batch) for row in batch]


def _of_row(view: FeatureView, row: Row, batch: Sequence[Row]) -> list[Found]:
    own = {field.name: field.on_violation or view.on_violation for field in view.schema}
    inexact = row["x"] == 0.1
    found = [Found("k:not_null", view.on_violation, True)] if row["k"] is None else []
    found += [Found("n:ge", own["n"])] if row["n"] is not None and row["n"] < -5 else []
    if inexact:
        found.append(Found("x:dtype", own["x"], True))
    elif row["x"] is not None and row["x"] > TENTH:
        found.append(Found("x:le", own["x"]))
    if row["s"] is None:
        found.append(Found("s:not_null", own["s"]))
    elif not all(sign.isascii() and (sign.isalnum() or sign == "_") for sign in row["s"]):
        found.append(Found("s:pattern", own["s"]))
    if inexact or row["k"] is None:
        return found
    return found + _of_whole_row(view, row, batch)


def _of_whole_row(view: FeatureView, row: Row, batch: Sequence[Row]) -> list[Found]:
    found = []
    if view.future_tolerance is not None and row["at"] > NOW_US + view.future_tolerance // timedelta(microseconds=1):
        found.append(Found("at:future", view.on_violation))
    sound = [other for other in batch if other["k"] is not None and other["x"] != 0.1]
    twins = [other for other in sound if (other["k"], other["at"]) == (row["k"], row["at"])]
    if view.unique and len({repr((t["n"], t["x"], t["s"])) for t in twins}) > 1:
        found.append(Found("k:unique", view.on_violation))
    for rule in view.references:
        if row["s"] is not None and row["s"] not in KNOWN:
            found.append(Found("s:reference", rule.on_violation or view.on_violation))
    for condition in view.conditions:
        if CONDITIONS[condition.sql](row) is False:
            found.append(Found(f"{condition.name}:condition", condition.on_violation or view.on_violation))
    return found


def batch_of(batch: Sequence[Row]) -> SourceBatch:
    columns = {name: [row[name] for row in batch] for name in ("k", "at", "n", "x", "s")}
    types = {"k": pa.int64(), "n": pa.int64(), "x": pa.float64(), "s": pa.string()}
    arrays = {name: pa.array(columns[name], kind) for name, kind in types.items()}
    arrays["at"] = pa.array(columns["at"], pa.int64()).cast(pa.timestamp("us", "UTC"))
    return SourceBatch(rows=pa.table(arrays), source="s", row_numbers=np.arange(len(batch)))


def gate_of(view: FeatureView) -> Gate:
    def known(ref: str, keys: pa.Table) -> np.ndarray[Any, Any]:
        assert (ref, keys.column_names) == ("o@1", ["code"])
        assert keys.column("code").null_count == 0
        return np.array([code in KNOWN for code in keys.column("code").to_pylist()], dtype=bool)

    return Gate(view, "run", NOW_US, known)


def set_aside(refused: pa.Table | None) -> list[tuple[int, str]]:
    kept = [] if refused is None else refused.to_pylist()
    return [(row["source_row"], f"{row['field']}:{row['rule']}") for row in kept]


@given(view=views(), batch=rows)
@settings(max_examples=30, deadline=None)
def test_a_batch_is_judged_as_the_checker_says(view: FeatureView, batch: list[Row]) -> None:
    found = breaches(view, batch)
    rejecting = Counter(one.rule for row in found for one in row if one.policy == "reject")
    if rejecting:
        with pytest.raises(ContractViolation) as caught:
            gate_of(view).check(batch_of(batch))
        assert caught.value.counts == dict(rejecting)
        return
    passed = gate_of(view).check(batch_of(batch))
    refused = [next((one for one in row if one.refuses), None) for row in found]
    assert passed.breaches == dict(Counter(one.rule for row in found for one in row))
    assert set_aside(passed.refused) == [(place, one.rule) for place, one in enumerate(refused) if one is not None]
    assert passed.rows.num_rows == refused.count(None)
    assert passed.warned == sum(bool(row) and first is None for row, first in zip(found, refused, strict=True))


@given(view=views(), batch=rows)
@settings(max_examples=30, deadline=None)
def test_pushed_rows_stand_for_themselves_as_the_checker_says(view: FeatureView, batch: list[Row]) -> None:
    found = breaches(view, batch)
    result = gate_of(view).sort_out(batch_of(batch))
    refusing = [[one for one in row if one.refuses] for row in found]
    assert result.places.tolist() == [place for place, row in enumerate(refusing) if not row]
    told = zip(result.rejections.fields, result.rejections.rules, strict=True)
    assert [":".join(pair) for pair in told] == [row[0].rule for row in refusing if row]
    aside = [
        (place, row[0].rule)
        for place, row in enumerate(refusing)
        if row and not any(one.policy == "reject" for one in row)
    ]
    assert set_aside(result.refused) == aside


def test_the_values_of_a_breach_across_columns_are_shown_together() -> None:
    view = FeatureView(
        name="v",
        entities=[Entity(name="e", join_keys={"k": Int64})],
        schema=[Field(name="n", dtype=Int64)],
        source=FileSource(path="s", timestamp_field="at"),
        conditions=[Condition(name="c", sql="n > k AND event_timestamp IS NOT NULL")],
    )
    (shown,) = gate_of(view).sort_out(batch_of([{"k": 2, "at": 0, "n": 1, "x": None, "s": None}])).rejections.values
    assert shown == '{"n": 1, "k": 2, "at": "1970-01-01 00:00:00.000000Z"}'
    # The order of rows cannot show: an engine may split a batch, and the answer is put together in order.
    many = [{"k": n, "at": n, "n": n + n % 2, "x": None, "s": None} for n in range(5_000)]
    refused = gate_of(replace(view, on_violation="quarantine")).check(batch_of(many)).refused
    assert refused is not None
    assert refused.column("source_row").to_pylist() == list(range(0, 5_000, 2))
