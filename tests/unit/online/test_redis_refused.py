"""What a Redis store refuses to work with, each in a message that names the way out and never the password."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trustme

from featurestore.errors import ConfigError, FeatureStoreError, StoreError, StoreFull, StoreUnreachable
from featurestore.online.keys import bucket_of
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from featurestore.online.redis.faults import PRIVILEGES
from tests.fix_online_store import ALL_BUCKETS, VIEW, keys_of, rows_at, values_of
from tests.fix_proxy import Proxy
from tests.fix_redis import PASSWORD, RedisFarm, RedisProcess
from tests.ports import free_port
from tests.waiting import until


def refusal(address: RedisAddress, kind: type[FeatureStoreError] = ConfigError, **changes: Any) -> str:
    """What is said when a store cannot be opened there; exactly of that kind."""
    quick: dict[str, Any] = {"timeout_s": 2.0, "retries": 0, **changes}
    with pytest.raises(kind) as caught:
        RedisOnlineStore("flights", dataclasses.replace(address, **quick))
    assert type(caught.value) is kind
    said = str(caught.value)
    assert PASSWORD not in said
    assert PASSWORD not in repr(address)
    return said


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A server of the test's own."""
    with RedisProcess(tmp_path / "redis") as started:
        yield started


@pytest.mark.parametrize(
    "url",
    [
        "cache:6379",
        "http://cache",
        "redis://",
        "redis://cache:port",
        "redis://cache/zero",
        "redis://cache?db=1",
        "",
        "unix:///x",
    ],
)
def test_a_url_that_is_none_of_ours_is_refused(url: str) -> None:
    assert "write it as redis://host:6379/0" in refusal(RedisAddress(url=url))


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    said = refusal(RedisAddress(url="redis://store:hunter2@127.0.0.1:1"))
    assert "move them to online.username and online.password" in said
    assert "hunter2" not in said


def test_nobody_there_is_unreachable() -> None:
    port = free_port()
    said = refusal(RedisAddress(url=f"redis://127.0.0.1:{port}"), StoreUnreachable)
    assert f"online store redis://127.0.0.1:{port}: cannot be reached" in said
    assert "cannot be reached" in refusal(RedisAddress(url="redis://no-such-host.invalid"), StoreUnreachable)
    assert "cannot be reached" in refusal(RedisAddress(url=f"redis://127.0.0.1:{port}", cluster=True), StoreUnreachable)


@pytest.mark.parametrize(
    "changes",
    [{"password": "wrong"}, {"password": None, "username": None}, {"username": "nobody"}],
)
def test_a_wrong_login_is_told(redis_farm: RedisFarm, changes: dict[str, Any]) -> None:
    said = refusal(redis_farm.address("acl"), **changes)
    assert "user name or password is not accepted" in said
    assert "FEATURESTORE_ONLINE_PASSWORD_FILE" in said


def test_a_password_for_a_server_that_has_none_is_told(redis_farm: RedisFarm) -> None:
    assert "not accepted" in refusal(redis_farm.address("valkey"), password=PASSWORD, username="store")


@pytest.mark.parametrize("lacking", PRIVILEGES.split())
def test_each_documented_privilege_is_needed_and_its_lack_told(server: RedisProcess, lacking: str) -> None:
    rights = [right for right in PRIVILEGES.split() if right != lacking]
    server.client.execute_command(
        "ACL", "SETUSER", "store", "on", f">{PASSWORD}", "resetkeys", "~fs*", "resetchannels", "-@all", *rights
    )
    address = RedisAddress(url=server.url, username="store", password=PASSWORD, retries=0)

    with pytest.raises(ConfigError, match="the user lacks a privilege.*grant it keys") as caught:
        use_everything(address)

    assert PASSWORD not in str(caught.value)


def use_everything(address: RedisAddress) -> None:
    store = RedisOnlineStore("flights", address)
    try:
        store.write(VIEW, keys_of(1, 2), rows_at(1, 10, 20))
        store.read(VIEW, keys_of(1))
        store.count(VIEW)
        list(store.scan(VIEW, 10))
        store.delete(VIEW, keys_of(1))
        store.drop(VIEW)
    finally:
        store.close()


