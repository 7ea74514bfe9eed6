"""Online lookups from Redis over the network, against `feast serve` on the same Redis, and against a constant reply.

Our server is `featurestore serve` with one worker, Feast's is `feast serve` with one worker a core, without its access
log, over a connection that is kept alive. Each client ends with a float32 matrix, and all matrices are compared bit for
bit with a training set before anything is timed. Calls a second are taken by h2load, which costs the other core little.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import peer, world
from benchmarks.measure import SEED, Measured, Result, Setting, Times, Unequal, steadily
from benchmarks.servers import RedisServer, free_port, redis_server
from benchmarks.worker import pinned, two_cores, worker
from benchmarks.world import Shape
from featurestore import FeatureStore
from featurestore.clock import to_us
from featurestore.errors import ConfigError
from featurestore_client import FeatureClient, calls

NAME = "serving"
WHAT = "lookups from Redis over the network: p50 and p99 against feast serve, calls/s against a constant reply"
#: Rows of a request -> what p50 is asked to be against Feast's.
AGAINST_FEAST = {100: 25.0, 1: 8.0}
AGAINST_CONSTANT, WITH_CACHE = 0.5, 0.7
START_S_MAX = 120.0
#: Of calls to both methods, the requests of an h2load run divided among them.
TURNS = 5

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, features of each, how often each lookup runs, and requests of one h2load run."""

    meters: int
    features: int
    calls: int
    requests: int
    batches: tuple[int, ...] = (100, 1)
    peer: bool = True


SIZES = {
    "tiny": Size(meters=300, features=3, calls=5, requests=50, peer=False),
    "small": Size(meters=5_000, features=50, calls=100, requests=2_000),
    "full": Size(meters=100_000, features=50, calls=500, requests=20_000),
}


