"""Every online store: one suite on SQLite, Redis, Valkey, TLS, an ACL user with the documented rights, a Cluster."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.online.base import OnlineStore
from featurestore.online.keys import BUCKETS, bucket_of
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from featurestore.online.row_codec import OrderKeys, RowEncoder
from featurestore.online.sqlite import SqliteOnlineStore
from featurestore.repository import Repository
from tests.fix_online_store import ALL_BUCKETS, FIELDS, VIEW, buckets, keys_of, raised, rows_at, rows_of, values_of
from tests.fix_properties import SHARED_FIXTURES
from tests.fix_redis import KINDS, RedisFarm


@dataclass(frozen=True)
class Place:
    """Where a test's rows are; projects get names of their own, since servers are shared."""

    at: Path | RedisAddress
    test: str

    def open(self, project: str = "flights") -> OnlineStore:
        if isinstance(self.at, Path):
            return SqliteOnlineStore(self.at, project, busy_timeout_s=60)
        return RedisOnlineStore(f"{project}_{self.test}", self.at)


@pytest.fixture(params=("sqlite", *KINDS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(tmp_path / "online.db", "")
    farm: RedisFarm = request.getfixturevalue("redis_farm")
    return Place(farm.address(request.param), uuid.uuid4().hex)


@pytest.fixture
def store(place: Place) -> Iterator[OnlineStore]:
    opened = place.open()
    yield opened
    opened.close()


def test_rows_come_back_in_the_order_asked_with_nulls_and_repeats(store: OnlineStore) -> None:
    assert store.write(VIEW, keys_of(1, 2, 3), rows_at(1, 10, 20, 30)) == 3

    rows = store.read(VIEW, keys_of(3, None, 9, 1, 3, 2, None))

    assert values_of(rows) == [30, None, None, 10, 30, 20, None]
    assert store.read(VIEW, keys_of()).equals(pa.array([], pa.binary()))
    assert store.read(VIEW, keys_of(None, None)).to_pylist() == [None, None]
    assert store.read("unknown@1", keys_of(1, None)).to_pylist() == [None, None]


def test_only_a_later_row_replaces_and_the_winners_are_counted(store: OnlineStore) -> None:
    assert store.write(VIEW, keys_of(1, 2), rows_at(5, 10, 20)) == 2
    assert store.write(VIEW, keys_of(1, 2), rows_at(5, 10, 20)) == 0
    assert store.write(VIEW, keys_of(1, 2, 3), rows_at(4, 11, 21, 31)) == 1
    assert store.write(VIEW, keys_of(1), rows_at(6, 12)) == 1

    assert values_of(store.read(VIEW, keys_of(1, 2, 3))) == [12, 20, 31]


def test_negative_times_and_sequences_order_below_positive_ones(store: OnlineStore) -> None:
    encoder = RowEncoder(1, FIELDS)

    def row(event_us: int, created_us: int, sequence: int, value: int) -> pa.BinaryArray:
        order = OrderKeys(*(np.array([number], dtype=np.int64) for number in (event_us, created_us, sequence)))
        return encoder.encode(order, [pa.array([value]), pa.array([""])])

    ascending = [(-(2**62), 5, 9), (-1, 9, 9), (0, -1, 9), (0, 0, 1), (0, 0, 2), (0, 1, 1), (1, -5, 1), (2**62, -9, 1)]
    for value, order in enumerate(ascending):
        assert store.write(VIEW, keys_of(1), row(*order, value)) == 1
    for value, order in enumerate(ascending):
        assert store.write(VIEW, keys_of(1), row(*order, value)) == 0
    assert values_of(store.read(VIEW, keys_of(1))) == [len(ascending) - 1]


def test_of_a_key_twice_in_one_batch_the_later_row_stays(store: OnlineStore) -> None:
    rows = pa.concat_arrays([rows_at(2, 20), rows_at(3, 30), rows_at(1, 10)])

    store.write(VIEW, keys_of(1, 1, 1), rows)

    assert values_of(store.read(VIEW, keys_of(1))) == [30]
    assert store.count(VIEW) == 1


def test_tokens_rise_only_in_buckets_where_something_was_written(store: OnlineStore) -> None:
    nothing = store.tokens(VIEW, ALL_BUCKETS)
    assert not nothing.any()
    store.write(VIEW, keys_of(*range(50)), rows_at(5, *range(50)))
    written = store.tokens(VIEW, ALL_BUCKETS)
    assert set(np.flatnonzero(written).tolist()) == buckets(*range(50))

    store.write(VIEW, keys_of(*range(50)), rows_at(5, *range(50)))
    assert raised(store, written) == set()

    mixed = pa.concat_arrays([rows_at(4, *range(40)), rows_at(6, *range(40, 50))])
    assert store.write(VIEW, keys_of(*range(50)), mixed) == 10
    assert raised(store, written) == buckets(*range(40, 50))
    assert not store.tokens("other@1", ALL_BUCKETS).any()


def test_tokens_are_aligned_with_the_buckets_asked_for(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 1))
    store.write(VIEW, keys_of(1), rows_at(2, 1))
    (bucket,) = buckets(1)
    other = (bucket + 1) % BUCKETS

    asked = np.array([other, bucket, bucket, other], dtype=np.uint16)

    none, token, again, other_none = store.tokens(VIEW, asked).tolist()
    assert (none, other_none) == (0, 0)
    assert token == again > 0
    assert store.tokens(VIEW, asked[:0]).tolist() == []


def test_views_and_projects_in_one_store_do_not_see_each_other(store: OnlineStore, place: Place) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 10))
    store.write("weather@2", keys_of(1), rows_at(1, 20))
    other = place.open("staging")
    other.write(VIEW, keys_of(1), rows_at(1, 30))

    assert values_of(store.read(VIEW, keys_of(1))) == [10]
    assert values_of(store.read("weather@2", keys_of(1))) == [20]
    assert values_of(other.read(VIEW, keys_of(1))) == [30]
    assert other.drop(VIEW) == 1
    assert store.count(VIEW) == 1
    other.close()


