"""What is preloaded is answered without the store, within the memory given, and what was asked for is remembered."""

from __future__ import annotations

import copy
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Entity, FeatureView, Field, FileSource, Int64, String
from featurestore.errors import InputError
from featurestore.online.base import OnlineStore
from featurestore.online.keys import bucket_of
from featurestore.online.reading import Wanted
from featurestore.online.redis import RedisOnlineStore
from featurestore.online.row_codec import OrderKeys, RowEncoder
from featurestore.online.sqlite import SqliteOnlineStore
from serving import hot_keys
from serving.hot_keys import HotKeys
from serving.near_cache import NearCache
from serving.preload import Preload, PreloadLate
from tests.fix_online_store import ALL_BUCKETS, FIELDS, keys_of
from tests.fix_redis import RedisFarm

CITY = Entity(name="city", join_keys={"city": Int64})
SOURCE = FileSource(path="x.parquet", timestamp_field="event_timestamp")
WEATHER = FeatureView(name="weather", entities=[CITY], schema=FIELDS, source=SOURCE)
DELAYS = FeatureView(name="delays", entities=[CITY], schema=[Field(name="text", dtype=String)], source=SOURCE)
VIEWS = {view.ref: view for view in (WEATHER, DELAYS)}
ROWS = 400


@pytest.fixture(params=("sqlite", "valkey"))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened: OnlineStore
    if request.param == "sqlite":
        opened = SqliteOnlineStore(tmp_path / "online.db", "flights")
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        opened = RedisOnlineStore(f"flights_{uuid.uuid4().hex}", farm.address("valkey"))
    for view in VIEWS.values():
        opened.write(view.ref, keys_of(*range(ROWS)), rows(view))
    yield opened
    opened.close()


def rows(view: FeatureView) -> pa.BinaryArray:
    """The row of a city carries its number as event time."""
    event_us = np.arange(ROWS, dtype=np.int64)
    values = {"value": pa.array(event_us), "text": pa.array([f"{n:04}" for n in range(ROWS)])}
    return RowEncoder(1, view.schema).encode(
        OrderKeys(event_us, event_us, event_us), [values[field.name] for field in view.schema]
    )


def current(cache: NearCache, store: OnlineStore, ref: str) -> list[int]:
    """The cities that the cache answers, with the rows of the store, once the tokens are confirmed."""
    cache = copy.deepcopy(cache)  # looking moves entries
    cache.heard(ref, ALL_BUCKETS, store.tokens(ref, ALL_BUCKETS), cache.now())
    keys = keys_of(*range(ROWS))
    look = cache.look(Wanted(ref, keys, bucket_of(keys)))
    stored = rows(VIEWS[ref]).to_pylist()
    places: list[int] = np.flatnonzero(look.current).tolist()
    assert all(look.rows()[place] == stored[place] for place in places)
    return places


def preload(cache: NearCache, store: OnlineStore, *policies: str, **more: object) -> int:
    return Preload(cache=cache, store=store, views=VIEWS, policies=policies, hot={}, **more).run()  # type: ignore[arg-type]


def test_all_loads_everything_where_there_is_room(store: OnlineStore) -> None:
    cache = NearCache(10 << 20, 60.0)

    assert preload(cache, store, "all") == 2 * ROWS
    for ref in VIEWS:
        assert current(cache, store, ref) == list(range(ROWS))


def test_all_fills_the_memory_and_no_more_with_an_equal_part_for_each_view(store: OnlineStore) -> None:
    cache = NearCache(100_000, 60.0)

    loaded = preload(cache, store, "all")

    assert 100 < loaded < 2 * ROWS
    assert len(cache) == loaded, "nothing that was loaded was driven out again"
    assert 0.9 * cache.bytes_max < cache.size_bytes <= cache.bytes_max + 400
    parts = [len(current(cache, store, ref)) for ref in VIEWS]
    assert sum(parts) == loaded
    assert min(parts) > 0.4 * loaded


