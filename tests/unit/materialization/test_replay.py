"""Quarantined rows after a fix: through the gate again into history; and runs that break off since too many rows do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore, FeatureView, Field, Float64, Int64
from featurestore.cli.serve import quarantine_counter
from featurestore.errors import InputError, StoreBusy, TooManyBreaches
from featurestore.failpoint import KILLED
from featurestore.ingest import set_aside
from featurestore.ingest.load import LoadCounts
from featurestore.ingest.quarantined_rows import documents
from featurestore.ingest.replay import UNREADABLE
from featurestore.offline.quarantine import Chosen
from materialization.job import Request, RunOutcome
from materialization.lease import held_lease
from tests.fix_redis import RedisFarm
from tests.fix_repository import FIELDS, NOON, Row, SmallRepository, hours, rows_table, weather

REF = "weather@1"


def warm(le: float, **changes: Any) -> FeatureView:
    """The view, temperatures up to `le`."""
    schema = (Field(name="temp", dtype=Float64, le=le), *FIELDS[1:])
    return weather(**{"schema": schema, "on_violation": "quarantine", **changes})


@pytest.fixture(params=["duckdb+sqlite", "postgres+redis"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """A small repository on each pair of stores."""
    if request.param == "duckdb+sqlite":
        small = SmallRepository(tmp_path / "repository")
    else:
        url, farm = request.getfixturevalue("postgres_shared"), request.getfixturevalue("redis_farm")
        assert isinstance(farm, RedisFarm)
        project = f"replay_{uuid.uuid4().hex}"
        small = SmallRepository.on_servers(tmp_path / "repository", project, url, farm.valkey.url)
    yield small
    small.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[SmallRepository]:
    """A small repository on DuckDB and SQLite."""
    small = SmallRepository(tmp_path / "repository")
    yield small
    small.close()


def at(hour: int, temp: float, key: str = "A", seen: int = 0) -> Row:
    return (key, NOON - hours(hour), temp, seen)


def replay(repository: SmallRepository, view: str = "weather", **chosen: Any) -> RunOutcome:
    """`quarantine replay`, through the facade; its error is raised."""
    with repository.opened() as opened:
        outcome = FeatureStore.of(opened).replay_quarantine(view, **chosen)
    if outcome.errors:
        raise outcome.errors[0]
    return outcome


def replayed(repository: SmallRepository, **chosen: Any) -> LoadCounts:
    loaded = replay(repository, **chosen).views[0].loaded
    assert loaded is not None
    return loaded


def left(repository: SmallRepository, ref: str = REF) -> list[tuple[float, str, str]]:
    """(temperature, rule, definition) of what is in quarantine, in the order of arrival."""
    with repository.opened() as opened:
        kept = FeatureStore.of(opened).quarantine(ref)
    return [(row["raw"]["temp"], row["rule"], row["definition"]) for row in documents(kept)]


def push(repository: SmallRepository, *rows: Row) -> None:
    with repository.opened() as opened:
        FeatureStore.of(opened).push("weather", rows_table(rows))


def test_after_a_fix_loaded_and_pushed_rows_become_history_and_come_online(repository: SmallRepository) -> None:
    repository.apply(warm(30))
    repository.write("weather/a.parquet", [at(5, 10), at(4, 40), at(3, 50, "B")])
    repository.done()
    push(repository, at(2, 45, "C"), at(1, 20, "C"), at(1, 60, "D"))
    assert [temp for temp, _, _ in left(repository)] == [40, 50, 45, 60]

    repository.apply(warm(50))
    assert replayed(repository) == LoadCounts(read=4, added=3, quarantined=1)

    definition = repository.registry.fingerprint("view", REF)
    assert left(repository) == [(60, "le", definition)]
    assert [row[3] for row in repository.values()] == [10, 40, 50, 45, 20]
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    repository.assert_verified()
    before = repository.history()
    assert replayed(repository) == LoadCounts(read=1, quarantined=1)
    assert repository.history().equals(before)


def test_a_replayed_row_stands_where_it_arrived_and_undoes_no_correction(repository: SmallRepository) -> None:
    repository.apply(warm(30))
    repository.write("weather/a.parquet", [at(5, 40)])
    repository.done()
    repository.write("weather/b.parquet", [at(5, 25)])  # the same key and time, corrected at the source
    repository.done()
    online = repository.stored()

    repository.apply(warm(50))
    assert replayed(repository) == LoadCounts(read=1, added=1, corrections=1)

    history = repository.history()
    assert history.column("temp").to_pylist() == [25, 40]
    assert history.column("_sequence").to_pylist() == [2, 1]
    assert repository.stored() == online
    repository.assert_verified()


def test_a_row_that_history_holds_by_now_leaves_as_a_duplicate(embedded: SmallRepository) -> None:
    embedded.apply(warm(30))
    embedded.write("weather/a.parquet", [at(5, 40), at(5, 40)])
    assert embedded.done().loaded == LoadCounts(read=2, quarantined=2)
    embedded.apply(warm(50))
    embedded.write("weather/b.parquet", [at(5, 40, seen=0)])
    embedded.done()
    # The two said the same, so one was kept.
    assert replayed(embedded) == LoadCounts(read=1, duplicates=1)
    assert left(embedded) == []


def test_only_what_is_chosen_is_replayed(embedded: SmallRepository) -> None:
    schema = (Field(name="temp", dtype=Float64, le=30, ge=0), Field(name="seen", dtype=Int64))
    embedded.apply(warm(30, schema=schema))
    embedded.write("weather/a.parquet", [at(5, 40), at(4, -1)])
    embedded.done()
    embedded.apply(warm(30, schema=FIELDS))
    assert replayed(embedded, run="another").read == 0
    assert replayed(embedded, rule="ge") == LoadCounts(read=1, added=1)
    assert [rule for _, rule, _ in left(embedded)] == ["le"]


def test_rows_of_text_are_parsed_again_and_new_fields_hold_their_defaults(embedded: SmallRepository) -> None:
    embedded.apply(warm(30))
    folder = embedded.root / "data" / "weather"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("origin,at,temp,seen\nA,2024-03-01T10:00:00Z,40.5,1\n")
    embedded.done()
    extended = (*FIELDS, Field(name="wind", dtype=Float64, default=1.5))
    embedded.apply(warm(50, schema=extended))
    assert replayed(embedded) == LoadCounts(read=1, added=1)
    assert [row[3:] for row in embedded.values()] == [(40.5, 1, 1.5)]


def test_where_the_view_rejects_by_now_rows_that_break_stay(embedded: SmallRepository) -> None:
    embedded.apply(warm(30))
    embedded.write("weather/a.parquet", [at(5, 40), at(4, 60)])
    embedded.done()
    embedded.apply(warm(50, on_violation="reject"))
    assert replayed(embedded) == LoadCounts(read=2, added=1, quarantined=1)
    assert [temp for temp, _, _ in left(embedded)] == [60]


def test_a_row_too_long_to_be_kept_is_counted_and_cannot_be_replayed(
    embedded: SmallRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_aside, "RAW_BYTES_MAX", 80)
    embedded.apply(warm(30))
    rows = rows_table([at(5, 40), at(4, 40, "A" * 80)])
    embedded.write("weather/a.parquet", rows)
    assert embedded.done().loaded == LoadCounts(read=2, quarantined=2)
    kept = embedded.offline.quarantine.rows(Chosen(view=REF))
    assert kept.column("raw_form").to_pylist()[1] == ""
    assert "too long to be kept" in kept.column("reason")[1].as_py()
    embedded.apply(warm(50))
    loaded = replayed(embedded)
    assert (loaded, loaded.breaches) == (LoadCounts(read=2, added=1, quarantined=1), {UNREADABLE: 1})


# ------------------------------------------------------------------ versions


def test_rows_of_one_version_become_rows_of_another_only_when_it_is_named(embedded: SmallRepository) -> None:
    embedded.apply(warm(30))
    embedded.write("weather/a.parquet", [at(5, 40), at(4, 50)])
    embedded.done()
    elsewhere = weather("data/other").source
    second = warm(45, version=2, source=elsewhere)
    wider = warm(99, version=3, source=elsewhere, schema=(*FIELDS, Field(name="wind", dtype=Float64)))
    embedded.apply(warm(30), second, wider)

    with pytest.raises(InputError, match="several versions.*weather@1, weather@2, weather@3.*--into"):
        replay(embedded)
    with pytest.raises(InputError, match="lack 'wind', which weather@3 has"):
        replay(embedded, REF, into="weather@3")
    assert len(left(embedded)) == 2

    with held_lease(embedded.state, REF, 60), pytest.raises(StoreBusy, match=REF):
        replay(embedded, REF, into="weather@2")  # while somebody drops, or adds, rows of version 1

    outcome = replay(embedded, REF, into="weather@2")

    assert [(done.view, done.loaded) for done in outcome.views] == [
        ("weather@2", LoadCounts(read=2, added=1, quarantined=1))
    ]
    assert [row[3] for row in embedded.values("weather@2")] == [40]
    assert embedded.history(REF).num_rows == 0
    assert [temp for temp, _, _ in left(embedded)] == [50]
    embedded.assert_verified()


# ------------------------------------------------------------------ too many breaches


def test_a_run_above_the_share_publishes_nothing_until_the_rows_are_mended(repository: SmallRepository) -> None:
    repository.apply(warm(30, max_breach_share=0.25))
    repository.write("weather/a.parquet", [at(n, 10, f"K{n}") for n in range(1, 13)])
    repository.done()
    online = repository.stored()
    repository.write("weather/b.parquet", [at(n, 40 if n % 2 else 20, f"L{n}") for n in range(1, 13)])

    for _ in range(2):  # and the next run, which finds nothing new, does not publish behind its back
        outcome = repository.run()
        (error,) = outcome.errors
        assert isinstance(error, TooManyBreaches)
        assert "6 of 12 rows (50.00%)" in str(error)
        assert "quarantine list --view weather@1" in str(error)
        assert repository.stored() == online
    last = repository.state.runs()[0]
    assert (last.state, last.counts[REF]["loaded"]["quarantined"]) == ("failed", 6)
    assert last.counts[REF]["published"] is None

    repository.write("weather/b.parquet", [at(n, 40 if n % 4 == 1 else 20, f"L{n}") for n in range(1, 13)])
    assert repository.done().published is not None
    repository.assert_online_is_projection()


def test_a_share_at_the_bound_passes_and_rows_kept_with_a_warning_count(embedded: SmallRepository) -> None:
    embedded.apply(warm(30, max_breach_share=0.5, on_violation="warn"))
    embedded.write("weather/a.parquet", [at(1, 40), at(2, 20)])
    assert embedded.done().loaded == LoadCounts(read=2, added=2, warned=1)
    embedded.write("weather/b.parquet", [at(3, 40), at(4, 40), at(5, 20)])
    with pytest.raises(TooManyBreaches, match="2 of 3 rows"):
        embedded.done()
    # What a person decides to publish all the same is published.
    assert embedded.done(Request(load=False)).published is not None
    embedded.assert_online_is_projection()


def test_a_resumed_load_is_judged_as_a_whole(embedded: SmallRepository) -> None:
    embedded.apply(warm(30, max_breach_share=0.4))
    bad, good = ([at(n, temp, f"K{n}") for n in span] for temp, span in ((40, range(1, 11)), (20, range(11, 21))))
    embedded.write("weather/a.parquet", rows_table([*bad, *good]))
    # Killed with the batch of bad rows settled: what is left is all good.
    ended = embedded.run_command("materialize-incremental", FEATURESTORE_FAILPOINT="append.after_commit")
    assert ended.returncode == KILLED, ended.stderr
    outcome = embedded.run()
    assert outcome.views[0].loaded == LoadCounts(read=10, added=10)
    assert "10 of 20 rows" in str(outcome.errors[0])


def test_what_broke_is_counted_by_rule(embedded: SmallRepository) -> None:
    embedded.apply(warm(30))
    embedded.write("weather/a.parquet", pa.concat_tables([rows_table([at(n, 40) for n in range(25)])]))
    loaded = embedded.done().loaded
    assert loaded is not None
    assert loaded.breaches == {"temp:le": 25}
    assert embedded.state.runs()[0].counts[REF]["loaded"]["breaches"] == {"temp:le": 25}


def test_a_serving_process_counts_quarantined_rows_where_that_keeps_no_job_out(repository: SmallRepository) -> None:
    repository.apply(warm(30))
    repository.write("weather/a.parquet", [at(2, 20.0), at(1, 40.0)])
    repository.done()
    with repository.opened() as opened:
        totals = quarantine_counter(opened)
        embedded = opened.settings.offline.kind == "duckdb"
        assert (totals is None) == embedded
        assert totals is None or totals() == {REF: 1}
