"""The near cache answers what the store would have answered at most a bound ago, and says so when it cannot know."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import StoreUnreachable
from featurestore.online.base import OnlineStore
from featurestore.online.keys import BUCKETS, bucket_of
from featurestore.online.reading import AsyncReader, Fetched, Standing, Wanted, WantedTokens
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from featurestore.online.sqlite import SqliteOnlineStore
from serving.cached_reader import CachedReader
from serving.near_cache import ENTRY_BYTES, NearCache
from tests.fix_online_store import VIEW, keys_of, rows_at
from tests.fix_redis import RedisFarm, RedisProcess
from tests.waiting import WAIT_S

BOUND_S = 1.0
ALL = np.arange(BUCKETS, dtype=np.uint16)


class Ticks:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A reader that counts the rows asked of it, and fails when told to."""

    def __init__(self, reader: AsyncReader) -> None:
        self.reader, self.rows, self.tokens, self.away = reader, 0, 0, False

    async def connect(self) -> None:
        await self.reader.connect()

    async def fetch(self, wanted: Sequence[Wanted], tokens: Sequence[WantedTokens] = ()) -> Fetched:
        if self.away:
            raise StoreUnreachable("away")
        self.rows += sum(len(asked.keys) for asked in wanted)
        self.tokens += sum(len(asked.buckets) for asked in tokens)
        return await self.reader.fetch(wanted, tokens)

    async def close(self) -> None:
        await self.reader.close()


class Bench:
    """A store, a reader of it that is watched, and the cache between."""

    def __init__(self, store: OnlineStore, unconfirmed_max_s: float, bytes_max: int = 1 << 20) -> None:
        self.store, self.ticks = store, Ticks()
        self.below = Watched(store.reader(5.0))
        self.cache = NearCache(bytes_max, BOUND_S, self.ticks)
        self.reader = CachedReader(self.below, self.cache, unconfirmed_max_s)

    async def rows(self, *numbers: int) -> list[bytes | None]:
        return (await self.fetched(*numbers)).rows[0].to_pylist()

    async def fetched(self, *numbers: int) -> Fetched:
        keys = keys_of(*numbers)
        return await self.reader.fetch([Wanted(VIEW, keys, bucket_of(keys))])

    async def confirm(self) -> None:
        """Read the tokens in use, as the reader does all the time."""
        buckets = self.cache.used_buckets(VIEW)
        told = await self.below.fetch([], [WantedTokens(VIEW, buckets)])
        self.cache.heard(VIEW, buckets, told.tokens[0], self.ticks())


@pytest.fixture(params=("sqlite", "valkey"))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened: OnlineStore
    if request.param == "sqlite":
        opened = SqliteOnlineStore(tmp_path / "online.db", "flights")
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        opened = RedisOnlineStore(f"flights_{uuid.uuid4().hex}", farm.address("valkey"))
    yield opened
    opened.close()


@asynccontextmanager
async def caching(store: OnlineStore, unconfirmed_max_s: float = 0.0) -> AsyncIterator[Bench]:
    """Without the task that reads tokens: the tests say when that happens."""
    bench = Bench(store, unconfirmed_max_s)
    await bench.below.connect()
    try:
        yield bench
    finally:
        await bench.reader.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await work()

    asyncio.run(bounded())


def listed(rows: pa.BinaryArray) -> list[bytes | None]:
    values: list[bytes | None] = rows.to_pylist()
    return values


def test_what_is_current_is_answered_without_the_store_absent_rows_too(store: OnlineStore) -> None:
    stored = rows_at(1, 10, 20)
    store.write(VIEW, keys_of(1, 2), stored)

    async def work() -> None:
        async with caching(store) as bench:
            expected = [*listed(stored), None]
            assert await bench.rows(1, 2, 9) == expected
            asked = bench.below.rows
            bench.ticks.now += BOUND_S
            assert await bench.rows(9, 2, 1, 1) == [None, expected[1], expected[0], expected[0]]
            assert bench.below.rows == asked == 3
            assert (bench.cache.counts[VIEW].hits, bench.cache.counts[VIEW].misses) == (4, 3)

    run(work)