def test_other_keys_than_ours_may_be_closed_to_the_user_and_ours_may_not(server: RedisProcess) -> None:
    rights = PRIVILEGES.split()
    server.client.execute_command("ACL", "SETUSER", "store", "on", f">{PASSWORD}", "-@all", "~other*", *rights)
    said = refusal(RedisAddress(url=server.url, username="store", password=PASSWORD))
    assert "grant it keys ~fs*" in said


def test_an_authority_that_is_not_ours_is_told(redis_farm: RedisFarm, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    tls = redis_farm.address("tls")

    assert "certificate is not trusted" in refusal(tls, tls_ca=stranger)
    assert "certificate is not trusted" in refusal(tls, tls_ca=None)
    assert "certificate is not trusted" in refusal(tls, url=tls.url.replace("localhost", "127.0.0.1"))


def test_tls_where_the_server_has_none_and_none_where_it_has_are_told(redis_farm: RedisFarm) -> None:
    tls = redis_farm.address("tls")
    plain = tls.url.replace("rediss:", "redis:")

    assert "whether it wants TLS (rediss:// in online.url)" in refusal(RedisAddress(url=plain), StoreUnreachable)
    secured = dataclasses.replace(tls, url=f"rediss://localhost:{redis_farm.valkey.port}", timeout_s=2, retries=0)
    with pytest.raises((ConfigError, StoreUnreachable), match="speaks TLS"):
        RedisOnlineStore("flights", secured)


def test_a_missing_client_certificate_is_told(redis_farm: RedisFarm) -> None:
    address = dataclasses.replace(redis_farm.address("tls"), tls_cert=None, tls_key=None, retries=0)
    with pytest.raises((ConfigError, StoreUnreachable), match="online.tls_cert"):
        RedisOnlineStore("flights", address)


def test_tls_settings_that_cannot_be_meant_are_refused(redis_farm: RedisFarm, tmp_path: Path) -> None:
    tls = redis_farm.address("tls")
    assert "write rediss:// for TLS" in refusal(tls, url="redis://localhost")
    assert "belong together" in refusal(tls, tls_key=None)
    assert "there is no file" in refusal(tls, tls_ca=tmp_path / "nowhere.pem")
    broken = tmp_path / "broken.pem"
    broken.write_text("not a certificate")
    assert "online.tls_ca" in refusal(tls, tls_ca=broken)


def test_a_server_older_than_seven_is_refused(redis_farm: RedisFarm) -> None:
    with Proxy(redis_farm.valkey.port) as proxy:
        proxy.change = lambda data: data.replace(b"redis_version:7.2.4", b"redis_version:6.2.4")
        said = refusal(RedisAddress(url=f"redis://127.0.0.1:{proxy.port}"))
    assert "Redis 6.2.4, at least 7 is needed; upgrade the server" in said


def test_a_cluster_and_a_single_server_are_not_taken_for_each_other(redis_farm: RedisFarm) -> None:
    cluster = redis_farm.address("cluster")
    assert "set cluster = true in [online]" in refusal(cluster, cluster=False)
    assert "remove cluster = true from [online]" in refusal(redis_farm.address("valkey"), cluster=True)
    assert "a cluster has no database 3" in refusal(cluster, url=cluster.url + "/3")


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])
def test_a_server_that_may_evict_is_refused_unless_allowed(server: RedisProcess, policy: str) -> None:
    server.client.config_set("maxmemory", "100mb")
    server.client.config_set("maxmemory-policy", policy)
    address = RedisAddress(url=server.url)

    assert f"maxmemory-policy {policy}" in refusal(address)
    RedisOnlineStore("flights", dataclasses.replace(address, allow_eviction=True)).close()
    server.client.config_set("maxmemory", 0)
    RedisOnlineStore("flights", address).close()


