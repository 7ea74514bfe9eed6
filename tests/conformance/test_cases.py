"""The corpus itself: every case explains itself, declares what apply would take, and a malformed one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.registry.validate import validate
from tests.conformance.cases import ONLY_VIEW, WHY_LENGTH_MIN, CaseError, read_corpus, read_file
from tests.conformance.engines import feature_view, service_of
from tests.conformance.texts import parse_duration_us, parse_value, text_of

CASES = read_corpus()

GOOD = """theme: One
cases:
- name: first_case
  why: It shows that a case of this form can be read at all.
  view: {keys: {carrier: string}, fields: {delay: int64, note: string}, created: true, ttl: 1h}
  history:
    arrivals:
    - at: 2013-12-01T10:00Z
      rows:
      - keys: {carrier: "null"}
        event: 2013-12-01T09:00+01:00
        created: 2013-12-01T09:00Z
        values: {delay: null, note: 1e3}
      counts: {added: 1}
  spine:
  - keys: {carrier: null}
    as_of: 2013-12-01T10:00Z
    expect: {status: NOT_FOUND}
    as_served: {status: PRESENT, values: {delay: 1, note: ""}, uncertain: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "one.yaml"


def test_the_corpus_has_at_least_sixty_cases_and_six_as_served() -> None:
    assert len(CASES) >= 60
    assert sum(any(ask.as_served is not None for ask in case.spine) for case in CASES) >= 6


def test_every_case_says_why_in_a_sentence() -> None:
    assert [case.name for case in CASES if len(case.why) < WHY_LENGTH_MIN or case.why[-1] != "."] == []


def test_every_view_and_service_of_the_corpus_may_be_applied() -> None:
    views = [feature_view(case, ref) for case in CASES for ref in case.views]
    entities = [entity for view in views for entity in view.entities]
    problems = validate(entities, views, [service_of(case) for case in CASES])
    assert [problem.what for problem in problems] == []


def test_the_page_shows_a_case_of_the_corpus(file: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    file.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (shown,) = read_file(file)
    (case,) = [case for case in CASES if case.name == shown.name]
    assert (shown.why, shown.views) == (case.why, case.views)


def test_texts_are_texts_and_only_plain_null_is_null(file: Path) -> None:
    file.write_text(GOOD)
    (case,) = read_file(file)
    (row,) = case.arrivals[0].rows
    assert (row.keys, row.values) == (("null",), {"delay": None, "note": "1e3"})
    assert row.event.isoformat() == "2013-12-01T08:00:00+00:00"
    assert case.spine[0].keys == {"carrier": None}
    assert case.views[ONLY_VIEW].ttl_us == 3_600_000_000
    assert case.arrivals[0].counts == {"added": 1, "duplicates": 0, "corrections": 0, "ambiguous": 0, "quarantined": 0}
    served = (case.spine[0].as_served or {})[ONLY_VIEW]
    assert (served.status, served.values, served.uncertain) == ("PRESENT", {"delay": 1, "note": ""}, True)


@pytest.mark.parametrize("way_out", ["engines: [duckdb]", "skip: true", "xfail: true", "only: sqlite", "not_on: redis"])
def test_no_case_can_leave_an_engine_out(file: Path, way_out: str) -> None:
    file.write_text(GOOD.replace("  view:", f"  {way_out}\n  view:"))
    with pytest.raises(CaseError, match=r"one\.yaml.*unknown key '\w+'; known: name, why, history, spine, view, views"):
        read_file(file)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("theme: One\n", "", "one.yaml: lacks the key 'theme'"),
        ("  why: It shows that a case of this form can be read at all.\n", "", "cases[0]: lacks the key 'why'"),
        ("It shows that a case of this form can be read at all.", "Because.", "first_case: why: 'Because.' explains"),
        ("first_case", "First", "cases[0].name: 'First' does not have the form"),
        ("first_case", "a" * 55, "more than 54 characters"),
        ("  spine:", "  spine: []\n  more:", "unknown key 'more'"),
        ("{carrier: string}", "{carrier: text}", "view.keys.carrier: 'text' is not a type"),
        ("ttl: 1h", "ttl: soon", "view.ttl: 'soon' is not a duration"),
        ("created: true, ", "", "view: lacks the key 'created'"),
        ("created: true, ", "created: yes, ", "view.created: 'yes' does not have the form true|false"),
        ("  view: {", "  views: {legs: {}}\n  view: {", "has either view or views"),
        ("09:00+01:00", "09:00", "rows[0].event: '2013-12-01T09:00' is not a time with an offset"),
        ("09:00+01:00", "09:00:00.0000001Z", "rows[0].event: '2013-12-01T09:00:00.0000001Z' is not a time"),
        ("2013-12-01T09:00+01:00", "0001-01-01T00:00+01:00", "lies outside the years 1 to 9999"),
        ("        created: 2013-12-01T09:00Z\n", "", "rows[0]: lacks the key 'created'"),
        ("delay: null, ", "delay: 1.5, ", "rows[0].values.delay: '1.5' is not int64; write digits"),
        ("delay: null, ", "", "rows[0].values: lacks the key 'delay'"),
        ("delay: null, ", "delay:, ", "nothing is written"),
        ("delay: null, ", "delay: 1, delay: 2, ", "twice: {'delay'}"),
        ("{added: 1}", "{lost: 1}", "counts: unknown key 'lost'; known: added"),
        ("{status: NOT_FOUND}", "{status: MISSING}", "expect.status: 'MISSING' does not have the form"),
        ("{status: NOT_FOUND}", "{status: PRESENT}", "values stand where the status is PRESENT"),
        ("{status: NOT_FOUND}", "{status: NOT_FOUND, uncertain: true}", "unknown key 'uncertain'"),
        ('{delay: 1, note: ""}', "{delay: null, note: null}", "every value is null, so the status is NULL"),
        ("    - at: 2013-12-01T10:00Z\n      rows:", "    - rows:", "as_served needs the times of arrivals"),
        ("      counts:", "    - rows: []\n      counts:", "arrivals[1]: some arrivals have `at` and some have not"),
        ("      counts:", "    - {rows: [], at: 2013-12-01T10:00Z}\n    - rows: []\n      counts:", "begins before"),
        ("note: string}", "note: {type: string, since: 2}}", "values: unknown key 'note'; known: delay"),
        ("cases:\n", "cases:\n- {}\n", "cases[0]: lacks the key 'name'"),
        ("cases:\n", "cases: [\n", "one.yaml: while parsing"),
    ],
)
def test_a_malformed_case_is_refused_with_its_place(file: Path, good: str, bad: str, says: str) -> None:
    assert GOOD.count(good) >= 1
    file.write_text(GOOD.replace(good, bad, 1))
    with pytest.raises(CaseError) as refused:
        read_file(file)
    assert says in str(refused.value)
    assert str(refused.value).startswith("one.yaml")


def test_a_name_stands_once_in_the_corpus(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(CaseError, match=r"two\.yaml: case 'first_case' stands in one\.yaml too"):
        read_corpus(tmp_path)


def test_times_are_local_where_the_view_has_a_timezone(file: Path) -> None:
    file.write_text(GOOD.replace("ttl: 1h", "timezone: Europe/Berlin"))
    with pytest.raises(CaseError, match=r"rows\[0\]\.event: .* is not a local time"):
        read_file(file)


def test_texts_show_every_bit() -> None:
    from featurestore import Bytes, Decimal, Float32, Float64, Timestamp

    for dtype, texts in {
        Float64: ["NaN", "Infinity", "-Infinity", "-0.0", "0.0", "5e-324", "bits:fff8000000000000"],
        Float32: ["NaN", "-0.0", "0.10000000149011612", "16777216.0"],
        Decimal(38, 4): ["-9999999999999999999999999999999999.9999", "0.0001", "1.5000"],
        Bytes: ["", "00ff"],
        Timestamp: ["0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"],
    }.items():
        assert [text_of(parse_value(text, dtype), dtype) for text in texts] == texts
    assert parse_duration_us("1d 2h 3m 4s 5ms 6us") == 93_784_005_006
