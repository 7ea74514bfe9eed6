"""The servers behind an address: connected, checked to be what the settings say, and found by bucket.

One server holds every bucket; in a Cluster the tag `{b}` of a bucket's key says which slot it is in, and so who has it.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.retry import Retry

from featurestore.errors import ConfigError, StoreError
from featurestore.online.keys import BUCKETS
from featurestore.online.redis import faults, protocol
from featurestore.online.redis.link import Endpoint
from featurestore.online.redis.scripts import SCRIPTS

VERSION_MIN = 7
FORMAT_VERSION = 1
#: Where a server listens whose address says no port.
PORT = 6379
#: Waits between tries grow from here to there, each cut by chance.
BACKOFF_S, BACKOFF_S_MAX = 0.05, 1.0

log = logging.getLogger(__name__)

_SCHEMES = ("redis", "rediss")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisAddress:
    """Where the store is and how to get in."""

    #: redis://host:port/database, or rediss:// for TLS; without user name and password.
    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cluster: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: Work with a server that may throw rows away when its memory is full.
    allow_eviction: bool = False
    #: Longest wait for a connection, and for each answer.
    timeout_s: float = 5.0
    #: Further tries of what failed for a passing reason.
    retries: int = 3


class RedisServers:
    """Connections to one server or the primaries of a Cluster; used by many threads at once.

    ConfigError when the settings do not fit what is there, StoreUnreachable when nobody answers.
    """

    def __init__(self, address: RedisAddress, project: str) -> None:
        self._parts = parts = _checked_url(address)
        self.where = f"online store {parts.scheme}://{parts.netloc}{parts.path}"
        self.clustered = address.cluster
        self._address, self._project = address, project
        self._retry = Retry(
            ExponentialWithJitterBackoff(base=BACKOFF_S, cap=BACKOFF_S_MAX), address.retries, faults.REDIS_ERRORS
        )
        self._pools: dict[int, redis.ConnectionPool] = {}
        self._warned = False
        self._client: redis.Redis | RedisCluster = redis.Redis.from_url(address.url, **self._options())
        try:
            self.bounded(self._open)
        except BaseException:
            self.close()
            raise

    def bounded(self, work: Callable[[], _Result]) -> _Result:
        """`work()`, tried again after passing faults; what goes wrong for good comes out as our errors."""
        try:
            return self._retry.call_with_retry(work, lambda _: None, is_retryable=faults.is_passing)
        except faults.REDIS_ERRORS as error:
            raise faults.in_our_words(self.where, error) from error

    def warn_of_scripts(self, refusal: Exception) -> None:
        """Tell, once, that large writes are slow for want of a right."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: large writes take three times as long, by script (%s); grant the user %s (docs/online-format.md)",
                self.where,
                refusal,
                faults.TRANSACTION_PRIVILEGES,
            )

    def pool(self, bucket: int) -> redis.ConnectionPool:
        """Connections to the server that holds the bucket."""
        if not isinstance(self._client, RedisCluster):
            return self._client.connection_pool
        found = self._pools.get(bucket)
        if found is None:
            node = self._client.nodes_manager.get_node_from_slot(key_slot(bucket_tag(bucket)))
            found = self._pools[bucket] = self._client.get_redis_connection(node).connection_pool
        return found

    def pool_at(self, node: tuple[str, int]) -> redis.ConnectionPool:
        """Connections to the server at an address that another one has named."""
        assert isinstance(self._client, RedisCluster)
        if (known := self._node(*node)) is None:
            self.find_again()
            known = self._node(*node)
        if known is None:
            raise redis.exceptions.ConnectionError(f"{node[0]}:{node[1]} is not known to the cluster")
        return self._client.get_redis_connection(known).connection_pool

    def owners(self) -> list[tuple[str, int]]:
        """Host and port of the server that holds each bucket."""
        if not isinstance(self._client, RedisCluster):
            return [(self._parts.hostname or "", self._parts.port or PORT)] * BUCKETS
        nodes = self._client.nodes_manager
        found = (nodes.get_node_from_slot(key_slot(bucket_tag(bucket))) for bucket in range(BUCKETS))
        return [(node.host, node.port) for node in found]

    def endpoint(self, host: str, port: int) -> Endpoint:
        """How a link reaches one of the servers."""
        address, greeting = self._address, []
        if address.password is not None:
            user = () if address.username is None else (address.username.encode(),)
            greeting.append(protocol.command(b"AUTH", *user, address.password.encode()))
        if database := self._parts.path.strip("/"):
            greeting.append(protocol.command(b"SELECT", database.encode()))
        greeting.append(protocol.command(b"GET", self._format_key.encode()))  # says whether it answers us
        return Endpoint(host=host, port=port, tls=self._tls(), greeting=greeting)

    def _tls(self) -> ssl.SSLContext | None:
        address = self._address
        if not address.url.startswith("rediss:"):
            return None
        context = ssl.create_default_context(cafile=address.tls_ca)
        if address.tls_cert is not None:
            context.load_cert_chain(address.tls_cert, address.tls_key)
        return context

    def find_again(self) -> None:
        """Ask a Cluster anew who holds what."""
        if isinstance(self._client, RedisCluster):
            self._client.nodes_manager.initialize()
            self._pools = {}

    def load_scripts(self) -> None:
        """Make the scripts known to every server; needed once, and again when a server has forgotten them."""
        for client in self._primaries():
            for script in SCRIPTS:
                client.script_load(script.source)

    def evictions(self) -> int:
        """How many keys were evicted, on all servers together."""
        return self.bounded(lambda: sum(int(client.info("stats")["evicted_keys"]) for client in self._primaries()))

    def close(self) -> None:
        """Let go of every connection."""
        self._client.close()

    def _node(self, host: str, port: int) -> ClusterNode | None:
        assert isinstance(self._client, RedisCluster)
        return self._client.nodes_manager.get_node(host, port)

    def _options(self) -> dict[str, Any]:
        address = self._address
        options: dict[str, Any] = {
            "username": address.username,
            "password": address.password,
            "socket_timeout": address.timeout_s,
            "socket_connect_timeout": address.timeout_s,
            "protocol": 2,  # every server speaks it, and it needs no greeting
            "retry": Retry(NoBackoff(), 0),  # `bounded` alone tries again
        }
        if address.url.startswith("rediss:"):
            files = {"ssl_ca_certs": address.tls_ca, "ssl_certfile": address.tls_cert, "ssl_keyfile": address.tls_key}
            options |= {name: str(path) for name, path in files.items() if path is not None}
        return options

    def _open(self) -> None:
        if not isinstance(self._client, RedisCluster):
            self._check_server(self._client.info("server"))
            if self.clustered:
                contact, self._client = self._client, RedisCluster.from_url(self._address.url, **self._options())
                contact.close()
        for client in self._primaries():
            self._check_eviction(client.info("memory"))
        self.load_scripts()
        self._check_format()

    def _primaries(self) -> Iterable[redis.Redis]:
        if isinstance(self._client, RedisCluster):
            return [
                self._client.get_redis_connection(node)
                for node in self._client.nodes_manager.get_nodes_by_server_type("primary")
            ]
        return [self._client]

    def _check_server(self, info: dict[str, Any]) -> None:
        version = str(info["redis_version"])
        if int(version.split(".")[0]) < VERSION_MIN:
            raise ConfigError(f"{self.where}: Redis {version}, at least {VERSION_MIN} is needed; upgrade the server")
        clustered = info.get("redis_mode") == "cluster"
        if clustered and not self.clustered:
            raise ConfigError(f"{self.where}: this is a node of a cluster; set cluster = true in [online]")
        if self.clustered and not clustered:
            raise ConfigError(f"{self.where}: this is no node of a cluster; remove cluster = true from [online]")

    def _check_eviction(self, info: dict[str, Any]) -> None:
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy == "noeviction" or not info.get("maxmemory") or self._address.allow_eviction:
            return
        raise ConfigError(
            f"{self.where}: when its memory is full this server may throw rows away (maxmemory-policy {policy}); set "
            "the policy to noeviction, or allow_eviction = true in [online] to live with missing rows"
        )

    @property
    def _format_key(self) -> str:
        return f"fs:{self._project}:format"

    def _check_format(self) -> None:
        """A layout of another version has other keys: without this its rows would just not be found."""
        key = self._format_key
        found = self._client.get(key)
        if found is None:
            self._client.set(key, FORMAT_VERSION, nx=True)
            found = self._client.get(key)
        if found != b"%d" % FORMAT_VERSION:
            raise StoreError(
                f"{self.where}: key {key} says format {found!r}, this featurestore knows {FORMAT_VERSION}; upgrade "
                "featurestore, or use another database and publish again with --repair"
            )


