"""`featurestore quarantine` as people use it: from a bad batch to a clean history, and wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from featurestore import Field, Float64, Int64
from tests.fix_repository import NOON, SmallRepository, hours, weather


def quarantine(repository: SmallRepository, *arguments: str, code: int = 0) -> str:
    ended = repository.run_command("quarantine", *arguments)
    assert ended.returncode == code, ended.stderr
    return ended.stdout if code == 0 else ended.stderr


def told(repository: SmallRepository, *arguments: str) -> Any:
    return json.loads(quarantine(repository, *arguments, "--json"))


def up_to(le: float, **changes: Any) -> Any:
    schema = (Field(name="temp", dtype=Float64, le=le), Field(name="seen", dtype=Int64))
    return weather(schema=schema, on_violation="quarantine", **changes)


def test_from_a_bad_batch_to_a_clean_history(repository: SmallRepository) -> None:
    repository.apply(up_to(30, max_breach_share=0.5))
    temps = [10.0, 40.0, 50.0, 60.0]
    repository.write("weather/a.parquet", [("A", NOON - hours(9 - n), temp, n) for n, temp in enumerate(temps)])

    ended = repository.run_command("materialize-incremental")
    assert ended.returncode == 1
    assert "3 of 4 rows (75.00%) break the contract" in ended.stderr
    assert "temp:le 3" in ended.stdout

    counted = told(repository, "list", "--view", "weather")
    assert counted["rows"] == 3
    assert [(c["rule"], c["field"], c["rows"]) for c in counted["counts"]] == [("le", "temp", 3)]
    run = counted["counts"][0]["run"]
    described = json.loads(repository.run_command("describe", "run", run, "--json").stdout)
    assert (described["state"], described["views"][0]["breaches"]) == ("failed", {"temp:le": 3})

    shown = told(repository, "show", "--view", "weather", "--limit", "2", "--run", run)
    assert shown["more"]
    assert [(row["raw"]["temp"], row["source"], row["source_row"]) for row in shown["rows"]] == [
        (40.0, "data/weather/a.parquet", 1),
        (50.0, "data/weather/a.parquet", 2),
    ]
    one = quarantine(repository, "show", shown["rows"][0]["id"])
    assert "temp is above the greatest allowed 30.0" in one
    assert '"2024-03-01 04:00:00.000000Z"' in one

    for suffix in ("parquet", "csv"):
        assert "wrote 3 rows" in quarantine(
            repository, "export", "--view", "weather", "--out", _out(repository, suffix)
        )
    exported = pq.ParquetFile(_out(repository, "parquet")).read()
    assert exported.column("temp").to_pylist() == temps[1:]
    assert exported.schema.field("at").type == "timestamp[us, tz=UTC]"
    assert exported.column("quarantine_rule").to_pylist() == ["le"] * 3
    assert pa_csv.read_csv(_out(repository, "csv")).column("seen").to_pylist() == [1, 2, 3]

    repository.apply(up_to(50))
    assert "2 into history (0 corrections), 0 duplicates, 1 stay in quarantine" in quarantine(
        repository, "replay", "--view", "weather"
    )
    again = told(repository, "replay", "--view", "weather")["views"]["weather@1"]["loaded"]
    assert (again["read"], again["added"], again["quarantined"]) == (1, 0, 1)
    repository.assert_verified()

    assert "pass --yes" in quarantine(repository, "drop", "--view", "weather", code=2)
    assert told(repository, "drop", "--view", "weather", "--yes") == {"dropped": 1}
    assert quarantine(repository, "list") == "no row is quarantined\n"


def _out(repository: SmallRepository, suffix: str) -> str:
    return str(Path(repository.root) / f"aside.{suffix}")


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
def test_a_wrong_argument_is_refused_with_the_way_out(
    arguments: list[str], says: str, inside_weather: SmallRepository
) -> None:
    assert says in quarantine(inside_weather, *arguments, code=2)


@pytest.fixture(scope="module")
def inside_weather(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository with the view applied, for commands that change nothing."""
    small = SmallRepository(tmp_path_factory.mktemp("weather"))
    small.apply(up_to(30))
    yield small
    small.close()
