"""Great Expectations itself, run by the exported suite over rows, breaks on the very rows that the gate marks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    Bool,
    Bytes,
    Date,
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
from featurestore.arrow_types import arrow_type
from featurestore.dtypes import DType
from featurestore.ingest.gate import Gate
from featurestore.ingest.source_batch import SourceBatch
from featurestore.offline.frames import to_pandas
from featurestore.quality.forms import EXACT_INT_MAX, FORMS, column_rules
from featurestore.quality.suite import judge, suite_document
from featurestore.quality.tally import tally
from tests.fix_properties import thoroughly
from tests.strategies import AWKWARD_TEXTS, values

ROOT = Path(__file__).resolve().parents[2]
ROWS = 40
TENTH = float(np.float32(0.1))


def all_bounds(name: str, dtype: DType, bound: object, **more: Any) -> Field:
    """A field that no two values keep: each of its rules is an expectation of its own."""
    return Field(name=name, dtype=dtype, ge=bound, gt=bound, le=bound, lt=bound, **more)


FIELDS = [
    all_bounds("a_float32", Float32, 0.1, nullable=False),
    all_bounds("a_float64", Float64, 0.1, nullable=False),
    all_bounds("zero", Float64, 0.0),
    all_bounds("loose_float32", Float32, 0.1, allow_nan=True),
    all_bounds("an_int32", Int32, 2**31 - 1, nullable=False),
    all_bounds("an_int64", Int64, 0, nullable=False),
    all_bounds("exact_int64", Int64, EXACT_INT_MAX),
    all_bounds("negative_int64", Int64, -EXACT_INT_MAX),
    all_bounds("greatest_int64", Int64, 2**63 - 1),
    all_bounds("a_decimal", Decimal(38, 4), 1, nullable=False),
    Field(name="chosen_text", dtype=String, allowed_values=AWKWARD_TEXTS),
    Field(name="chosen_int32", dtype=Int32, allowed_values=[0, -(2**31)]),
    Field(name="chosen_int64", dtype=Int64, allowed_values=[0, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
    Field(name="chosen_float", dtype=Float32, allowed_values=[0.1, 0.0]),
    Field(name="a_string", dtype=String, nullable=False, min_length=2, max_length=2, pattern=r"\d\w*"),
    Field(name="some_bytes", dtype=Bytes, nullable=False, min_length=2, max_length=2),
    Field(name="a_list", dtype=List(Float64), nullable=False, max_length=1),
    Field(name="a_vector", dtype=Vector(Float32, 2), nullable=False),
    Field(name="a_bool", dtype=Bool, nullable=False),
    Field(name="a_date", dtype=Date, nullable=False),
    Field(name="a_timestamp", dtype=Timestamp, nullable=False),
]
#: Values on both sides of a bound, and what one side takes for another.
NEAR: dict[DType, tuple[Any, ...]] = {
    Float32: (TENTH, math.nan, 0.0, *(float(np.nextafter(np.float32(0.1), np.float32(side))) for side in (0, 1))),
    Float64: (0.1, TENTH, math.nan, 0.0, -0.0, *(math.nextafter(0.1, side) for side in (0, 1))),
    Int64: tuple(sign * (2**53 + more) for sign in (1, -1) for more in (-2, -1, 0, 1)),
    String: ("1\n", "\n", "٣", "٣a", "1é", "12", "1", "ab", "<b>", "\u00a0"),
}

VIEW = FeatureView(
    name="everything",
    entities=[Entity(name="thing", join_keys={"thing": Int64})],
    schema=FIELDS,
    source=FileSource(path="rows.parquet", timestamp_field="event_timestamp"),
    on_violation="warn",
)
RULES = list(column_rules(VIEW))
EXPECTED = [expected for expected, _ in RULES]


def column_values(field: Field) -> st.SearchStrategy[list[Any]]:
    """A null, what lies at the field's limits, then anything."""
    bounds = [bound for bound in (field.ge, *(field.allowed_values or ())) if bound is not None]
    edges = [None, *NEAR.get(field.dtype, ()), *bounds]
    anything = st.one_of(st.none(), values(field.dtype))
    more = ROWS - len(edges)
    return st.lists(anything, min_size=more, max_size=more).map(lambda drawn: [*edges, *drawn])


def rows(draw: st.DataObject) -> pa.Table:
    """History rows of the view."""
    columns = {field.name: pa.array(draw.draw(column_values(field)), arrow_type(field.dtype)) for field in FIELDS}
    times = pa.array(np.arange(ROWS)).cast(arrow_type(Timestamp))
    return pa.table({"thing": pa.array(np.arange(ROWS)), "event_timestamp": times, **columns})


