"""The table of docs/evolution.md is what `plan` does, row by row, and leaves no attribute out.

`python -m tests.unit.registry.test_evolution` writes the table into the page.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from featurestore import (
    Condition,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Reference,
    SqlSource,
    Volume,
)
from featurestore.feature_view import SelectedField, ViewSelection
from featurestore.fingerprint import service_signature
from featurestore.registry.diff import REWORDED, worst
from featurestore.registry.plan import Plan, Surroundings, Update, plan_between
from featurestore.registry.registry import Snapshot
from tests.unit.registry.evolution_cases import Case, cases
from tests.unit.registry.evolution_world import APPLIED, ROW_SCHEMAS

PAGE = Path(__file__).parents[3] / "docs" / "evolution.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
KINDS = (
    Entity,
    FeatureView,
    Field,
    Condition,
    Reference,
    Volume,
    FileSource,
    SqlSource,
    FeatureService,
    ViewSelection,
    SelectedField,
)
SNAPSHOT = Snapshot(
    revision=1,
    definitions=APPLIED,
    row_schemas=ROW_SCHEMAS,
    signatures={name: service_signature(service, APPLIED.views) for name, service in APPLIED.services.items()},
)
CASES = cases()


def plan_of(case: Case) -> Plan:
    return plan_between(SNAPSHOT, case.declared, Surroundings())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind.__name__}.{case.attribute}: {case.change}")
def test_a_change_has_the_class_that_the_table_says(case: Case) -> None:
    plan = plan_of(case)
    assert plan.steps, "the change went unnoticed"
    assert worst([step.impact for step in plan.steps]) == case.impact, [str(step) for step in plan.steps]
    assert bool(plan.refusals()) == (case.impact == "breaking")
    words = [change.what for step in plan.steps if isinstance(step, Update) for change in step.changes]
    assert REWORDED not in words


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind.__name__}.{case.attribute}: {case.change}")
def test_durations_are_said_as_people_write_them(case: Case) -> None:
    plan = plan_of(case)
    said = [str(step) for step in plan.steps] + plan.refusals() + list(plan.notes)
    assert [text for text in said if re.search(r"\d:\d\d:\d\d|\d days?,|timedelta", text)] == []


def test_no_attribute_of_a_definition_is_missing_from_the_table() -> None:
    judged = {(case.kind, case.attribute) for case in CASES}
    known = {(kind, argument.name) for kind in KINDS for argument in fields(kind) if argument.name != "at"}
    assert judged == known


def test_the_page_shows_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "run: python -m tests.unit.registry.test_evolution"


def table() -> str:
    """The table in Markdown."""
    lines = ["| object | attribute | change | class | why |", "|---|---|---|---|---|"]
    kind = None
    for case in CASES:
        shown = "" if case.kind is kind else f"`{case.kind.__name__}`"
        kind = case.kind
        lines.append(f"| {shown} | `{case.attribute}` | {case.change} | {case.impact} | {case.why} |")
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(head + BEGIN + "\n" + table() + "\n" + END + tail, encoding="utf-8")


if __name__ == "__main__":
    write_table()
