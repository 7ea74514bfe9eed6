"""The state of jobs: blocks of sequences, publish states, leases, runs, cursors."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.errors import NotFoundError, StoreBusy
from featurestore.registry.registry import open_state
from featurestore.registry.state import PublishRecord, PublishState, StateStore
from tests.fix_registry import on_both

pytestmark = on_both

REF = "weather@1"
RECORD = PublishRecord(
    view=REF,
    position_from=0,
    position_to=12,
    horizon_from_us=None,
    horizon_to_us=1_000,
    watermark_us=900,
    started_at_us=1_001,
    acknowledged_at_us=1_002,
    rows_written=5,
    keys_repaired=0,
    kind="publish",
)


# ------------------------------------------------------------------ sequences


def test_blocks_of_sequences_begin_at_one_and_follow_each_other(state: StateStore) -> None:
    assert [state.take_sequences(REF, count) for count in (3, 1, 0, 5)] == [1, 4, 5, 5]
    assert state.take_sequences("other@1", 1) == 1


def test_projects_in_one_database_do_not_see_each_other(where: Path | str, state: StateStore) -> None:
    other_registry, other = open_state(where, "other")
    state.take_sequences(REF, 10)
    lease = state.acquire_lease(REF, "a", 60)
    state.commit_publish(RECORD, lease)
    run = state.start_run("materialize", [REF])
    assert other.take_sequences(REF, 1) == 1
    assert other.publish_state(REF) is None
    assert other.runs() == []
    assert other.acquire_lease(REF, "b", 60).fence == 1
    with pytest.raises(NotFoundError):
        other.run(run.id)
    other_registry.close()


# ------------------------------------------------------------------ publishing


def test_publish_state_and_log_change_together(state: StateStore) -> None:
    assert state.publish_state(REF) is None
    lease = state.acquire_lease(REF, "a", 60)
    second = replace(RECORD, position_from=12, position_to=20, horizon_from_us=1_000, horizon_to_us=2_000, kind="push")
    state.commit_publish(RECORD, lease)
    state.commit_publish(second, lease)
    expected = PublishState(position=20, horizon_us=2_000, watermark_us=900, acknowledged_at_us=1_002)
    assert state.publish_state(REF) == expected
    assert state.publish_log(REF) == [RECORD, second]
    assert state.publish_log("other@1") == []


def test_a_lost_lease_can_neither_publish_nor_move_a_cursor(state: StateStore) -> None:
    lost = state.acquire_lease(REF, "a", 0.001)
    time.sleep(0.01)
    taken = state.acquire_lease(REF, "b", 60)
    assert taken.fence == lost.fence + 1
    for attempt in (
        lambda: state.commit_publish(RECORD, lost),
        lambda: state.set_cursor(REF, {"file": 1}, lost),
        lambda: state.renew_lease(lost, 60),
        lambda: state.check_lease(lost),
    ):
        with pytest.raises(StoreBusy, match="taken over by b"):
            attempt()
    assert state.publish_state(REF) is None
    assert state.publish_log(REF) == []
    assert state.cursor(REF) is None


def test_forget_drops_all_but_the_fence(state: StateStore) -> None:
    lease = state.acquire_lease(REF, "a", 60)
    state.take_sequences(REF, 5)
    state.set_cursor(REF, {"seen": ["a.csv"]}, lease)
    state.commit_publish(RECORD, lease)
    state.release_lease(lease)
    state.forget(REF)
    assert state.publish_state(REF) is None
    assert state.publish_log(REF) == []
    assert state.cursor(REF) is None
    assert state.take_sequences(REF, 1) == 1
    assert state.acquire_lease(REF, "a", 60).fence == lease.fence + 1


# ------------------------------------------------------------------ leases


def test_a_second_writer_is_told_who_holds_the_view_and_since_when(state: StateStore) -> None:
    state.acquire_lease(REF, "ana@laptop pid 1 (materialize)", 60)
    with pytest.raises(StoreBusy, match=r"weather@1 is being written by ana@laptop .* since 20\d\d-.*; wait"):
        state.acquire_lease(REF, "ben", 60)
    with pytest.raises(StoreBusy):  # two threads of one process are two writers
        state.acquire_lease(REF, "ana@laptop pid 1 (materialize)", 60)


def test_a_released_lease_is_free_at_once_and_holds_nothing(state: StateStore) -> None:
    lease = state.acquire_lease(REF, "a", 60)
    state.release_lease(lease)
    with pytest.raises(StoreBusy, match="released"):
        state.check_lease(lease)
    taken = state.acquire_lease(REF, "b", 60)
    assert (taken.view, taken.holder, taken.fence) == (REF, "b", 2)
    state.check_lease(taken)


def test_releasing_a_lost_lease_does_not_free_the_new_one(state: StateStore) -> None:
    lost = state.acquire_lease(REF, "a", 0.001)
    time.sleep(0.01)
    taken = state.acquire_lease(REF, "b", 60)
    state.release_lease(lost)
    state.check_lease(taken)


def test_a_late_lease_that_nobody_took_still_holds(state: StateStore) -> None:
    lease = state.acquire_lease(REF, "a", 0.001)
    time.sleep(0.01)
    state.commit_publish(RECORD, lease)
    renewed = state.renew_lease(lease, 60)
    assert renewed.expires_at_us > lease.expires_at_us
    with pytest.raises(StoreBusy):
        state.acquire_lease(REF, "b", 60)


# ------------------------------------------------------------------ runs and cursors


def test_a_run_tells_how_it_ended(state: StateStore) -> None:
    run = state.start_run("materialize", [REF, "other@2"])
    assert state.run(run.id) == run
    assert run.state == "running"
    state.finish_run(run.id, "failed", {"read": 10, "views": {REF: 3}}, "boom")
    ended = state.run(run.id)
    assert (ended.state, ended.counts, ended.error) == ("failed", {"read": 10, "views": {REF: 3}}, "boom")
    assert ended.finished_at_us is not None
    assert ended.finished_at_us >= ended.started_at_us


def test_runs_come_newest_first_and_bounded(state: StateStore) -> None:
    made = []
    for _ in range(4):
        made.append(state.start_run("load", [REF]).id)
        time.sleep(0.002)
    assert [run.id for run in state.runs(limit=3)] == made[:0:-1]


def test_an_unknown_run_is_named(state: StateStore) -> None:
    with pytest.raises(NotFoundError, match="no run named 'x'"):
        state.run("x")
    with pytest.raises(NotFoundError):
        state.finish_run("x", "succeeded", {})


def test_a_cursor_is_whatever_its_loader_wrote(state: StateStore) -> None:
    lease = state.acquire_lease(REF, "a", 60)
    cursor = {"files": [{"path": "é.csv", "size": 2**60}], "newest_us": None}
    state.set_cursor(REF, {"old": 1}, lease)
    state.set_cursor(REF, cursor, lease)
    assert state.cursor(REF) == cursor