class OwnProject:
    """A project of Great Expectations that somebody else made, with nothing of ours in it but the suite's JSON."""

    def __init__(self, suite: dict[str, Any]) -> None:
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("frames").add_dataframe_asset("rows")
        self._definition = context.validation_definitions.add(
            gx.ValidationDefinition(
                name="rows",
                data=asset.add_batch_definition_whole_dataframe("all"),
                suite=context.suites.add(gx.ExpectationSuite(**suite)),
            )
        )

    def broken(self, frame: Any) -> dict[str, set[int]]:
        """The rows on which each expectation breaks, by rule."""
        asked = {"result_format": "COMPLETE"}
        validated = self._definition.run(batch_parameters={"dataframe": frame}, result_format=asked)
        for result in validated.results:
            assert not result.exception_info.get("raised_exception"), result.exception_info
        return {
            result.expectation_config.meta["featurestore"]["rule"]: set(result.result.get("unexpected_index_list", ()))
            for result in validated.results
        }


@pytest.fixture(scope="module")
def own_project() -> OwnProject:
    """The suite as a file carries it."""
    return OwnProject(json.loads(json.dumps(suite_document(VIEW, EXPECTED))))


@settings(thoroughly, max_examples=4)
@given(draw=st.data())
def test_gate_suite_and_validate_give_the_same_verdict_on_every_row(
    own_project: OwnProject, draw: st.DataObject
) -> None:
    history = rows(draw)
    marked = {
        one.name: set(np.flatnonzero(rule.breaches(history.column(one.column).combine_chunks())).tolist())
        for one, rule in RULES
    }
    with_form = {one.name for one in EXPECTED if one.form.expectation is not None}
    assert own_project.broken(to_pandas(history)) == {rule: marked[rule] for rule in with_form}

    passed = Gate(VIEW, "run", 0).check(SourceBatch(rows=history, source="rows", row_numbers=np.arange(ROWS)))
    assert passed.breaches == {rule: len(places) for rule, places in marked.items() if places}
    tallies = tally(
        VIEW, history.to_batches(max_chunksize=16), 0, lambda ref, keys: np.zeros(keys.num_rows, dtype=bool)
    )
    assert {one.expected.name: one.breaches for one in tallies} == {rule: len(marked[rule]) for rule in marked}
    judged = judge(VIEW, tallies, "run", "2013-01-01T00:00:00+00:00")
    assert [result.success for result in judged.results] == [one.breaches == 0 for one in tallies]


def test_every_row_of_the_table_of_forms_is_put_to_the_test() -> None:
    of_fields = [
        form for form in FORMS if form.expectation is not None or form.rules[0] in {one.rule for one in EXPECTED}
    ]
    assert {one.form.note for one in EXPECTED} == {form.note for form in of_fields}


def test_a_rule_without_a_faithful_form_is_named_in_the_suite_and_left_out_of_it() -> None:
    suite = suite_document(VIEW, EXPECTED)
    named_there = {one["rule"]: one["why"] for one in suite["meta"]["featurestore"]["without_form"]}
    assert named_there.keys() == {one.name for one in EXPECTED if one.form.expectation is None}
    assert "RE2" in named_there["a_string:pattern"]
    assert len(suite["expectations"]) + len(named_there) == len(EXPECTED)


def test_the_page_of_contracts_says_of_each_rule_whether_great_expectations_has_it() -> None:
    """Which form, of which types: that stands in docs/validate.md alone."""
    lines = (ROOT / "docs" / "contracts.md").read_text().splitlines()
    cells = [line.split(" | ") for line in lines[lines.index("## One declaration, four forms") :]]
    shown = {row[0].removeprefix("| "): row[3] for row in cells if len(row) == 5}
    names = {"bounds": "ge", "lengths": "min_length"}
    for name, cell in shown.items():
        rule = names.get(name, name.partition(",")[0].strip("`"))
        having = {form.expectation is not None for form in FORMS if rule in form.rules}
        expected = {frozenset({True}): "yes", frozenset({True, False}): "some", frozenset({False}): "none"}
        assert name in ("rule", "dtype", "`dtype`") or cell == expected[frozenset(having)], name
    assert len(shown) == 12


def test_the_docs_show_the_table_of_forms() -> None:
    shown = (ROOT / "docs" / "validate.md").read_text()
    for form in FORMS:
        says = f"`{form.expectation}`. {form.note}" if form.expectation else f"none: {form.note}"
        assert f"| {', '.join(form.rules)} | {form.fields} | {says} |" in shown
