"""Large writes to one Redis server: transactions that give way to the script wherever they cannot do the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import ConfigError, StoreError
from featurestore.online.keys import bucket_of
from featurestore.online.redis import RedisAddress, RedisOnlineStore, protocol, transactions
from featurestore.online.redis.faults import PRIVILEGES
from tests.fix_online_store import ALL_BUCKETS, VIEW, buckets, keys_of, raised, rows_at, rows_of, values_of
from tests.fix_redis import PASSWORD, RedisProcess

#: Some ten windows.
MANY = list(range(20_000))
#: What a transaction needs beside `PRIVILEGES`.
TRANSACTIONS = ["+watch", "+multi", "+exec"]


@pytest.fixture(params=["redis-server", "valkey-server"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis"), program=request.param) as started:
        yield started


@pytest.fixture
def store(server: RedisProcess) -> Iterator[RedisOnlineStore]:
    server.client.flushall()
    server.client.config_resetstat()
    opened = RedisOnlineStore("flights", RedisAddress(url=server.url, retries=0))
    yield opened
    opened.close()


def calls(server: RedisProcess, command: str) -> int:
    """How often the server ran a command."""
    stats: dict[str, Any] = server.client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.parametrize("lengths", [[7] * 40, [0] * 40, [0, 7, 9, 10, 99, 100, 1_000, 12_345] * 5])
def test_arguments_are_those_of_each_value_in_any_order_and_part(lengths: list[int]) -> None:
    keys, rows = [b"key %02d" % n for n in range(40)], [b"%d" % (n % 10) * length for n, length in enumerate(lengths)]
    order = np.random.default_rng(3).permutation(40)
    arguments = protocol.Arguments([pa.array(keys, pa.binary()), pa.array(rows, pa.binary())], order)
    expected = [protocol.bulk(keys[n]) + protocol.bulk(rows[n]) for n in order]

    assert arguments.part().to_pylist() == expected
    assert np.diff(arguments.offsets).tolist() == list(map(len, expected))
    assert arguments.part(slice(5, 9)).to_pylist() == expected[5:9]
    assert arguments.part(slice(5, 9), np.array([True, False, False, True])).to_pylist() == [expected[5], expected[8]]


def test_a_large_write_needs_no_script_and_keeps_what_is_later(server: RedisProcess, store: RedisOnlineStore) -> None:
    assert store.write(VIEW, keys_of(*MANY), rows_at(5, *MANY)) == len(MANY)
    before = store.tokens(VIEW, ALL_BUCKETS)
    odd = np.arange(len(MANY)) % 2 == 1

    # The odd rows are later in all but the first thousand, whose buckets have nothing to change but what others bring.
    sequences = np.where(odd & (np.arange(len(MANY)) >= 1_000), 6, 5)
    written = store.write(VIEW, keys_of(*MANY), rows_of(sequences, [number + 1 for number in MANY]))

    changed = np.flatnonzero(sequences == 6)
    assert written == len(changed)
    expected = np.array(MANY)
    expected[changed] += 1
    assert values_of(store.read(VIEW, keys_of(*MANY))) == expected.tolist()
    assert raised(store, before) == buckets(*changed.tolist())
    assert calls(server, "exec") > 2
    assert calls(server, "evalsha") == 0


def test_order_keys_are_compared_as_the_script_compares_them(server: RedisProcess, store: RedisOnlineStore) -> None:
    extremes = [-(2**63), -1, 0, 1, 2**31, 2**48, 2**63 - 1]
    old, new = (np.array(side).repeat(500) for side in zip(*((a, b) for a in extremes for b in extremes), strict=True))
    numbers = list(range(len(old)))
    by_script = RedisOnlineStore("script", RedisAddress(url=server.url))

    store.write(VIEW, keys_of(*numbers), rows_of(old, numbers))
    written = store.write(VIEW, keys_of(*numbers), rows_of(new, [number + 1 for number in numbers]))

    small = slice(0, None, 500)  # a single window goes by script
    by_script.write(VIEW, keys_of(*numbers[small]), rows_of(old[small], numbers[small]))
    kept = by_script.write(VIEW, keys_of(*numbers[small]), rows_of(new[small], [n + 1 for n in numbers[small]]))
    assert written == 500 * kept == int(np.count_nonzero(new > old))
    assert store.read(VIEW, keys_of(*numbers[small])).equals(by_script.read(VIEW, keys_of(*numbers[small])))
    by_script.close()


def test_a_large_overwrite_replaces_what_differs_whatever_its_order(store: RedisOnlineStore) -> None:
    store.write(VIEW, keys_of(*MANY), rows_at(5, *MANY))
    values = [number + (number < 7_000) for number in MANY]

    assert store.overwrite(VIEW, keys_of(*MANY), rows_of(np.where(np.arange(len(MANY)) < 7_000, 4, 5), values)) == 7_000
    assert values_of(store.read(VIEW, keys_of(*MANY))) == values


def test_a_row_that_comes_between_the_look_and_the_write_is_not_written_over(
    server: RedisProcess, store: RedisOnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = RedisOnlineStore("flights", RedisAddress(url=server.url))
    store.write(VIEW, keys_of(*MANY), rows_at(4, *MANY))
    began = calls(server, "exec")
    first = np.argsort(bucket_of(keys_of(*MANY)))[:6].tolist()  # of the first window
    later, rows = transactions.later, iter([rows_at(9, *(-number for number in first))])

    def interrupted(order_keys: pa.BinaryArray, stored: pa.BinaryArray) -> Any:
        for theirs in rows:
            rival.write(VIEW, keys_of(*first), theirs)
        return later(order_keys, stored)

    monkeypatch.setattr(transactions, "later", interrupted)
    written = store.write(VIEW, keys_of(*MANY), rows_at(5, *MANY))

    assert written == len(MANY) - 6
    assert values_of(store.read(VIEW, keys_of(*MANY))) == [-number if number in first else number for number in MANY]
    assert calls(server, "evalsha") > 6, "the window that was refused went by script"
    assert calls(server, "exec") > began + 2, "and no other"
    rival.close()


@pytest.mark.parametrize("lacking", TRANSACTIONS)
def test_a_user_who_may_not_use_transactions_writes_by_script_and_is_told_once(
    server: RedisProcess, store: RedisOnlineStore, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    granted = [right for right in TRANSACTIONS if right != lacking]
    rights = ["on", f">{PASSWORD}", "resetkeys", "~fs*", "-@all", *PRIVILEGES.split(), *granted]
    server.client.execute_command("ACL", "SETUSER", "narrow", *rights)
    address = RedisAddress(url=server.url, username="narrow", password=PASSWORD, retries=0)
    narrow = RedisOnlineStore("flights", address)

    for sequence in (1, 2):
        assert narrow.write(VIEW, keys_of(*MANY), rows_at(sequence, *MANY)) == len(MANY)

    assert values_of(store.read(VIEW, keys_of(*MANY))) == MANY
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"'{lacking[1:]}'" in told
    assert "grant the user +watch +multi +exec" in told
    narrow.close()


@pytest.mark.parametrize("keys", ["~fs:*", "~fs:* %R~fs1:*"], ids=["no rows", "to read"])
def test_a_user_with_narrower_keys_is_told_of_keys_and_not_of_transactions(
    server: RedisProcess, store: RedisOnlineStore, caplog: pytest.LogCaptureFixture, keys: str
) -> None:
    rights = ["on", f">{PASSWORD}", "resetkeys", *keys.split(), "-@all", *PRIVILEGES.split()]
    server.client.execute_command("ACL", "SETUSER", "narrow", *rights, *TRANSACTIONS)
    address = RedisAddress(url=server.url, username="narrow", password=PASSWORD, retries=0)
    narrow = RedisOnlineStore("flights", address)

    with pytest.raises(ConfigError, match="lacks a privilege.*key.*grant it keys ~fs"):
        narrow.write(VIEW, keys_of(*MANY), rows_at(1, *MANY))

    assert caplog.records == []
    assert store.count(VIEW) == 0
    narrow.close()


def test_who_may_use_transactions_is_told_nothing(store: RedisOnlineStore, caplog: pytest.LogCaptureFixture) -> None:
    store.write(VIEW, keys_of(*MANY), rows_at(1, *MANY))
    assert caplog.records == []


def test_a_foreign_key_is_told_by_a_large_write_too(server: RedisProcess, store: RedisOnlineStore) -> None:
    key = f"fs1:{{{bucket_of(keys_of(1))[0]}}}:flights:{VIEW}"
    server.client.set(key, "somebody else's")
    with pytest.raises(StoreError, match="a key that belongs to this store holds something else"):
        store.write(VIEW, keys_of(*MANY), rows_at(1, *MANY))
    assert server.client.get(key) == b"somebody else's"


def test_short_foreign_fields_are_replaced_by_a_large_write(server: RedisProcess, store: RedisOnlineStore) -> None:
    server.client.hset(
        f"fs1:{{{bucket_of(keys_of(1))[0]}}}:flights:{VIEW}",
        mapping={keys_of(1)[0].as_py(): b"\xffshort", b"": b"word"},
    )
    assert store.write(VIEW, keys_of(*MANY), rows_at(1, *MANY)) == len(MANY)
    assert values_of(store.read(VIEW, keys_of(1))) == [1]
