"""`featurestore quarantine` as people use it: from a bad batch to a clean history, and wrong arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureView, Field, Float64, Int64
from tests.fix_cli import Done, Run
from tests.fix_repository import NOON, SmallRepository, hours, weather

Quarantine = Callable[..., Done]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRepository]:
    """A repository with the view applied."""
    small = SmallRepository(tmp_path_factory.mktemp("weather"))
    small.apply(up_to(30, max_breach_share=0.5))
    yield small
    small.close()


@pytest.fixture
def quarantine(repository: SmallRepository, inside: Run) -> Quarantine:
    """`featurestore quarantine ARGUMENTS` there, at noon."""
    return lambda *arguments: inside(repository.root, "quarantine", *arguments, FEATURESTORE_NOW=NOON.isoformat())


def up_to(le: float, **changes: Any) -> FeatureView:
    """The view, temperatures up to `le`."""
    schema = (Field(name="temp", dtype=Float64, le=le), Field(name="seen", dtype=Int64))
    return weather(schema=schema, on_violation="quarantine", **changes)


def test_from_a_bad_batch_to_a_clean_history(
    repository: SmallRepository, quarantine: Quarantine, inside: Run, tmp_path: Path
) -> None:
    temps = [10.0, 40.0, 50.0, 60.0]
    repository.write("weather/a.parquet", [("A", NOON - hours(9 - n), temp, n) for n, temp in enumerate(temps)])

    ended = repository.run_command("materialize-incremental")
    assert ended.returncode == 1
    assert "3 of 4 rows (75.00%) break the contract" in ended.stderr
    assert "temp:le 3" in ended.stdout

    counted = quarantine("list", "--view", "weather", "--json").ok().json
    assert [(c["rule"], c["field"], c["rows"]) for c in counted["counts"]] == [("le", "temp", 3)]
    run = counted["counts"][0]["run"]
    described = inside(repository.root, "describe", "run", run, "--json").ok().json
    assert (described["state"], described["views"][0]["breaches"]) == ("failed", {"temp:le": 3})

    shown = quarantine("show", "--view", "weather", "--limit", "2", "--run", run, "--json").ok().json
    assert shown["more"]
    assert [(row["raw"]["temp"], row["source"], row["source_row"]) for row in shown["rows"]] == [
        (40.0, "data/weather/a.parquet", 1),
        (50.0, "data/weather/a.parquet", 2),
    ]
    one = quarantine("show", shown["rows"][0]["id"]).ok().out
    assert "temp is above the greatest allowed 30.0" in one
    assert '"2024-03-01 04:00:00.000000Z"' in one

    for name in ("aside.parquet", "aside.csv"):
        assert "wrote 3 rows" in quarantine("export", "--view", "weather", "--out", tmp_path / name).ok().out
    exported = pq.ParquetFile(tmp_path / "aside.parquet").read()
    assert exported.column("temp").to_pylist() == temps[1:]
    assert str(exported.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert exported.column("quarantine_rule").to_pylist() == ["le"] * 3
    assert pa_csv.read_csv(tmp_path / "aside.csv").column("seen").to_pylist() == [1, 2, 3]

    repository.apply(up_to(50))
    replayed = quarantine("replay", "--view", "weather").ok().out
    assert "2 into history (0 corrections), 0 duplicates, 1 stay in quarantine" in replayed
    again = quarantine("replay", "--view", "weather", "--json").ok().json["views"]["weather@1"]["loaded"]
    assert (again["read"], again["added"], again["quarantined"]) == (1, 0, 1)
    repository.assert_verified()

    refused = quarantine("drop", "--view", "weather")
    assert (refused.code, "pass --yes" in refused.err) == (2, True)
    assert quarantine("drop", "--view", "weather", "--yes", "--json").ok().json == {"dropped": 1}
    assert quarantine("list").ok().out == "no row is quarantined\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show"], "needs an ID or --view"),
        (["list", "--yes"], "list takes no --yes"),
        (["export", "--view", "weather"], "needs --out"),
        (["replay"], "needs --view"),
        (["show", "beef"], "no quarantined row has the id 'beef'"),
        (["replay", "--view", "wether"], "did you mean 'weather@1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_refused_with_the_way_out(arguments: list[str], says: str, quarantine: Quarantine) -> None:
    refused = quarantine(*arguments)
    assert (refused.code, says in refused.err) == (2, True), refused.err