def test_a_token_older_than_the_bound_confirms_nothing_until_it_is_read_again(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 10))

    async def work() -> None:
        async with caching(store) as bench:
            await bench.rows(1)
            bench.ticks.now += BOUND_S + 0.001
            await bench.rows(1)
            assert bench.below.rows == 2
            bench.ticks.now += BOUND_S
            await bench.confirm()
            bench.ticks.now += BOUND_S
            await bench.rows(1)
            assert bench.below.rows == 2

    run(work)


def test_a_change_is_seen_within_the_bound_and_drops_its_own_bucket_only(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(*range(50)), rows_at(1, *range(50)))

    async def work() -> None:
        async with caching(store) as bench:
            await bench.rows(*range(50))
            later = rows_at(2, 7000)
            store.write(VIEW, keys_of(7), later)
            bench.ticks.now += BOUND_S / 2
            await bench.confirm()
            before = bench.below.rows
            assert (await bench.rows(*range(50)))[7:8] == listed(later)
            touched = int(np.count_nonzero(bucket_of(keys_of(*range(50))) == bucket_of(keys_of(7))))
            assert bench.below.rows - before == touched

    run(work)


def test_a_store_that_lost_its_rows_drops_everything(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(1, 2), rows_at(1, 10, 20))

    async def work() -> None:
        async with caching(store) as bench:
            await bench.rows(1, 2)
            bench.cache.heard(VIEW, ALL, np.zeros(BUCKETS, dtype=np.int64), bench.ticks() + 1)
            assert len(bench.cache) == 0
            before = bench.below.rows
            await bench.rows(1, 2)
            assert bench.below.rows - before == 2

    run(work)


def test_answers_that_cross_on_the_way_leave_the_later_token() -> None:
    cache = NearCache(1 << 20, BOUND_S, ticks := Ticks())
    keys = keys_of(1)
    wanted = Wanted(VIEW, keys, bucket_of(keys))

    cache.heard(VIEW, wanted.buckets, np.array([20]), asked_at=ticks())
    cache.keep(VIEW, keys.to_pylist(), [b"new"], np.array([20]))
    # Asked before the later answer was told, so it may be older; it drops nothing and confirms nothing.
    cache.heard(VIEW, wanted.buckets, np.array([10]), asked_at=ticks() - 0.5)
    assert cache.look(wanted).rows() == [b"new"]
    assert cache.look(wanted).whole
    cache.keep(VIEW, keys.to_pylist(), [b"old"], np.array([10]))
    assert not cache.look(wanted).whole, "a row read with an older token is not current"


def test_without_a_store_rows_are_refused_or_told_to_be_unconfirmed(store: OnlineStore) -> None:
    stored = rows_at(1, 10, 20)
    store.write(VIEW, keys_of(1, 2), stored)

    async def work() -> None:
        for longest_s in (0.0, 60.0):
            async with caching(store, unconfirmed_max_s=longest_s) as bench:
                await bench.rows(1)
                bench.ticks.now += BOUND_S / 2
                bench.below.away = True
                assert await bench.rows(1) == listed(stored)[:1], "still current"
                if not longest_s:
                    with pytest.raises(StoreUnreachable):
                        await bench.rows(1, 2)
                    continue
                bench.ticks.now += BOUND_S
                fetched = await bench.fetched(1, 2)
                assert listed(fetched.rows[0]) == [listed(stored)[0], None]
                assert fetched.standings is not None
                assert fetched.standings[0].tolist() == [Standing.UNCONFIRMED, Standing.UNKNOWN]
                bench.ticks.now += longest_s
                fetched = await bench.fetched(1)
                assert fetched.standings is not None
                assert fetched.standings[0].tolist() == [Standing.UNKNOWN]
                bench.below.away = False
                assert (await bench.fetched(1)).standings is None

    run(work)


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    each = ENTRY_BYTES + 100
    cache = NearCache(100 * each, BOUND_S, Ticks())
    cache.heard(VIEW, ALL, np.ones(BUCKETS, dtype=np.int64), asked_at=100.0)
    popular = keys_of(0)
    name = popular[0].as_py()
    row = bytes(100 - len(name))
    for number in range(1000):
        key = keys_of(number)[0].as_py()
        cache.keep(VIEW, [key], [bytes(100 - len(key))], np.array([1]))
        assert cache.size_bytes <= cache.bytes_max + each
        assert cache.look(Wanted(VIEW, popular, bucket_of(popular))).rows() == [row]
    assert len(cache) <= 101