def run(setting: Setting) -> Result:
    """Latencies of both servers in turn; calls a second of ours, without and with its near cache."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.features)
    measured: list[Measured] = []
    notes: list[str] = []
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(setting.work / "redis"))
        folder = world.make_repository(setting.work / "serving", size.features, redis_url=server.url)
        setting.show(f"publishing {size.meters:,} entities x {size.features}")
        world.fill_history(folder, shape)
        store = stack.enter_context(world.open_store(folder, shape))
        outcome = store.materialize_incremental(load=False)
        if outcome.errors:
            raise outcome.errors[0]
        feast = stack.enter_context(_feast(setting, server, folder, shape)) if size.peer else None
        for cache_mb in (0, 256):
            with _served(folder, shape, cache_mb) as address, FeatureClient(address) as client:
                said = "near cache" if cache_mb else "no near cache"
                for batch in size.batches:
                    setting.show(f"{batch} x {size.features}, {size.calls} calls each way, {said}")
                    keys = _keys(shape, batch)
                    sides = {said: _ours(client, keys)} | ({"Feast": _theirs(feast, keys, shape)} if feast else {})
                    _require_same(sides, store, shape, keys)
                    times = steadily(sides, size.calls)
                    measured += _latencies(f"{batch} x {size.features}", times, said, judged=not cache_mb)
        measured += _rates(setting, folder, shape, size, server, notes)
        version = server.version
    notes.append(f"Redis {version}; the client runs on the cores that the servers run on")
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=notes)


def _keys(shape: Shape, batch: int) -> dict[str, Any]:
    return {world.KEY: np.random.default_rng(SEED).choice(shape.meters, size=batch, replace=False).astype(np.int64)}


def _ours(client: FeatureClient, keys: dict[str, Any]) -> Callable[[], Matrix]:
    return lambda: client.get_online_features(world.SERVICE, keys, format="matrix").to_matrix()


def _theirs(port: int, keys: dict[str, Any], shape: Shape) -> Callable[[], Matrix]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    asked = {
        "features": [f"{world.VIEW}:{name}" for name in shape.fields],
        "entities": {name: column.tolist() for name, column in keys.items()},
    }

    def look_up() -> Matrix:
        connection.request("POST", "/get-online-features", json.dumps(asked), {"content-type": "application/json"})
        reply = json.loads(connection.getresponse().read())
        columns = dict(zip(reply["metadata"]["feature_names"], reply["results"], strict=True))
        return np.array([columns[name]["values"] for name in shape.fields], dtype=np.float32).T

    return look_up


def _require_same(
    sides: dict[str, Callable[[], Matrix]], store: FeatureStore, shape: Shape, keys: dict[str, Any]
) -> None:
    """Unequal unless every side gives what a training set as of now gives."""
    now = pa.array(np.full(len(keys[world.KEY]), to_us(shape.end))).cast(world.TIMESTAMP)
    trained = store.get_historical_features(pa.table({**keys, "as_of": now}), world.SERVICE).to_matrix()
    for name, side in sides.items():
        if not np.array_equal(np.ascontiguousarray(side()).view(np.uint32), trained.view(np.uint32)):
            raise Unequal(f"{NAME}, {len(trained)} rows, {name}: the matrix differs from the training set's")


def _latencies(what: str, times: Mapping[str, Times], ours: str, *, judged: bool) -> list[Measured]:
    """p50 and p99 of each side, and the ratio of the medians; only the way without a cache is judged."""
    measured = [
        Measured(what=f"{what}, {name}, {said}", value=value * 1e3, unit="ms")
        for name, taken in times.items()
        for said, value in (("p50", taken.median), ("p99", taken.percentile(0.99)))
    ]
    if "Feast" in times:
        value = times["Feast"].median / times[ours].median
        required = AGAINST_FEAST[int(what.split(" ", 1)[0])] if judged else None
        measured.append(Measured(what=f"{what}, {ours}, p50 against Feast's", value=value, unit="x", required=required))
    return measured


def _rates(
    setting: Setting, folder: Path, shape: Shape, size: Size, server: RedisServer, notes: list[str]
) -> list[Measured]:
    """Calls a second of one worker, without and with its near cache, beside a constant reply of the same server.

    Judged with the worker on a core of its own, and the store and the generator on the other: a constant reply leaves
    the store idle, so on shared cores it would be given a core that a lookup has to share.
    """
    if shutil.which("h2load") is None:
        notes.append("h2load (nghttp2-client) is not on PATH, so calls a second are not measured")
        return []
    server_core, others = two_cores()
    measured = []
    for cache_mb, required in ((0, AGAINST_CONSTANT), (256, WITH_CACHE)):
        said = "near cache" if cache_mb else "no near cache"
        if server_core and others:
            everywhere = os.sched_getaffinity(0)
            server.run_on(others)
            with pinned(others), _served(folder, shape, cache_mb, script=True, cores=server_core) as address:
                measured.append(_rate(setting, address, shape, size, f"{said}, a core of its own", required))
            server.run_on(everywhere)
        with _served(folder, shape, cache_mb, script=True) as address:
            shared = None if server_core else required
            measured.append(_rate(setting, address, shape, size, f"{said}, all on the same cores", shared))
    notes.append("calls a second: the same 100 keys each time, so calls that are answered together share their rows")
    return measured


def _rate(setting: Setting, address: str, shape: Shape, size: Size, said: str, required: float | None) -> Measured:
    """Medians of calls a second, the two kinds of calls in turn."""
    batch = max(size.batches)
    message = calls.lookup(world.SERVICE, _keys(shape, batch), None, None, "columns", False).message
    what = f"calls/s, {batch} x {size.features}, {said}, against a constant reply"
    setting.show(f"{size.requests:,} {what}")
    taken: dict[str, list[float]] = {"GetOnlineFeatures": [], "Constant": []}
    for _ in range(TURNS):
        for method, rates in taken.items():
            rates.append(_calls_per_s(address, method, message, size.requests // TURNS, setting.work))
    real, constant = map(statistics.median, taken.values())
    detail = f"{real:,.0f} and {constant:,.0f} calls/s"
    return Measured(what=what, value=real / constant, unit="x", required=required, detail=detail)


def _calls_per_s(address: str, method: str, message: bytes, requests: int, work: Path) -> float:
    """A closed loop of 8 calls on one connection."""
    body = work / f"{method}.grpc"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    url = f"http://{address}/featurestore.serving.v1.FeatureServing/{method}"
    command = ["h2load", "-n", str(requests), "-c", "1", "-m", "8", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", url]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    finished, succeeded = re.search(r"finished in .*?, ([\d.]+) req/s", said), re.search(r"(\d+) succeeded", said)
    assert finished is not None, said
    assert succeeded is not None, said
    if int(succeeded[1]) != requests:
        raise Unequal(f"{NAME}: {succeeded[1]} of {requests} calls of {method} succeeded")
    return float(finished[1])


@contextmanager
def _served(
    folder: Path, shape: Shape, cache_mb: int, *, script: bool = False, cores: set[int] | None = None
) -> Iterator[str]:
    """`featurestore serve` as a process of its own; yields its address. `script` adds the constant method."""
    module = "benchmarks.constant_reply" if script else "featurestore.cli.main"
    with worker(folder, shape, module=module, cores=cores, near_cache_megabytes=str(cache_mb)) as running:
        yield running.address


@contextmanager
def _feast(setting: Setting, server: RedisServer, folder: Path, shape: Shape) -> Iterator[int]:
    """`feast serve` on Feast's own rows in the same Redis; yields its port."""
    source = world.write_latest(folder, shape, setting.work / "latest.parquet")
    port = free_port()
    repository = setting.work / "feast-serving"
    request = {
        "folder": str(repository),
        "source": str(source),
        "features": shape.fields,
        "end": shape.end.isoformat(),
        "port": server.port,
        "offline": "duckdb",
        "way": "serve",
    }
    python = peer.interpreter(setting)
    setting.show("Feast's rows into the same Redis")
    script = Path(__file__).with_name("feast_side.py")
    subprocess.run([python, script, json.dumps(request)], check=True, stdout=sys.stderr)
    workers = str(os.cpu_count() or 1)
    feast = str(python.with_name("feast"))
    command = [feast, "-c", str(repository), "serve", "-p", str(port), "-w", workers, "--no-access-log"]
    with (
        (setting.work / "feast-serving.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            _await_port(port, process)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise ConfigError("feast serve did not start; its log lies in the work folder")