def test_recent_loads_the_rows_of_the_latest_event_times(store: OnlineStore) -> None:
    cache = NearCache(100_000, 60.0)

    loaded = preload(cache, store, "recent")

    for ref in VIEWS:
        cities = current(cache, store, ref)
        assert cities == list(range(ROWS - len(cities), ROWS))
    assert 100 < loaded < 2 * ROWS


def test_hot_loads_the_keys_that_were_asked_for_most(store: OnlineStore) -> None:
    cache = NearCache(10 << 20, 60.0)

    hot = {WEATHER.ref: keys_of(7, 3, 9999)}
    assert Preload(cache=cache, store=store, views=VIEWS, policies=["hot"], hot=hot).run() == 3
    assert current(cache, store, WEATHER.ref) == [3, 7]
    assert current(cache, store, DELAYS.ref) == []
    # Tokens are read for what was loaded, and for nothing else.
    assert cache.used_buckets(WEATHER.ref).tolist() == np.unique(bucket_of(hot[WEATHER.ref])).tolist()
    assert len(cache.used_buckets(DELAYS.ref)) == 0


def test_a_file_names_keys_by_their_join_keys(store: OnlineStore, tmp_path: Path) -> None:
    pq.write_table(pa.table({"city": pa.array([5, 5, None, 6], pa.int32())}), tmp_path / "keys.parquet")
    cache = NearCache(10 << 20, 60.0)

    assert preload(cache, store, "file", keys_file=tmp_path / "keys.parquet") == 4
    assert [current(cache, store, ref) for ref in VIEWS] == [[5, 6], [5, 6]]

    pq.write_table(pa.table({"town": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="has no view's join keys; it has town, and the views want city"):
        preload(cache, store, "file", keys_file=tmp_path / "other.parquet")


def test_a_preload_that_takes_too_long_ends_with_what_it_has(store: OnlineStore) -> None:
    cache = NearCache(10 << 20, 60.0)
    hot = {WEATHER.ref: keys_of(1, 2)}
    asked = iter([False, True])

    with pytest.raises(PreloadLate):
        Preload(cache=cache, store=store, views=VIEWS, policies=["hot", "all"], hot=hot, late=lambda: next(asked)).run()
    assert len(cache) == 2


def wanted(*cities: int) -> list[Wanted]:
    keys = keys_of(*cities)
    return [Wanted(WEATHER.ref, keys, bucket_of(keys))]


def test_hot_keys_come_back_after_a_restart_the_most_requested_first(tmp_path: Path) -> None:
    counted = HotKeys(tmp_path, worker=0)
    for _ in range(10 * hot_keys.SAMPLE):
        counted.note(wanted(1, 2))
    for _ in range(20 * hot_keys.SAMPLE):
        counted.note(wanted(2))
    counted.fold()
    counted.save()
    other = HotKeys(tmp_path, worker=1)
    for _ in range(100 * hot_keys.SAMPLE):
        other.note(wanted(3))
    other.fold()
    other.save()

    again = HotKeys(tmp_path, worker=0)

    assert again.load()[WEATHER.ref].to_pylist() == keys_of(3, 2, 1).to_pylist()


def test_keys_that_nobody_asks_for_any_more_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_keys, "KEYS_MAX", 2)
    counted = HotKeys(tmp_path)
    for _ in range(3 * hot_keys.SAMPLE):
        counted.note(wanted(1, 2))
    counted.fold()
    for _ in range(60):
        for _ in range(2 * hot_keys.SAMPLE):
            counted.note(wanted(8))
        counted.fold()
    counted.save()

    kept = HotKeys(tmp_path).load()[WEATHER.ref].to_pylist()

    assert kept[0] == keys_of(8)[0].as_py()
    assert len(kept) == 2


def test_a_damaged_file_of_hot_keys_costs_a_colder_start_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "hot-keys-0.arrow").write_bytes(b"ARROW1 and then nothing")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "hot-keys-1.arrow"), "wb") as file, pa.ipc.new_file(file, pa.schema([])) as writer:
        writer.write_table(pa.table({}))
    with caplog.at_level(logging.WARNING):
        assert HotKeys(tmp_path).load() == {}
    assert "hot-keys-0.arrow cannot be read" in caplog.text
    assert "hot-keys-1.arrow holds no hot keys of this release" in caplog.text