def test_scan_gives_every_row_once_by_bucket_then_key(store: OnlineStore) -> None:
    numbers = list(range(500))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))

    batches = list(store.scan(VIEW, 70))

    assert [len(keys) for keys, _ in batches] == [70] * 7 + [10]
    keys = pa.concat_arrays([keys for keys, _ in batches])
    rows = pa.concat_arrays([rows for _, rows in batches])
    order = list(zip(bucket_of(keys).tolist(), keys.to_pylist(), strict=True))
    assert order == sorted(order)
    assert sorted(keys.to_pylist()) == sorted(keys_of(*numbers).to_pylist())
    assert store.read(VIEW, keys).equals(rows)
    assert list(store.scan("unknown@1", 10)) == []


def test_rows_written_during_a_scan_hide_no_other(store: OnlineStore) -> None:
    numbers = list(range(300))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))
    seen: list[bytes] = []

    for step, (keys, _) in enumerate(store.scan(VIEW, 50)):
        seen += keys.to_pylist()
        store.write(VIEW, keys_of(1000 + step), rows_at(1, 1))

    assert len(seen) == len(set(seen))
    assert set(keys_of(*numbers).to_pylist()) <= set(seen)


def test_delete_and_overwrite_repair_and_raise_tokens(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(1, 2, 3), rows_at(5, 10, 20, 30))
    before = store.tokens(VIEW, ALL_BUCKETS)

    assert store.delete(VIEW, keys_of(1, 9, 1)) == 1
    assert raised(store, before) == buckets(1)
    assert values_of(store.read(VIEW, keys_of(1, 2))) == [None, 20]

    before = store.tokens(VIEW, ALL_BUCKETS)
    assert store.overwrite(VIEW, keys_of(2, 3), pa.concat_arrays([rows_at(1, 21), rows_at(5, 30)])) == 1
    assert raised(store, before) == buckets(2)
    assert values_of(store.read(VIEW, keys_of(2, 3))) == [21, 30]