def bucket_tag(bucket: int) -> bytes:
    """The part of a key that decides about its slot."""
    assert 0 <= bucket < BUCKETS
    return b"{%d}" % bucket


def _checked_url(address: RedisAddress) -> SplitResult:
    """The address in parts; ConfigError, without the address where it may hold a password."""
    try:
        parts = urlsplit(address.url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError("online.url is not a URL; write it as redis://host:6379/0") from error
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise ConfigError(
            "online.url holds a user name or a password, which `featurestore config` would show; move them to "
            "online.username and online.password (or FEATURESTORE_ONLINE_PASSWORD_FILE)"
        )
    database = parts.path.strip("/")
    known = parts.scheme in _SCHEMES and bool(parts.hostname) and not parts.query and not parts.fragment
    if not known or not (database.isdigit() or not database):
        raise ConfigError(
            f"online.url = {address.url!r}: write it as redis://host:6379/0, or rediss://host:6379/0 for TLS; "
            "everything else has a setting of its own"
        )
    if address.cluster and database not in ("", "0"):
        raise ConfigError(f"online.url = {address.url!r}: a cluster has no database {database}; leave it out")
    _check_tls(address, parts.scheme)
    return parts


def _check_tls(address: RedisAddress, scheme: str) -> None:
    for name in ("tls_ca", "tls_cert", "tls_key"):
        path: Path | None = getattr(address, name)
        if path is None:
            continue
        if scheme != "rediss":
            raise ConfigError(f"online.{name} is set but online.url is not a rediss:// one; write rediss:// for TLS")
        if not path.is_file():
            raise ConfigError(f"online.{name}: there is no file {path}; name a PEM file")
    if (address.tls_cert is None) != (address.tls_key is None):
        raise ConfigError("online.tls_cert and online.tls_key belong together; set both or neither")
