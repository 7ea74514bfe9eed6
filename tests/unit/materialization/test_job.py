"""Runs: future rows wait, the horizon never goes back, one writer a view, one failing view does not stop the others."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from featurestore import Condition
from featurestore.clock import to_us
from featurestore.errors import DefinitionError, FeatureStoreError, InputError, SourceError, StoreBusy
from featurestore.ingest.load import LoadCounts
from featurestore.online.keys import encode_keys
from featurestore.registry.state import PublishRecord
from materialization.job import Request
from materialization.lease import held_lease
from tests.fix_repository import BATCH_ROWS, NOON, SmallRepository, created_table, hours, weather

NOON_US = to_us(NOON)
HOUR_US = 3_600_000_000


@pytest.mark.parametrize("refused", ["median(temp) > 0", "round(seen, temp) > 0"])
def test_a_condition_of_an_earlier_release_that_is_refused_is_told_and_corrected_in_place(
    repository: SmallRepository, refused: str
) -> None:
    """Applied as that release did, without the judgement of this one."""
    repository.apply(weather(conditions=[Condition(name="warm", sql=refused)]), weather(name="other"))
    repository.write("weather/a.parquet", [("JFK", NOON, 1.0, 1), ("LGA", NOON, -1.0, 2)])
    outcome = repository.run()
    (fault,) = outcome.errors
    assert isinstance(fault, DefinitionError)
    assert [part in str(fault) for part in ("'weather@1'", "warm", "correct it", "`featurestore apply`")] == [True] * 4
    assert [view.published is not None for view in outcome.views] == [True, False]

    corrected = weather(conditions=[Condition(name="warm", sql="temp > 0")], on_violation="quarantine")
    repository.apply(corrected, weather(name="other"))
    repository.run()
    assert repository.history().column("origin").to_pylist() == ["JFK"]


# ------------------------------------------------------------------ the horizon


def test_a_future_row_waits_in_history_and_is_published_when_due_without_a_load(repository: SmallRepository) -> None:
    repository.apply(weather())
    due = NOON + hours(1)
    repository.write(
        "weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1), ("JFK", due, 2.0, 2), ("LGA", due, 3.0, 3)]
    )
    repository.done()
    repository.assert_online_is_projection()
    assert repository.history().num_rows == 3
    assert len(repository.stored()) == 1

    repository.at(due - timedelta(microseconds=1)).done(Request(load=False))
    assert len(repository.stored()) == 1
    outcome = repository.at(due).done(Request(load=False))

    assert outcome.loaded is None
    assert outcome.published is not None
    assert (outcome.published.rows_due, outcome.published.entities) == (2, 2)
    repository.assert_online_is_projection()
    assert len(repository.stored()) == 2


def test_a_row_is_due_when_it_is_known_as_well_as_true(repository: SmallRepository) -> None:
    repository.apply(weather(created=True))
    repository.write("weather/a.parquet", created_table([("JFK", NOON - hours(5), NOON + hours(2), 1.0, 1)]))
    repository.done()
    assert repository.stored() == {}
    assert repository.state.publish_state("weather@1").watermark_us is None  # type: ignore[union-attr]
    repository.at(NOON + hours(2)).done()
    repository.assert_online_is_projection()
    assert len(repository.stored()) == 1


def test_the_horizon_never_goes_back_unless_repaired(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1)])
    repository.done()
    before = repository.stored()
    with pytest.raises(InputError, match=r"a publish never goes back in time; pass a later --now, or --repair"):
        repository.at(NOON - timedelta(microseconds=1)).done()
    assert repository.state.publish_state("weather@1").horizon_us == NOON_US  # type: ignore[union-attr]
    assert repository.stored() == before
    repository.done(Request(repair=True))
    repository.assert_online_is_projection()


def test_the_publish_log_tells_every_publish_and_the_watermark_the_newest_visible_event(
    repository: SmallRepository,
) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [("JFK", NOON - hours(2), 1.0, 1), ("JFK", NOON + hours(1), 1.0, 1)])
    repository.done()
    repository.write("weather/b.parquet", [("LGA", NOON - hours(3), 1.0, 1)])
    repository.done()
    repository.at(NOON + hours(1)).done()
    same = {"view": "weather@1", "keys_repaired": 0, "kind": "publish"}

    def record(
        positions: tuple[int, int], horizons: tuple[int | None, int], watermark: int, rows: int
    ) -> PublishRecord:
        return PublishRecord(
            position_from=positions[0],
            position_to=positions[1],
            horizon_from_us=horizons[0],
            horizon_to_us=horizons[1],
            watermark_us=watermark,
            started_at_us=horizons[1],
            acknowledged_at_us=horizons[1],
            rows_written=rows,
            **same,  # type: ignore[arg-type]
        )

    assert repository.state.publish_log("weather@1") == [
        record((0, 2), (None, NOON_US), NOON_US - 2 * HOUR_US, 1),
        record((2, 3), (NOON_US, NOON_US), NOON_US - 2 * HOUR_US, 1),
        record((3, 3), (NOON_US, NOON_US + HOUR_US), NOON_US + HOUR_US, 1),
    ]


def test_publishing_twice_writes_nothing_the_second_time(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [(f"A{n}", NOON - hours(1), 1.0, n) for n in range(35)])
    assert repository.done().published.rows_written == 35  # type: ignore[union-attr]
    again = repository.done(Request(load=False)).published
    assert again is not None
    assert (again.rows_due, again.rows_written) == (0, 0)
    repaired = repository.done(Request(load=False, repair=True)).published
    assert repaired is not None
    assert repaired.rows_due == 35
    repository.assert_online_is_projection()


def test_load_only_leaves_online_alone_and_publish_only_loads_nothing(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1)])
    outcome = repository.done(Request(publish=False))
    assert outcome.published is None
    assert repository.stored() == {}
    assert repository.state.publish_state("weather@1") is None
    repository.write("weather/b.parquet", [("LGA", NOON - hours(1), 1.0, 1)])
    assert repository.done(Request(load=False)).loaded is None
    assert repository.history().num_rows == len(repository.stored()) == 1


def test_repair_restores_rows_that_are_wrong_missing_or_strange(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [(f"A{n}", NOON - hours(1), float(n), n) for n in range(5)])
    repository.done()
    right = repository.stored()
    keys = sorted(right)
    spoil(repository, keys)
    assert repository.stored() != right

    repository.done(Request(load=False, repair=True))

    assert repository.stored() == right
    record = repository.state.publish_log("weather@1")[-1]
    assert (record.kind, record.keys_repaired) == ("repair", 3)


def test_repair_to_an_earlier_time_takes_back_what_is_not_yet_due(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write(
        "weather/a.parquet", [("JFK", NOON, 1.0, 1), ("JFK", NOON + hours(1), 2.0, 2), ("LGA", NOON + hours(1), 2.0, 2)]
    )
    repository.at(NOON + hours(1)).done()

    repository.at(NOON).done(Request(load=False, repair=True))

    repository.assert_online_is_projection()


def spoil(repository: SmallRepository, keys: list[bytes]) -> None:
    """One row lost, one with another value under the same order key, one of an entity nobody knows."""
    import pyarrow as pa

    from featurestore import String

    stored = repository.stored()
    wrong = stored[keys[1]][:-1] + bytes([stored[keys[1]][-1] ^ 1])
    repository.online.delete("weather@1", pa.array([keys[0]], pa.binary()))
    repository.online.overwrite("weather@1", pa.array([keys[1]], pa.binary()), pa.array([wrong], pa.binary()))
    nobody = encode_keys([pa.array(["nobody"])], [String])
    repository.online.overwrite("weather@1", nobody, pa.array([stored[keys[2]]], pa.binary()))


# ------------------------------------------------------------------ runs


def two_views(repository: SmallRepository) -> None:
    repository.apply(
        weather(), replace(weather(), name="broken", source=weather("data/none").source), weather(version=2)
    )


def test_a_view_that_fails_does_not_keep_the_others_from_theirs(repository: SmallRepository) -> None:
    two_views(repository)
    repository.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1)])
    outcome = repository.run()
    assert [type(error) for error in outcome.errors] == [SourceError]
    assert [view.view for view in outcome.views] == ["broken@1", "weather@1", "weather@2"]
    for ref in ("weather@1", "weather@2"):
        repository.assert_online_is_projection(ref)
        assert len(repository.stored(ref)) == 1
    run = repository.state.run(outcome.run)
    assert run.state == "failed"
    assert "data/none" in run.error
    assert run.counts["weather@1"]["loaded"]["added"] == 1
    assert "data/none" in run.counts["broken@1"]["error"]


def test_a_run_is_recorded_with_its_counts(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1)])
    first = repository.run()
    second = repository.run(Request(start=NOON - hours(9)))
    newest, oldest = repository.state.runs()
    assert [run.id for run in (oldest, newest)] == [first.run, second.run]
    assert [run.kind for run in (oldest, newest)] == ["materialize-incremental", "materialize"]
    for run, counts in ((oldest, LoadCounts(read=1, added=1)), (newest, LoadCounts(read=1, duplicates=1))):
        assert (run.state, run.error, run.views) == ("succeeded", "", ("weather@1",))
        assert run.finished_at_us is not None
        assert {name: run.counts["weather@1"]["loaded"][name] for name in ("read", "added", "duplicates")} == {
            name: getattr(counts, name) for name in ("read", "added", "duplicates")
        }


def test_an_interrupted_run_is_recorded_as_such_and_resumes_where_it_stopped(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [(f"A{n}", NOON - hours(1), 1.0, n) for n in range(35)])
    seen: list[int] = []

    def interrupt(view: str, step: str, rows: int) -> None:
        seen.append(rows)
        if len(seen) == 2:
            raise KeyboardInterrupt

    jobs = replace(repository.materializer(), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(list(repository.registry.views().values()), Request())
    assert repository.state.runs()[0].state == "interrupted"
    assert repository.history().num_rows == 20

    assert repository.done().loaded == LoadCounts(read=15, added=15)
    repository.assert_online_is_projection()
    repository.assert_positions_contiguous()


# ------------------------------------------------------------------ one writer a view


def test_a_second_job_on_a_view_gets_busy_naming_the_holder(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [(f"A{n}", NOON - hours(1), 1.0, n) for n in range(35)])
    with repository.start_holding() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holding weather@1\n"
        try:
            with pytest.raises(StoreBusy, match=rf"weather@1 is being written by .* pid {first.pid} \(materialize\)"):
                repository.done()
            second = repository.run_command("materialize-incremental")
        finally:
            first.kill()
            first.communicate()
    assert second.returncode == 4
    assert f"pid {first.pid} (materialize)" in second.stderr
    # The killed process's lease is in nobody's way.
    assert repository.done().loaded == LoadCounts(read=25, added=25)
    repository.assert_online_is_projection()


def test_a_job_that_lost_its_lease_writes_no_more(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/a.parquet", [(f"A{n}", NOON - hours(1), 1.0, n) for n in range(35)])

    def take_over(view: str, step: str, rows: int) -> None:
        with repository.state.database.write() as connection:
            connection.exec_driver_sql("UPDATE leases SET holder = 'bob@elsewhere pid 7', fence = fence + 1")

    jobs = replace(repository.materializer(), progress=take_over)
    outcome = jobs.run(list(repository.registry.views().values()), Request())
    (error,) = outcome.errors
    assert isinstance(error, StoreBusy)
    assert "bob@elsewhere pid 7" in str(error)
    assert repository.history().num_rows == BATCH_ROWS
    assert repository.stored() == {}
    assert repository.state.publish_log("weather@1") == []


def test_the_lease_is_renewed_while_the_job_runs_and_free_afterwards(repository: SmallRepository) -> None:
    import threading

    with held_lease(repository.state, "weather@1", 0.3) as lease:
        first = lease.lease.expires_at_us
        for _ in range(100):
            if lease.lease.expires_at_us > first:
                break
            threading.Event().wait(0.05)
        assert lease.lease.expires_at_us > first
        lease.check()
        with pytest.raises(StoreBusy):
            repository.state.acquire_lease("weather@1", "eve@elsewhere pid 1", 1)
    taken = repository.state.acquire_lease("weather@1", "eve@elsewhere pid 1", 60)
    with pytest.raises(StoreBusy, match="eve@elsewhere"), held_lease(repository.state, "weather@1", 1):
        pass
    repository.state.release_lease(taken)


def test_a_failing_job_lets_go_of_its_lease(repository: SmallRepository) -> None:
    repository.apply(weather("data/none"))
    with pytest.raises(FeatureStoreError):
        repository.done()
    with held_lease(repository.state, "weather@1", 1) as lease:
        lease.check()
