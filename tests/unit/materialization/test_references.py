"""A view that refers to another one: loaded after it, and pushed rows are held against what is known of it."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from featurestore import Entity, FeatureView, Field, FileSource, Int64, Reference, String
from featurestore.ingest.push import RowResult
from featurestore.offline.quarantine import Chosen
from materialization.ranks import ranks
from tests.fix_repository import NOON, SmallRepository, weather

VISITS = FeatureView(
    name="a_visit",
    entities=[Entity(name="visitor", join_keys={"visitor": String})],
    schema=[Field(name="airport", dtype=String), Field(name="count", dtype=Int64)],
    source=FileSource(path="data/visits", timestamp_field="at"),
    references=[Reference(view=weather(), columns={"origin": "airport"})],
    on_violation="quarantine",
)


def test_views_are_worked_on_after_those_they_refer_to() -> None:
    other = replace(weather(), name="z", references=[])
    third = replace(VISITS, name="b", references=[Reference(view=VISITS, columns={"visitor": "airport"})])
    assert [[view.name for view in rank] for rank in ranks([third, VISITS, weather(), other])] == [
        ["weather", "z"],
        ["a_visit"],
        ["b"],
    ]
    assert [[view.name for view in rank] for rank in ranks([VISITS, third])] == [["a_visit"], ["b"]]


def visits(*airports: str | None) -> pa.Table:
    count = len(airports)
    return pa.table(
        {
            "visitor": [f"v{n}" for n in range(count)],
            "at": pa.array([NOON] * count, pa.timestamp("us", "UTC")),
            "airport": pa.array(airports, pa.string()),
            "count": list(range(count)),
        }
    )


def test_rows_that_break_one_of_several_references_of_a_column_are_all_counted(repository: SmallRepository) -> None:
    other = replace(weather(), name="hubs")
    twice = [
        Reference(view=weather(), columns={"origin": "airport"}),
        Reference(view=other, columns={"origin": "airport"}),
    ]
    repository.apply(replace(VISITS, references=twice), weather(), other)
    repository.write("weather/a.parquet", [("JFK", NOON, 1.0, 1)])
    repository.write("visits/a.parquet", visits("JFK", "nowhere", "elsewhere"))

    outcome = repository.run()

    loaded = next(done.loaded for done in outcome.views if done.view == "a_visit@1")
    assert loaded is not None
    assert loaded.quarantined == loaded.breaches["airport:reference"] == 2


def test_entities_that_are_not_known_are_set_aside_by_load_and_push(repository: SmallRepository) -> None:
    repository.apply(VISITS, weather())
    repository.write("weather/a.parquet", [("JFK", NOON, 1.0, 1)])
    repository.write("visits/a.parquet", visits("JFK", "nowhere", None))

    first = repository.run()

    assert first.errors == []
    assert [done.view for done in first.views] == ["a_visit@1", "weather@1"]
    assert [(row[0], row[3]) for row in repository.values("a_visit@1")] == [("v0", "JFK"), ("v2", None)]
    (aside,) = repository.offline.quarantine.rows(Chosen(view="a_visit@1")).to_pylist()
    assert (aside["field"], aside["rule"]) == ("airport", "reference")
    assert aside["reason"] == "airport is no entity of weather@1"

    with repository.opened() as opened:
        pushed = opened.pusher.push("a_visit", visits("nowhere", "JFK"))
    assert pushed.results.tolist() == [RowResult.REJECTED, RowResult.ACCEPTED]
    assert pushed.rejections.listed(1) == [
        (0, "airport", "reference", "airport is no entity of weather@1", '"nowhere"')
    ]