def test_the_cache_follows_a_server_that_is_flushed_and_written_again(tmp_path: Path) -> None:
    async def work(server: RedisProcess) -> None:
        store = RedisOnlineStore("flights", RedisAddress(url=server.url))
        cache = NearCache(1 << 20, 0.2)
        reader = CachedReader(store.reader(2.0), cache)
        keys = keys_of(1, 2, 3)
        wanted = Wanted(VIEW, keys, bucket_of(keys))
        store.write(VIEW, keys, rows_at(5, 10, 20, 30))
        await reader.connect()
        try:
            assert None not in listed((await reader.fetch([wanted])).rows[0])
            server.client.flushall()
            await until(lambda: empty(reader, wanted))
            newer = rows_at(6, 11, 21, 31)
            store.write(VIEW, keys, newer)
            await until(lambda: equal(reader, wanted, listed(newer)))

            async def current_after_a_rest() -> bool:
                misses = cache.counts[VIEW].misses
                await asyncio.sleep(0.6)
                await reader.fetch([wanted])
                return cache.counts[VIEW].misses == misses

            # Tokens in use are kept current without being asked for, but where the machine stalls.
            await until(current_after_a_rest)
        finally:
            await reader.close()
            store.close()

    with RedisProcess(tmp_path / "redis") as server:
        run(lambda: work(server))


async def empty(reader: CachedReader, wanted: Wanted) -> bool:
    return listed((await reader.fetch([wanted])).rows[0]) == [None] * len(wanted.keys)


async def equal(reader: CachedReader, wanted: Wanted, rows: list[bytes | None]) -> bool:
    return listed((await reader.fetch([wanted])).rows[0]) == rows


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Within the time that the test has."""
    while not await holds():
        await asyncio.sleep(0.02)


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 9), st.integers(1, 50)),
            st.tuples(st.just("read"), st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True)),
            st.tuples(st.just("wait"), st.floats(0, 1.5)),
            st.tuples(st.just("confirm")),
        ),
        max_size=40,
    )
)
def test_every_answer_was_the_store_s_at_some_instant_within_the_bound(steps: list[tuple[Any, ...]]) -> None:
    """Against a log of what each key held since when, by the clock that the cache uses."""

    async def work(store: OnlineStore) -> None:
        async with caching(store) as bench:
            held: dict[int, list[tuple[float, bytes | None]]] = {n: [(0.0, None)] for n in range(13)}
            for step in steps:
                bench.ticks.now += 0.001
                if step[0] == "write":
                    _, number, sequence = step
                    row = rows_at(sequence, number)
                    if store.write(VIEW, keys_of(number), row):
                        held[number].append((bench.ticks.now, row[0].as_py()))
                elif step[0] == "wait":
                    bench.ticks.now += step[1]
                elif step[0] == "confirm":
                    await bench.confirm()
                else:
                    for number, row in zip(step[1], await bench.rows(*step[1]), strict=True):
                        since = bench.ticks.now - BOUND_S
                        ended = [at for at, _ in held[number][1:]] + [float("inf")]
                        allowed = [was for (_, was), end in zip(held[number], ended, strict=True) if end >= since]
                        assert row in allowed

    with tempfile.TemporaryDirectory() as folder:
        opened = SqliteOnlineStore(Path(folder) / "online.db", "flights")
        try:
            asyncio.run(work(opened))
        finally:
            opened.close()
