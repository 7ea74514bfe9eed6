"""Pushed rows, one promise a test, on each pair of stores; kills have their own module (tests/faults/test_push.py)."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore, Field, Float64, Int64
from featurestore.errors import InputError, NotFoundError
from featurestore.ingest.push import PushResult, RowResult
from featurestore.offline.quarantine import Chosen
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from materialization.job import Request
from tests.fix_proxy import Proxy
from tests.fix_redis import RedisFarm
from tests.fix_repository import FIELDS, NOON, Row, SmallRepository, created_table, hours, rows_table, weather

REF = "weather@1"
A: Row = ("A", NOON - hours(2), 1.0, 1)
B: Row = ("B", NOON - hours(1), 2.0, 2)
CORRECTED: Row = ("A", NOON - hours(2), 5.0, 1)
LATER: Row = ("A", NOON + hours(1), 9.0, 9)
STORES = ["duckdb+sqlite", "duckdb+redis", "postgres+redis"]


@pytest.fixture(params=STORES)
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """A small repository on each pair of stores, with the view applied."""
    offline, online = request.param.split("+")
    sections: dict[str, Any] = {}
    if offline == "postgres":
        url = request.getfixturevalue("postgres_shared")
        sections["offline_settings"] = f'kind = "postgres"\nurl = "{url}"\nwait_s = 2'
    if online == "redis":
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        sections["online_settings"] = f'kind = "redis"\nurl = "{farm.valkey.url}"'
    small = SmallRepository(tmp_path / "repository", project=f"push_{uuid.uuid4().hex}", **sections)
    small.apply(weather())
    yield small
    small.close()


def push(repository: SmallRepository, *rows: Row, table: pa.Table | None = None) -> PushResult:
    """Push rows through the facade."""
    with repository.opened() as opened:
        return FeatureStore.of(opened).push("weather", rows_table(rows) if table is None else table)


def apply_cold(repository: SmallRepository, **changes: Any) -> None:
    """The view anew, with a bound for its temperature."""
    repository.apply()
    repository.apply(weather(schema=(Field(name="temp", dtype=Float64, ge=-50), FIELDS[1]), **changes))


def results(answer: PushResult) -> list[str]:
    return [RowResult(code).name for code in answer.results]


def assert_settled(repository: SmallRepository, *rows: Row) -> None:
    """A run later history holds just these rows, and online is its projection."""
    repository.done(Request(load=False))
    assert repository.values() == sorted(((key, at, at, *values) for key, at, *values in rows), key=repr)
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    repository.assert_verified()


def test_a_row_is_online_when_it_is_accepted_and_history_gets_it(repository: SmallRepository) -> None:
    assert results(push(repository, A, B)) == ["ACCEPTED", "ACCEPTED"]
    online = repository.stored()
    assert len(online) == 2
    assert_settled(repository, A, B)
    assert repository.stored() == online


def test_a_batch_sent_again_is_duplicates_before_and_after_it_is_history(repository: SmallRepository) -> None:
    push(repository, A, B)
    assert results(push(repository, B, A)) == ["DUPLICATE", "DUPLICATE"]
    assert_settled(repository, A, B)
    assert results(push(repository, A, B)) == ["DUPLICATE", "DUPLICATE"]
    assert_settled(repository, A, B)


def test_a_replay_never_undoes_a_correction(repository: SmallRepository) -> None:
    push(repository, A)
    assert results(push(repository, CORRECTED)) == ["CORRECTION"]
    online = repository.stored()
    assert results(push(repository, A, CORRECTED)) == ["DUPLICATE", "DUPLICATE"]
    assert repository.stored() == online
    assert_settled(repository, A, CORRECTED)
    assert results(push(repository, A)) == ["DUPLICATE"]
    assert repository.stored() == online


def test_a_replay_of_a_loaded_row_that_a_load_corrected_is_a_duplicate(repository: SmallRepository) -> None:
    for number, row in enumerate([A, CORRECTED]):
        repository.write(f"weather/{number}.parquet", [row])
        repository.done()
    online = repository.stored()
    assert results(push(repository, A, CORRECTED)) == ["DUPLICATE", "DUPLICATE"]
    assert repository.stored() == online
    assert_settled(repository, A, CORRECTED)


def test_a_loaded_row_that_a_push_corrects_stays_corrected(repository: SmallRepository) -> None:
    repository.write("weather/a.parquet", [A])
    repository.done()
    assert results(push(repository, CORRECTED)) == ["CORRECTION"]
    online = repository.stored()
    assert results(push(repository, A)) == ["DUPLICATE"]
    assert repository.stored() == online
    assert_settled(repository, A, CORRECTED)


def test_a_pushed_row_that_a_source_brings_too_counts_once(repository: SmallRepository) -> None:
    push(repository, A, B)
    repository.write("weather/a.parquet", [A, B])
    outcome = repository.done()
    assert outcome.loaded is not None
    assert (outcome.loaded.added, outcome.loaded.duplicates) == (0, 2)
    assert_settled(repository, A, B)


def test_a_row_that_was_loaded_and_not_published_comes_online_by_a_push_and_counts_once(
    repository: SmallRepository,
) -> None:
    repository.write("weather/a.parquet", [A])
    repository.done(Request(publish=False))
    push(repository, A)
    repository.assert_verified_but_pending()
    assert_settled(repository, A)


def test_a_future_row_is_durable_and_waits_until_it_is_due(repository: SmallRepository) -> None:
    assert results(push(repository, LATER)) == ["ACCEPTED"]
    assert repository.stored() == {}
    assert_settled(repository, LATER)
    assert repository.stored() == {}
    repository.at(NOON + hours(1))
    assert_settled(repository, LATER)
    assert len(repository.stored()) == 1


def test_rows_that_break_the_contract_are_rejected_one_by_one(repository: SmallRepository) -> None:
    apply_cold(repository)
    nobody: Any = (None, NOON, 1.0, 1)
    answer = push(repository, ("A", NOON, -60.0, 1), B, nobody)
    assert results(answer) == ["REJECTED", "ACCEPTED", "REJECTED"]
    told = [(row, field, rule, value) for row, field, rule, _, value in answer.rejections.listed(9)]
    assert told == [(0, "temp", "ge", "-60.0"), (2, "origin", "not_null", "null")]
    assert_settled(repository, B)


@pytest.mark.parametrize("rows", [1, 2])
def test_quarantine_keeps_what_a_push_refuses(rows: int, repository: SmallRepository) -> None:
    apply_cold(repository, on_violation="quarantine")
    push(repository, *[("A", NOON, -60.0, 1), B][:rows])
    assert_settled(repository, *[B][: rows - 1])
    aside = repository.offline.quarantine.rows(Chosen(view=REF), limit=10)
    assert aside.select(["run", "rule", "field", "source"]).to_pylist() == [
        {"run": "push", "rule": "ge", "field": "temp", "source": "push"}
    ]


def test_a_view_that_warns_takes_the_row(repository: SmallRepository) -> None:
    apply_cold(repository, on_violation="warn")
    frost: Row = ("A", NOON, -60.0, 1)
    assert results(push(repository, frost)) == ["ACCEPTED"]
    assert_settled(repository, frost)


def test_a_row_twice_in_a_batch_is_taken_once(repository: SmallRepository) -> None:
    assert sorted(results(push(repository, A, A))) == ["ACCEPTED", "DUPLICATE"]
    assert_settled(repository, A)


def test_a_row_pushed_before_a_field_came_is_known_after(repository: SmallRepository) -> None:
    push(repository, A)
    gust = Field(name="gust", dtype=Int64)
    repository.apply(weather(schema=(*FIELDS, gust)))
    again = rows_table([A]).append_column("gust", pa.nulls(1, pa.int64()))
    assert results(push(repository, table=again)) == ["DUPLICATE"]
    repository.done(Request(load=False))
    assert repository.history().column("gust").to_pylist() == [None]
    repository.assert_verified()


def test_a_created_timestamp_counts_for_visibility_and_order(repository: SmallRepository) -> None:
    repository.apply(weather(created=True, version=2))
    rows = [("A", NOON - hours(3), NOON + hours(1), 1.0, 1), ("A", NOON - hours(4), NOON - hours(4), 2.0, 2)]
    assert results(push(repository, table=created_table(rows))) == ["ACCEPTED", "ACCEPTED"]
    assert repository.online.count("weather@2") == 1


def test_a_repair_keeps_pushed_rows(repository: SmallRepository) -> None:
    repository.write("weather/a.parquet", [B])
    repository.done()
    push(repository, A)
    repository.done(Request(load=False, repair=True))
    assert len(repository.stored()) == 2
    repository.assert_online_is_projection()


def test_a_row_pushed_while_a_repair_runs_is_online_when_it_is_done(repository: SmallRepository) -> None:
    repository.write("weather/a.parquet", [A, B])
    repository.done()
    repository.online.drop(REF)
    answers: list[PushResult] = []

    def meanwhile(_: str, step: str, rows: int) -> None:
        """What is to be written is known by then, and is written over whatever stands there."""
        if step == "publish" and not answers:
            answers.append(push(repository, ("A", NOON, 4.0, 4), ("C", NOON, 5.0, 5)))

    jobs = replace(repository.materializer(), progress=meanwhile)
    outcome = jobs.run([repository.registry.view("weather")], Request(load=False, repair=True))

    assert outcome.errors == []
    assert results(answers[0]) == ["ACCEPTED", "ACCEPTED"]
    repository.assert_online_is_projection()
    assert len(repository.stored()) == 3


def test_a_key_too_long_for_the_online_store_is_refused_before_it_is_kept(repository: SmallRepository) -> None:
    with pytest.raises(InputError, match="bytes"):
        push(repository, ("A" * 2000, NOON, 1.0, 1))
    assert_settled(repository)


def test_a_push_moves_the_watermark_that_freshness_is_judged_by(repository: SmallRepository) -> None:
    push(repository, B, LATER)
    state = repository.state.publish_state(REF)
    assert state is not None
    assert state.watermark_us == int((NOON - hours(1)).timestamp()) * 1_000_000
    repository.done(Request(load=False))
    assert repository.state.publish_state(REF).watermark_us == state.watermark_us  # type: ignore[union-attr]


def test_verify_takes_pushed_rows_for_equal_wherever_they_wait(repository: SmallRepository) -> None:
    repository.write("weather/a.parquet", [B])
    repository.done()
    push(repository, A, ("B", NOON, 7.0, 7))
    repository.assert_verified_but_pending()


def test_a_pushed_row_is_in_the_next_training_set(repository: SmallRepository) -> None:
    push(repository, A)
    with repository.opened() as opened:
        spine = pa.table({"origin": ["A"], "as_of": [NOON]})
        got = FeatureStore.of(opened).get_historical_features(spine, features=["weather:temp"])
    assert got.to_arrow().column("temp").to_pylist() == [1.0]


def test_as_served_knows_pushed_rows_from_their_acknowledgement(repository: SmallRepository) -> None:
    repository.write("weather/a.parquet", [A, ("B", NOON - hours(9), 0.0, 0)])
    repository.done()
    repository.at(NOON + hours(1))
    push(repository, ("A", NOON + timedelta(minutes=50), 8.0, 8), ("B", NOON + hours(3), 3.0, 3))
    repository.at(NOON + hours(4))
    repository.done(Request(load=False))
    asked = [("A", 0.5), ("A", 2), ("B", 2), ("B", 3.5), ("B", 4.5)]
    spine = pa.table({"origin": [key for key, _ in asked], "as_of": [NOON + hours(after) for _, after in asked]})
    with repository.opened() as opened:
        got = FeatureStore.of(opened).get_historical_features(spine, features=["weather:temp"], knowledge="as_served")
    assert got.to_arrow().column("temp").to_pylist() == [1.0, 8.0, 0.0, 0.0, 3.0]


def test_what_drops_a_view_drops_what_was_pushed_to_it(repository: SmallRepository) -> None:
    push(repository, A)
    repository.apply()
    repository.apply(weather())
    assert results(push(repository, A)) == ["ACCEPTED"]
    assert_settled(repository, A)


def test_faults_of_the_caller_are_named(repository: SmallRepository) -> None:
    with pytest.raises(NotFoundError, match="wether"), repository.opened() as opened:
        FeatureStore.of(opened).push("wether", rows_table([A]))
    with pytest.raises(InputError, match="lacks the column 'temp'"):
        push(repository, table=rows_table([A]).drop_columns(["temp"]))
    with pytest.raises(InputError, match="no table"), repository.opened() as opened:
        FeatureStore.of(opened).push("weather", {"origin": ["A", "B"], "at": [NOON]})
    with pytest.raises(InputError, match="a list"), repository.opened() as opened:
        FeatureStore.of(opened).push("weather", [1])
    assert repository.stored() == {}


@pytest.mark.parametrize("offline", ["duckdb", "postgres"])
def test_rows_are_pending_while_redis_is_away_and_the_next_publish_delivers_them(
    offline: str, request: pytest.FixtureRequest, tmp_path: Path, redis_farm: RedisFarm
) -> None:
    sections: dict[str, Any] = {"online_settings": f'kind = "redis"\nurl = "{redis_farm.valkey.url}"'}
    if offline == "postgres":
        url = request.getfixturevalue("postgres_shared")
        sections["offline_settings"] = f'kind = "postgres"\nurl = "{url}"\nwait_s = 2'
    small = SmallRepository(tmp_path / "repository", project=f"push_{uuid.uuid4().hex}", **sections)
    small.apply(weather())
    with small.opened() as opened:
        with Proxy(redis_farm.valkey.port) as proxy:
            address = RedisAddress(url=f"redis://127.0.0.1:{proxy.port}", retries=0)
            opened.online = RedisOnlineStore(small.project, address)
            assert results(opened.pusher.push("weather", rows_table([B]))) == ["ACCEPTED"]
        answer = opened.pusher.push("weather", rows_table([A, LATER]))
    assert results(answer) == ["PENDING", "ACCEPTED"]
    assert answer.pending_reason
    assert results(push(small, A)) == ["DUPLICATE"]
    assert len(small.stored()) == 1
    assert_settled(small, A, B, LATER)
    assert len(small.stored()) == 2
    small.close()


def test_a_batch_of_all_results_counts_each(repository: SmallRepository) -> None:
    push(repository, A)
    nobody: Any = (None, NOON, 1.0, 1)
    answer = push(repository, A, CORRECTED, B, nobody)
    assert Counter(results(answer)) == Counter(["DUPLICATE", "CORRECTION", "ACCEPTED", "REJECTED"])
    assert answer.counts == {"accepted": 1, "duplicate": 1, "correction": 1, "pending": 0, "rejected": 1}