def test_many_threads_read_and_write_one_store(store: OnlineStore) -> None:
    numbers = list(range(200))
    store.write(VIEW, keys_of(*numbers), rows_at(0, *numbers))
    start = threading.Barrier(8)

    def work(sequence: int) -> list[int | None]:
        start.wait()
        for step in range(5):
            store.write(VIEW, keys_of(*numbers), rows_at(1 + sequence * 5 + step, *numbers))
            assert values_of(store.read(VIEW, keys_of(*numbers))) == numbers
        return values_of(store.read(VIEW, keys_of(*numbers)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [numbers] * 8


def test_drop_takes_every_row_and_raises_their_tokens(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(*range(100)), rows_at(1, *range(100)))
    store.write("weather@2", keys_of(1), rows_at(1, 1))
    before = store.tokens(VIEW, ALL_BUCKETS)

    assert store.drop(VIEW) == 100
    assert store.count(VIEW) == 0
    assert store.count("weather@2") == 1
    assert list(store.scan(VIEW, 10)) == []
    assert raised(store, before) == buckets(*range(100))
    dropped = store.tokens(VIEW, ALL_BUCKETS)
    assert store.drop(VIEW) == store.drop("unknown@1") == 0
    assert raised(store, dropped) == set()

    store.write(VIEW, keys_of(1), rows_at(1, 10))
    assert raised(store, dropped) == buckets(1)


def test_rows_and_tokens_are_there_when_the_store_is_opened_again(place: Place) -> None:
    tokens = []
    for sequence in (1, 2):
        store = place.open()
        store.write(VIEW, keys_of(1), rows_at(sequence, sequence))
        tokens += store.tokens(VIEW, bucket_of(keys_of(1))).tolist()
        store.close()

    store = place.open()
    assert values_of(store.read(VIEW, keys_of(1))) == [2]
    assert 0 < tokens[0] < tokens[1] == store.tokens(VIEW, bucket_of(keys_of(1)))[0]
    store.close()


def test_nothing_to_do_is_done(store: OnlineStore) -> None:
    nothing = keys_of()
    assert store.write(VIEW, nothing, nothing) == store.overwrite(VIEW, nothing, nothing) == 0
    assert store.delete(VIEW, nothing) == store.count(VIEW) == 0


def test_thousands_of_rows_of_one_bucket_and_long_rows_are_kept_whole(store: OnlineStore) -> None:
    """More than one call of a script takes, and rows larger than what a call should take."""
    numbers = np.arange(3_000_000)
    own = numbers[bucket_of(keys_of(*numbers.tolist())) == 7][:700].tolist()
    long = pa.array([row + bytes(300_000) for row in rows_at(1, *own[:3]).to_pylist()], pa.binary())

    assert store.write(VIEW, keys_of(*own), rows_at(1, *own)) == len(own)
    assert store.overwrite(VIEW, keys_of(*own[:3]), long) == 3

    assert store.read(VIEW, keys_of(*own[:3])).equals(long)
    assert values_of(store.read(VIEW, keys_of(*own[3:]))) == own[3:]
    assert store.count(VIEW) == sum(len(keys) for keys, _ in store.scan(VIEW, 100)) == len(own)
    assert store.delete(VIEW, keys_of(*own)) == len(own)
    assert store.drop(VIEW) == 0


def test_many_keys_come_back_in_order(store: OnlineStore) -> None:
    rng = np.random.default_rng(7)
    present = rng.permutation(8_000)[:5_000].tolist()
    store.write(VIEW, keys_of(*present), rows_at(1, *present))
    asked = rng.integers(0, 8_000, 6_000).tolist()

    rows = store.read(VIEW, keys_of(*asked))

    known = set(present)
    assert values_of(rows) == [number if number in known else None for number in asked]


@settings(max_examples=15, suppress_health_check=SHARED_FIXTURES)
@given(
    writes=st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(-3, 9)), max_size=30), min_size=1, max_size=6),
    data=st.data(),
)
def test_whatever_the_order_and_the_repeats_the_latest_rows_stay(
    place: Place, writes: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    """Batches of (key, sequence) in an order drawn, some of them twice; the value of a row follows from both."""
    store = place.open()
    view = f"shuffled@{uuid.uuid4().int}"
    for batch in data.draw(st.permutations(writes + writes[:2])):
        numbers, sequences = [number for number, _ in batch], np.array([sequence for _, sequence in batch])
        values = [number * 100 + sequence + 10 for number, sequence in batch]
        store.write(view, keys_of(*numbers), rows_of(sequences, values))

    latest: dict[int, int] = {}
    for number, sequence in sorted({row for batch in writes for row in batch}):
        latest[number] = number * 100 + sequence + 10
    assert values_of(store.read(view, keys_of(*range(13)))) == [latest.get(number) for number in range(13)]
    assert store.count(view) == len(latest)
    store.close()


def write_shuffled(place: Place, entities: int, seed: int, barrier: threading.Barrier) -> None:
    """In a process of its own: all versions of all rows in an order of its own, in small batches."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(4 * entities)
    numbers, sequences = places % entities, places // entities + 1
    keys = keys_of(*numbers.tolist())
    none = np.zeros(len(places), dtype=np.int64)
    columns = [pa.array(sequences * 100_000 + numbers), pa.array(["x"] * len(places))]
    rows = RowEncoder(1, FIELDS).encode(OrderKeys(none, none, sequences), columns)
    barrier.wait()
    store = place.open()
    for first in range(0, len(places), 4_000):
        store.write(VIEW, keys.slice(first, 4_000), rows.slice(first, 4_000))
    store.close()


#: Three processes write four versions of each entity: 108,000 rows, and a million.
@pytest.mark.parametrize("entities", [9_000, pytest.param(84_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["sqlite", "valkey", "cluster"], indirect=True)
def test_processes_that_write_the_same_rows_shuffled_end_with_the_latest(place: Place, entities: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    writers = [spawn.Process(target=write_shuffled, args=(place, entities, seed, barrier)) for seed in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
        assert writer.exitcode == 0

    store = place.open()
    numbers = list(range(entities))
    assert store.count(VIEW) == entities
    assert values_of(store.read(VIEW, keys_of(*numbers))) == [400_000 + number for number in numbers]
    store.close()


@pytest.mark.parametrize("kind", ["acl", "tls", "cluster"])
def test_a_repository_opens_the_store_that_its_settings_name(
    redis_farm: RedisFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    address = redis_farm.address(kind)
    project = f"shop_{uuid.uuid4().hex}"
    given = {name: getattr(address, name) for name in ("url", "username", "tls_ca", "tls_cert", "tls_key")}
    lines = [f'{name} = "{value}"' for name, value in given.items() if value is not None]
    text = "\n".join(
        [f'project = "{project}"', "[online]", 'kind = "redis"', f"cluster = {str(address.cluster).lower()}", *lines]
    )
    (tmp_path / "featurestore.toml").write_text(text)
    if address.password is not None:
        (tmp_path / "password").write_text(address.password + "\n")
        monkeypatch.setenv("FEATURESTORE_ONLINE_PASSWORD_FILE", "password")

    with Repository.open(tmp_path) as repository:
        repository.online.write(VIEW, keys_of(1), rows_at(1, 10))

    store = RedisOnlineStore(project, address)
    assert values_of(store.read(VIEW, keys_of(1))) == [10]
    store.close()