def test_a_foreign_key_under_our_name_is_told_and_kept(server: RedisProcess) -> None:
    store = RedisOnlineStore("flights", RedisAddress(url=server.url, retries=0))
    key = f"fs1:{{{bucket_of(keys_of(1))[0]}}}:flights:{VIEW}"
    server.client.set(key, "somebody else's")

    for use in (
        lambda: store.write(VIEW, keys_of(1), rows_at(1, 10)),
        lambda: store.overwrite(VIEW, keys_of(1), rows_at(1, 10)),
        lambda: store.delete(VIEW, keys_of(1)),
        lambda: store.read(VIEW, keys_of(1)),
        lambda: store.tokens(VIEW, ALL_BUCKETS),
        lambda: store.count(VIEW),
        lambda: list(store.scan(VIEW, 10)),
        lambda: store.drop(VIEW),
    ):
        with pytest.raises(StoreError, match="a key that belongs to this store holds something else"):
            use()
    assert server.client.get(key) == b"somebody else's"
    store.close()


def test_a_foreign_field_in_a_bucket_is_seen_replaced_and_removed(server: RedisProcess) -> None:
    """So that a parity check finds what somebody else wrote, and a repair takes it away."""
    store = RedisOnlineStore("flights", RedisAddress(url=server.url))
    key = f"fs1:{{{bucket_of(keys_of(1))[0]}}}:flights:{VIEW}"
    server.client.hset(key, mapping={keys_of(1)[0].as_py(): b"short", b"strange": b"row"})

    assert store.count(VIEW) == 2
    assert store.write(VIEW, keys_of(1), rows_at(1, 10)) == 1
    assert values_of(store.read(VIEW, keys_of(1))) == [10]
    ((keys, _),) = store.scan(VIEW, 10)
    assert b"strange" in keys.to_pylist()
    assert store.delete(VIEW, pa.array([b"strange"], pa.binary())) == 0, "it is in a bucket that is not its own"
    assert store.drop(VIEW) == 2
    store.close()


def test_a_newer_layout_is_refused_by_number(server: RedisProcess) -> None:
    RedisOnlineStore("flights", RedisAddress(url=server.url)).close()
    assert server.client.get("fs:flights:format") == b"1"
    server.client.set("fs:flights:format", "7")

    said = refusal(RedisAddress(url=server.url), StoreError)

    assert "format b'7', this featurestore knows 1; upgrade" in said
    RedisOnlineStore("other", RedisAddress(url=server.url)).close()


def test_full_memory_is_full_leaves_whole_rows_and_a_later_try_succeeds(server: RedisProcess) -> None:
    store = RedisOnlineStore("flights", RedisAddress(url=server.url))
    numbers = list(range(30_000))
    server.client.config_set("maxmemory", server.client.info("memory")["used_memory"] + 1_000_000)

    with pytest.raises(StoreFull, match="no memory left.*raise the server's maxmemory"):
        store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers))

    server.client.config_set("maxmemory", 0)
    kept = values_of(store.read(VIEW, keys_of(*numbers)))
    assert 0 < sum(value is not None for value in kept) < len(numbers)
    assert all(value in (None, number) for number, value in zip(numbers, kept, strict=True))
    touched = set(
        bucket_of(keys_of(*(number for number, value in zip(numbers, kept, strict=True) if value is not None)))
    )
    assert set(store.tokens(VIEW, ALL_BUCKETS).nonzero()[0]) == touched, "no row without its token"
    missing = kept.count(None)
    assert store.write(VIEW, keys_of(*numbers), rows_at(1, *numbers)) == missing
    assert values_of(store.read(VIEW, keys_of(*numbers))) == numbers
    store.close()


def test_a_replica_cannot_be_written_to_and_says_so(server: RedisProcess, tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port)) as replica:
        RedisOnlineStore("flights", RedisAddress(url=server.url)).close()
        until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        store = RedisOnlineStore("flights", RedisAddress(url=replica.url, retries=0))
        with pytest.raises(StoreUnreachable, match="this is a replica.*name the primary"):
            store.write(VIEW, keys_of(1), rows_at(1, 10))
        assert store.read(VIEW, keys_of(1)).to_pylist() == [None]
        store.close()
