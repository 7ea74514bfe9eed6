"""Redis servers that fail under way: what was acknowledged stays, what was lost is told or done again."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.crc import key_slot

from featurestore.errors import StoreUnreachable
from featurestore.online.keys import bucket_of
from featurestore.online.redis import RedisAddress, RedisOnlineStore, protocol
from featurestore.online.redis.exchange import Call, run
from featurestore.online.redis.servers import RedisServers
from tests.fix_online_store import ALL_BUCKETS, VIEW, buckets, keys_of, raised, rows_at, values_of
from tests.fix_proxy import Proxy
from tests.fix_redis import RedisProcess, started_cluster
from tests.waiting import until

MANY = list(range(20_000))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A server of the test's own, with its rows on disk before it answers."""
    with RedisProcess(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as started:
        yield started


@pytest.fixture
def store(server: RedisProcess) -> Iterator[RedisOnlineStore]:
    opened = RedisOnlineStore("flights", RedisAddress(url=server.url, timeout_s=5, retries=8))
    yield opened
    opened.close()


@pytest.fixture
def proxy(server: RedisProcess) -> Iterator[Proxy]:
    with Proxy(server.port) as started:
        yield started


def assert_whole(store: RedisOnlineStore, kept: list[int | None]) -> None:
    """Each of `MANY` is there as written or not at all, and no row without its bucket's token."""
    assert all(value in (None, number) for number, value in zip(MANY, kept, strict=True))
    present = [number for number, value in zip(MANY, kept, strict=True) if value is not None]
    assert set(store.tokens(VIEW, ALL_BUCKETS).nonzero()[0].tolist()) == buckets(*present)


def test_a_restarted_server_has_what_it_acknowledged_and_the_store_goes_on(
    server: RedisProcess, store: RedisOnlineStore
) -> None:
    store.write(VIEW, keys_of(1, 2), rows_at(1, 10, 20))
    tokens = store.tokens(VIEW, ALL_BUCKETS)

    server.kill()
    server.start()

    assert values_of(store.read(VIEW, keys_of(1, 2))) == [10, 20]
    assert raised(store, tokens) == set()
    assert store.write(VIEW, keys_of(1, 2, 3), rows_at(2, 11, 21, 31)) == 3
    assert raised(store, tokens) == buckets(1, 2, 3)


def test_a_server_that_restarts_in_the_middle_of_writes_loses_nothing_acknowledged(
    server: RedisProcess, store: RedisOnlineStore
) -> None:
    written = threading.Event()

    def restart() -> None:
        assert written.wait(30)
        server.kill()
        server.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    for sequence in range(1, 9):
        store.write(VIEW, keys_of(*MANY), rows_at(sequence, *MANY))
        written.set()
        assert values_of(store.read(VIEW, keys_of(*MANY))) == MANY
    restarting.join()

    assert store.write(VIEW, keys_of(*MANY), rows_at(8, *MANY)) == 0
    assert store.count(VIEW) == len(MANY)


def test_a_paused_server_is_unreachable_after_a_bounded_wait_and_then_goes_on(
    server: RedisProcess, store: RedisOnlineStore
) -> None:
    store.write(VIEW, keys_of(1), rows_at(1, 10))
    hasty = RedisOnlineStore("flights", RedisAddress(url=server.url, timeout_s=0.2, retries=2))
    server.pause()
    try:
        for use in (
            lambda: hasty.read(VIEW, keys_of(1)),
            lambda: hasty.write(VIEW, keys_of(*MANY), rows_at(2, *MANY)),
            lambda: RedisOnlineStore("flights", RedisAddress(url=server.url, timeout_s=0.2, retries=1)),
        ):
            with pytest.raises(StoreUnreachable, match="cannot be reached.*Timeout"):
                use()
    finally:
        server.resume()

    assert store.write(VIEW, keys_of(1), rows_at(3, 11)) == 1
    until(lambda: read_by(hasty) == [11])
    hasty.close()


def read_by(store: RedisOnlineStore) -> list[int | None]:
    """What key 1 has; nothing where the server does not answer in time."""
    try:
        return values_of(store.read(VIEW, keys_of(1)))
    except StoreUnreachable:
        return []


def test_a_short_pause_is_waited_for(server: RedisProcess, store: RedisOnlineStore) -> None:
    server.pause()
    timer = threading.Timer(0.5, server.resume)
    timer.start()

    assert store.write(VIEW, keys_of(1), rows_at(1, 10)) == 1
    timer.join()


def test_a_flushed_server_has_nothing_and_gives_no_token_twice(server: RedisProcess, store: RedisOnlineStore) -> None:
    store.write(VIEW, keys_of(1, 2), rows_at(1, 10, 20))
    before = store.tokens(VIEW, ALL_BUCKETS)

    server.client.flushall()
    server.client.script_flush()

    assert store.read(VIEW, keys_of(1, 2)).to_pylist() == [None, None]
    assert store.count(VIEW) == 0
    assert not store.tokens(VIEW, ALL_BUCKETS).any(), "missing: a cache drops everything"
    assert store.write(VIEW, keys_of(1, 2), rows_at(1, 10, 20)) == 2
    assert raised(store, before * (store.tokens(VIEW, ALL_BUCKETS) > 0)) == buckets(1, 2)


def test_scripts_that_the_server_forgot_are_loaded_again(server: RedisProcess, store: RedisOnlineStore) -> None:
    uses = (
        lambda: store.write(VIEW, keys_of(*MANY), rows_at(1, *MANY)),
        lambda: store.overwrite(VIEW, keys_of(1), rows_at(1, 10)),
        lambda: store.count(VIEW),
        lambda: store.delete(VIEW, keys_of(1)),
        lambda: len(store.read(VIEW, keys_of(1, 2))),
        lambda: store.drop(VIEW),
    )
    answers = []
    for use in uses:
        server.client.script_flush()
        answers.append(use())
    assert answers == [len(MANY), 1, len(MANY), 1, 2, len(MANY) - 1]


def test_a_connection_cut_in_the_middle_of_a_batch_leaves_whole_rows_and_is_told(
    server: RedisProcess, store: RedisOnlineStore, proxy: Proxy
) -> None:
    hasty = RedisOnlineStore("flights", RedisAddress(url=f"redis://127.0.0.1:{proxy.port}", retries=0))
    proxy.cut_after = 700_000

    with pytest.raises(StoreUnreachable, match="cannot be reached"):
        hasty.write(VIEW, keys_of(*MANY), rows_at(1, *MANY))

    kept = values_of(store.read(VIEW, keys_of(*MANY)))
    assert 0 < kept.count(None) < len(MANY)
    assert_whole(store, kept)
    assert hasty.write(VIEW, keys_of(*MANY), rows_at(1, *MANY)) == kept.count(None)
    assert values_of(store.read(VIEW, keys_of(*MANY))) == MANY
    hasty.close()


@pytest.mark.parametrize("cut_after", [0, 1, 60_000, 300_001, 700_000, 1_500_000])
def test_a_batch_is_finished_though_a_connection_is_cut_in_the_midst(
    server: RedisProcess, proxy: Proxy, cut_after: int
) -> None:
    store = RedisOnlineStore("flights", RedisAddress(url=f"redis://127.0.0.1:{proxy.port}"))
    store.write(VIEW, keys_of(*MANY), rows_at(5, *MANY))

    proxy.cut_after = cut_after
    store.write(VIEW, keys_of(*MANY), rows_at(6, *(number + 1 for number in MANY)))

    assert proxy.cut_after is None, "it was cut"
    assert values_of(store.read(VIEW, keys_of(*MANY))) == [number + 1 for number in MANY]
    store.close()


@pytest.mark.parametrize(("answers", "counts"), [(0, [2, 2, 2, 2, 2]), (2, [1, 1, 2, 2, 2]), (4, [1, 1, 1, 1, 2])])
def test_what_was_answered_before_a_connection_was_cut_is_not_asked_again(
    server: RedisProcess, proxy: Proxy, answers: int, counts: list[int]
) -> None:
    """Counters tell how often each call of one window was done: the server does all, the proxy cuts between answers."""
    servers = RedisServers(RedisAddress(url=f"redis://127.0.0.1:{proxy.port}"), "flights")
    calls = [Call(0, (protocol.command(b"INCR", b"counter %d" % number),)) for number in range(len(counts))]

    proxy.cut_answers_after = answers * len(":1\r\n")

    assert run(servers, calls) == counts
    assert proxy.cut_answers_after is None, "it was cut"
    assert [int(server.client.get(f"counter {number}")) for number in range(len(counts))] == counts
    servers.close()


def test_a_slot_that_moves_is_followed(tmp_path: Path) -> None:
    """While it moves (ASK) and when it has moved (MOVED), by a store that knew where it was."""
    with ExitStack() as stack:
        nodes = started_cluster(stack, tmp_path)
        store = RedisOnlineStore("flights", RedisAddress(url=nodes[0].url, cluster=True))
        bucket = int(bucket_of(keys_of(1))[0])
        slot = key_slot(b"{%d}" % bucket)
        source = next(node for node in nodes if owns(node, slot))
        target = next(node for node in nodes if node is not source)
        source_id, target_id = (node.client.execute_command("CLUSTER", "MYID").decode() for node in (source, target))
        store.write(VIEW, keys_of(2), rows_at(1, 20))

        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        assert store.write(VIEW, keys_of(1, 2), rows_at(2, 10, 21)) == 2
        assert values_of(store.read(VIEW, keys_of(1, 2))) == [10, 21]
        assert target.client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1

        for node in (target, source, *nodes):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        assert values_of(store.read(VIEW, keys_of(1, 2))) == [10, 21]
        assert store.write(VIEW, keys_of(1), rows_at(3, 11)) == 1
        assert store.count(VIEW) == 2
        store.close()


def owns(node: RedisProcess, slot: int) -> bool:
    """Whether the node itself has the slot."""
    port = node.client.connection_pool.connection_kwargs["port"]
    return any(
        first <= slot <= last and owner[1] == port
        for first, last, owner, *_ in node.client.execute_command("CLUSTER SLOTS", NEVER_DECODE=True)
    )


def test_a_lost_node_of_a_cluster_is_told_and_found_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes = started_cluster(stack, tmp_path, "--appendonly", "yes", "--appendfsync", "always")
        address = RedisAddress(url=nodes[0].url, cluster=True, timeout_s=10, retries=8)
        store = RedisOnlineStore("flights", address)
        hasty = RedisOnlineStore("flights", dataclasses.replace(address, retries=1))
        store.write(VIEW, keys_of(*MANY), rows_at(1, *MANY))

        nodes[1].kill()
        with pytest.raises(StoreUnreachable):
            hasty.write(VIEW, keys_of(*MANY), rows_at(2, *MANY))
        nodes[1].start()
        until(lambda: all(node.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for node in nodes))

        store.write(VIEW, keys_of(*MANY), rows_at(2, *MANY))
        assert values_of(hasty.read(VIEW, keys_of(*MANY))) == MANY
        assert hasty.write(VIEW, keys_of(*MANY), rows_at(2, *MANY)) == 0
        store.close()
        hasty.close()
