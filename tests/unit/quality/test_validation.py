"""History judged by its contract: counts on both engines, whole-history rules, the report, the command."""

from __future__ import annotations

import json
import re
import resource
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from featurestore import Entity, FeatureStore, FeatureView, Field, FileSource, Float64, Int64, String
from featurestore.errors import ConfigError, InputError
from featurestore.quality.validation import PAGE, RESULT, SUITE, ValidationResult, validate
from featurestore.view_rules import Condition, Reference, Volume
from tests.fix_cli import Run
from tests.fix_offline import ENGINES, append, opened_engine
from tests.fix_repository import NOON, SmallRepository, hours, weather
from tests.oracle import Row

NOW = datetime(2013, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
SCRIPT = "<script>alert(1)</script>"


def legs(**rules: Any) -> FeatureView:
    """Delays and tail numbers by carrier; what breaks the contract is kept."""
    return FeatureView(
        name="legs",
        entities=[Entity(name="carrier", join_keys={"carrier": String})],
        schema=[
            Field(name="delay", dtype=Int64, ge=0, nullable=False),
            Field(name="tail", dtype=String, pattern="N[0-9]+$", allowed_values=["N1", "N2", "<script>", "٣"]),
        ],
        source=FileSource(path="legs.parquet", timestamp_field="at"),
        on_violation="warn",
        **rules,
    )


def row(number: int, delay: int | None, tail: str | None, hour: int = 0) -> Row:
    event = hour * HOUR_US + number
    return Row(keys=(f"c{number}",), event=event, created=event, sequence=number, value=(delay, tail))


def counted(result: ValidationResult) -> dict[str, tuple[int, int]]:
    """Rule -> (breaches, nulls)."""
    return {one.expected.name: (one.breaches, one.nulls) for one in result.tallies}


def validated(
    request: pytest.FixtureRequest, engine: str, folder: Path, view: FeatureView, rows: list[Row]
) -> ValidationResult:
    with opened_engine(request, engine, folder) as store:
        store.ensure_history(view)
        if rows:
            append(store, view, rows)
        return validate(view, {view.ref: view}, store, 2, NOW)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_row_of_history_is_counted_over_all_batches(
    request: pytest.FixtureRequest, engine: str, tmp_path: Path
) -> None:
    rows = [row(1, 5, "N1"), row(2, -5, None), row(3, None, "X3"), row(4, -1, "N2\n"), row(5, 0, "٣")]
    result = validated(request, engine, tmp_path, legs(), rows)

    assert (result.rows, result.position, result.success) == (5, 5, False)
    assert counted(result) == {
        "carrier:not_null": (0, 0),
        "event_timestamp:not_null": (0, 0),
        "delay:not_null": (1, 1),
        "delay:ge": (2, 1),
        "tail:allowed_values": (2, 1),
        "tail:pattern": (3, 1),
        "carrier:order": (0, 0),
    }
    assert [one.expected.name for one in result.broken] == [
        "delay:not_null",
        "delay:ge",
        "tail:allowed_values",
        "tail:pattern",
    ]
    below = sorted((example.key["carrier"], example.values["delay"]) for example in result.broken[1].examples)
    assert below == [("c2", -5), ("c4", -1)]


@pytest.mark.parametrize("engine", ENGINES)
def test_volume_and_gaps_are_judged_in_the_store(request: pytest.FixtureRequest, engine: str, tmp_path: Path) -> None:
    view = legs(volume=Volume(per=timedelta(hours=1), at_least=2), largest_gap=timedelta(hours=2))
    hours_of_rows = [0, 0, 1, 5, 5, 6]
    rows = [row(number, 1, "N1", hour) for number, hour in enumerate(hours_of_rows, start=1)]
    result = validated(request, engine, tmp_path, view, rows)

    found = {one.expected.rule: one for one in result.broken}
    assert found.keys() == {"volume", "largest_gap"}
    # The windows of 01:00 to 04:00; the last may be cut short.
    assert (found["volume"].rows, found["volume"].breaches) == (7, 4)
    assert found["volume"].examples[0].event_timestamp.hour == 1
    assert found["largest_gap"].breaches == 1
    assert "for longer than 2h" in found["largest_gap"].expected.says


@pytest.mark.parametrize("engine", ENGINES)
def test_rules_of_whole_rows_are_judged_over_history(
    request: pytest.FixtureRequest, engine: str, tmp_path: Path
) -> None:
    carriers = FeatureView(
        name="carriers",
        entities=[Entity(name="carrier", join_keys={"carrier": String})],
        schema=[Field(name="planes", dtype=Int64)],
        source=FileSource(path="carriers.parquet", timestamp_field="at"),
    )
    view = legs(
        conditions=[Condition(name="tail_when_late", sql="delay < 60 OR tail IS NOT NULL")],
        references=[Reference(view=carriers)],
        future_tolerance=timedelta(hours=1),
        unique=True,
    )
    days_43_years = 43 * 366 * 24
    rows = [row(1, 90, "N1"), row(2, 90, None), row(3, 0, None, hour=days_43_years + 24), row(4, None, None)]
    with opened_engine(request, engine, tmp_path) as store:
        for one in (view, carriers):
            store.ensure_history(one)
        append(store, view, rows)
        append(store, carriers, [Row(keys=(key,), event=1, created=1, sequence=9, value=(1,)) for key in ("c1", "c2")])
        result = validate(view, {one.ref: one for one in (view, carriers)}, store, 2, NOW)

    found = {one.expected.name: one for one in result.tallies}
    assert [example.key["carrier"] for example in found["tail_when_late:condition"].examples] == ["c2"]
    assert found["tail_when_late:condition"].examples[0].values == {"delay": 90, "tail": None}
    assert sorted(example.key["carrier"] for example in found["carrier:reference"].examples) == ["c3", "c4"]
    assert [example.key["carrier"] for example in found["event_timestamp:future"].examples] == ["c3"]
    assert {one.expected.name for one in result.broken} == {
        "delay:not_null",
        "tail_when_late:condition",
        "carrier:reference",
        "event_timestamp:future",
    }
    unnamed = {one["rule"] for one in result.suite["meta"]["featurestore"]["without_form"]}
    assert {"tail_when_late:condition", "carrier:reference", "event_timestamp:future", "carrier:order"} <= unnamed


def test_an_empty_history_keeps_every_rule(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    result = validated(request, "duckdb", tmp_path, legs(), [])
    assert (result.success, result.rows, result.position) == (True, 0, 0)


def test_the_report_is_read_offline_and_shows_values_as_text(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("validate asked for something over the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    result = validated(request, "duckdb", tmp_path, legs(), [row(1, -7, SCRIPT), row(2, 1, "N1")])
    report = tmp_path / "deep" / "report"
    result.write(report)

    page = (report / PAGE).read_text()
    assert not [word for word in ("http:", "https:", "src=", "<script", "<link") if word in page]
    files = set(re.findall(r'href="([^"#]*)', page)) - {""}
    assert files == {SUITE}, "links lead nowhere"
    assert "Contract of legs@1" in page
    assert "Data asset: history of legs@1" in page
    assert "delay=-7 (at carrier=c1" in page
    assert "values must be greater than or equal to" in page
    assert "tail does not match N[0-9]+$" in page
    assert "&lt;script&gt;" in page

    written = json.loads((report / RESULT).read_text())
    assert written["success"] is False
    assert written["statistics"]["unsuccessful_expectations"] == len(result.broken) == 3
    assert json.loads((report / SUITE).read_text()) == result.suite


def test_a_report_is_not_written_over_a_file(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    result = validated(request, "duckdb", tmp_path, legs(), [])
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        result.write(taken)
    with pytest.raises(InputError, match="cannot be written to .*; name another folder"):
        result.write(taken / "below")
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("limit", [20, 2000])
def test_a_report_that_cannot_be_written_leaves_the_one_before_whole(
    request: pytest.FixtureRequest, tmp_path: Path, limit: int
) -> None:
    report = tmp_path / "report"
    validated(request, "duckdb", tmp_path, legs(), []).write(report)
    before = {path.name: path.read_text() for path in report.iterdir()}
    result = validated(request, "duckdb", tmp_path, legs(), [row(1, -7, SCRIPT)])
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
    try:
        with pytest.raises(InputError, match="cannot be written .*; name another folder"):
            result.write(report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert {path.name: path.read_text() for path in report.iterdir()} == before


def test_without_great_expectations_validate_says_what_to_install(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "great_expectations", None)
    monkeypatch.delitem(sys.modules, "featurestore.quality.suite", raising=False)
    monkeypatch.delattr("featurestore.quality.suite", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'featurestore\[quality\]'"):
        validated(request, "duckdb", tmp_path, legs(), [])


# ------------------------------------------------------------------ as a user runs it


def loaded(repository: SmallRepository, *temps: float | None) -> SmallRepository:
    """Weather that must lie above -90, loaded; what does not is kept."""
    bounded = (Field(name="temp", dtype=Float64, ge=-90.0), Field(name="seen", dtype=Int64))
    repository.apply(weather(schema=bounded, on_violation="warn"))
    rows = [("JFK", NOON - hours(number), temp, 1) for number, temp in enumerate(temps, start=1)]
    repository.write("weather/first.parquet", rows)
    repository.done()
    repository.opened()
    return repository


def test_the_command_ends_with_1_when_history_breaks_its_contract(
    inside: Run, repository: SmallRepository, tmp_path: Path
) -> None:
    root = loaded(repository, 20.0, -100.0, float("nan"), None).root
    done = inside(root, "--json", "validate", "weather", "--report", tmp_path / "report")

    assert done.code == 1, done.err
    assert (done.json["success"], done.json["view"], done.json["rows"]) == (False, "weather@1", 4)
    (broken,) = [rule for rule in done.json["rules"] if not rule["success"]]
    assert (broken["column"], broken["rule"], broken["breaches"], broken["nulls"]) == ("temp", "ge", 2, 1)
    assert broken["expectation"] == "expect_column_values_to_be_between"
    assert sorted(str(example["values"]["temp"]) for example in broken["examples"]) == ["-100.0", "nan"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {PAGE, RESULT, SUITE}

    said = inside(root, "validate", "weather@1")
    assert said.code == 1
    assert "temp:ge: temp is below the least allowed -90.0: temp=-100.0 (at origin=JFK" in said.out
    assert said.out.endswith("weather@1, 4 rows of history: 1 of 4 rules is broken\n")


def test_the_command_ends_with_0_when_history_keeps_its_contract(inside: Run, repository: SmallRepository) -> None:
    root = loaded(repository, 20.0, None).root
    done = inside(root, "validate", "weather")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("weather@1, 2 rows of history: every rule is kept\n")


def test_the_facade_validates_what_was_pushed_and_waits(repository: SmallRepository) -> None:
    with loaded(repository, 20.0).opened() as opened:
        store = FeatureStore.of(opened)
        store.push("weather", {"origin": ["LGA"], "at": [NOON], "temp": [-95.0], "seen": [1]})
        result = store.validate("weather")
    assert result.rows == 2
    assert [one.expected.name for one in result.broken] == ["temp:ge"]
