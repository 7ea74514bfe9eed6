"""Reading from an event loop, on every store: the same rows as the store reads, many requests on one connection."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from redis.crc import key_slot

from featurestore.dtypes import String
from featurestore.errors import StoreBusy, StoreUnreachable
from featurestore.online.base import OnlineStore
from featurestore.online.keys import bucket_of, encode_keys
from featurestore.online.reading import AsyncReader, Wanted, WantedTokens
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from featurestore.online.sqlite import SqliteOnlineStore
from tests.fix_online_store import ALL_BUCKETS, VIEW, keys_of, rows_at, values_of
from tests.fix_redis import KINDS, RedisFarm, RedisProcess, started_cluster
from tests.unit.online.test_redis_faults import owns
from tests.waiting import WAIT_S

OTHER = "delays@2"


@pytest.fixture(params=("sqlite", *KINDS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened: OnlineStore
    if request.param == "sqlite":
        opened = SqliteOnlineStore(tmp_path / "online.db", "flights")
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        opened = RedisOnlineStore(f"flights_{uuid.uuid4().hex}", farm.address(request.param))
    yield opened
    opened.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        yield process


@asynccontextmanager
async def reading(store: OnlineStore, timeout_s: float = 30.0) -> AsyncIterator[AsyncReader]:
    reader = store.reader(timeout_s)
    try:
        await reader.connect()
        yield reader
    finally:
        await reader.close()


def wanted(*numbers: int, ref: str = VIEW) -> Wanted:
    keys = keys_of(*numbers)
    return Wanted(ref, keys, bucket_of(keys))


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await work()

    asyncio.run(bounded())


def test_all_views_and_tokens_come_in_one_call_in_the_order_wanted(store: OnlineStore) -> None:
    store.write(VIEW, keys_of(1, 2, 3), rows_at(1, 10, 20, 30))
    store.write(OTHER, keys_of(3), rows_at(1, 300))

    async def work() -> None:
        async with reading(store) as reader:
            tokens = [WantedTokens(ref, ALL_BUCKETS) for ref in (VIEW, OTHER)]
            fetched = await reader.fetch([wanted(3, 9, 1), wanted(ref=OTHER), wanted(3, 1, ref=OTHER)], tokens)

        assert [values_of(rows) for rows in fetched.rows] == [[30, None, 10], [], [300, None]]
        for ref, found in zip((VIEW, OTHER), fetched.tokens, strict=True):
            assert np.array_equal(found, store.tokens(ref, ALL_BUCKETS))

    run(work)


def test_keys_of_many_lengths_are_found(store: OnlineStore) -> None:
    texts = ["", "a", "\r\n", "$3\r\n", "x" * 900, "é"]
    keys = encode_keys([pa.array(texts)], [String])
    store.write(VIEW, keys, rows_at(1, *range(len(texts))))

    async def work() -> None:
        async with reading(store) as reader:
            fetched = await reader.fetch([Wanted(VIEW, keys, bucket_of(keys))])

        assert values_of(fetched.rows[0]) == list(range(len(texts)))

    run(work)


def test_a_large_request_and_many_small_ones_each_get_their_own_rows(store: OnlineStore) -> None:
    numbers = list(range(5_000))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))

    async def small(reader: AsyncReader, number: int) -> None:
        assert values_of((await reader.fetch([wanted(number, -number - 1)])).rows[0]) == [number, None]

    async def work() -> None:
        async with reading(store) as reader:
            large, *_ = await asyncio.gather(
                reader.fetch([wanted(*numbers)]), *(small(reader, number) for number in range(0, 5_000, 50))
            )

        assert values_of(large.rows[0]) == numbers

    run(work)


def test_who_gives_up_does_not_disturb_the_answers_of_others(store: OnlineStore) -> None:
    numbers = list(range(300))
    store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))

    async def work() -> None:
        async with reading(store) as reader:
            asked = [asyncio.create_task(reader.fetch([wanted(number)])) for number in numbers]
            await asyncio.sleep(0)
            for task in asked[::2]:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            later = await reader.fetch([wanted(7)])

        kept = [answer for answer in answers[1::2] if not isinstance(answer, BaseException)]
        assert [values_of(answer.rows[0]) for answer in kept] == [[number] for number in numbers[1::2]]
        assert values_of(later.rows[0]) == [7]

    run(work)


# ---------------------------------------------------------------- what goes wrong


def test_a_file_that_somebody_keeps_for_himself_is_busy_after_the_time_allowed(tmp_path: Path) -> None:
    """SQLite lets nobody in who comes after an exclusive owner; the event loop goes on meanwhile."""
    store = SqliteOnlineStore(tmp_path / "online.db", "flights")
    store.write(VIEW, keys_of(1), rows_at(1, 10))
    reader = store.reader(1.5)
    store.close()

    async def work() -> None:
        with locked(tmp_path / "online.db"):
            connecting = asyncio.create_task(reader.connect())
            turns = 0
            while not connecting.done():
                await asyncio.sleep(0.005)
                turns += 1
            with pytest.raises(StoreBusy):
                await connecting
            assert turns > 5
        await reader.connect()
        assert values_of((await reader.fetch([wanted(1)])).rows[0]) == [10]
        await reader.close()

    run(work)


def test_a_writer_does_not_keep_readers_waiting(tmp_path: Path) -> None:
    store = SqliteOnlineStore(tmp_path / "online.db", "flights")
    store.write(VIEW, keys_of(1), rows_at(1, 10))

    async def work() -> None:
        async with reading(store, timeout_s=0.0) as reader:
            writer = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
            writer.execute("BEGIN EXCLUSIVE")
            assert values_of((await reader.fetch([wanted(1)])).rows[0]) == [10]
            writer.close()

    run(work)
    store.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else reads the file meanwhile."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    yield
    holder.execute("ROLLBACK")
    holder.close()


def address_of(process: RedisProcess) -> RedisAddress:
    return RedisAddress(url=process.url, timeout_s=30.0, retries=0)


def test_a_killed_server_fails_questions_at_once_and_is_found_again(own_redis: RedisProcess) -> None:
    store = RedisOnlineStore("flights", address_of(own_redis))
    store.write(VIEW, keys_of(1), rows_at(1, 10))

    async def work() -> None:
        async with reading(store) as reader:
            assert values_of((await reader.fetch([wanted(1)])).rows[0]) == [10]
            own_redis.kill()
            with pytest.raises(StoreUnreachable, match="cannot be reached"):
                await reader.fetch([wanted(1)])
            started = time.monotonic()
            for _ in range(100):
                with pytest.raises(StoreUnreachable):
                    await reader.fetch([wanted(1)])
            assert time.monotonic() - started < 60, "it waits where it knows that nobody answers"
            own_redis.start()
            assert await recovered(reader) == [None], "the new server is empty"

    run(work)
    store.close()


async def recovered(reader: AsyncReader) -> list[int | None]:
    """What key 1 has, once the store answers again."""
    while True:
        try:
            return values_of((await reader.fetch([wanted(1)])).rows[0])
        except StoreUnreachable:
            await asyncio.sleep(0.05)


def test_a_silent_server_is_hung_up_on_and_found_again(own_redis: RedisProcess) -> None:
    store = RedisOnlineStore("flights", address_of(own_redis))
    store.write(VIEW, keys_of(1), rows_at(1, 10))

    async def work() -> None:
        async with reading(store, timeout_s=1.0) as reader:
            own_redis.pause()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.fetch([wanted(1)])
            with pytest.raises(StoreUnreachable):
                await reader.fetch([wanted(1)])
            own_redis.resume()
            assert await recovered(reader) == [10]

    run(work)
    store.close()


def test_a_connection_that_the_server_closes_costs_no_request(own_redis: RedisProcess) -> None:
    store = RedisOnlineStore("flights", address_of(own_redis))
    store.write(VIEW, keys_of(1), rows_at(1, 10))

    async def work() -> None:
        async with reading(store) as reader:
            for _ in range(20):
                own_redis.client.client_kill_filter(_type="normal", skipme=True)
                assert values_of((await reader.fetch([wanted(1)])).rows[0]) == [10]

    run(work)
    store.close()


def test_a_slot_that_moves_is_followed(tmp_path: Path) -> None:
    """While it moves (ASK) and when it has moved (MOVED), by a reader that knew where it was."""
    with ExitStack() as stack:
        nodes = started_cluster(stack, tmp_path)
        store = RedisOnlineStore("flights", RedisAddress(url=nodes[0].url, cluster=True))
        slot = key_slot(b"{%d}" % bucket_of(keys_of(1))[0])
        source = next(node for node in nodes if owns(node, slot))
        target = next(node for node in nodes if node is not source)
        source_id, target_id = (node.client.execute_command("CLUSTER", "MYID").decode() for node in (source, target))

        async def work() -> None:
            async with reading(store) as reader:
                assert values_of((await reader.fetch([wanted(1, 2)])).rows[0]) == [None, None]
                target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
                source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
                await asyncio.to_thread(store.write, VIEW, keys_of(1, 2), rows_at(2, 10, 21))
                assert values_of((await reader.fetch([wanted(1, 2)])).rows[0]) == [10, 21]
                for node in (target, source, *nodes):
                    node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
                assert values_of((await reader.fetch([wanted(1, 2)])).rows[0]) == [10, 21]

        run(work)
        store.close()


def test_a_lost_node_of_a_cluster_is_told_and_found_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes = started_cluster(stack, tmp_path, "--appendonly", "yes", "--appendfsync", "always")
        store = RedisOnlineStore("flights", RedisAddress(url=nodes[0].url, cluster=True, timeout_s=30, retries=0))
        numbers = range(100)
        store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))

        async def work() -> None:
            async with reading(store) as reader:
                assert values_of((await reader.fetch([wanted(*numbers)])).rows[0]) == list(numbers)
                nodes[1].kill()
                with pytest.raises(StoreUnreachable):
                    await reader.fetch([wanted(*numbers)])
                nodes[1].start()
                while True:
                    try:
                        assert values_of((await reader.fetch([wanted(*numbers)])).rows[0]) == list(numbers)
                        break
                    except StoreUnreachable:
                        await asyncio.sleep(0.1)
                for node in nodes:
                    node.kill()
                for _ in range(5):
                    with pytest.raises(StoreUnreachable):
                        await reader.fetch([wanted(*numbers)])

        run(work)
        store.close()
