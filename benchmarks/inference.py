"""Predict against its parts, batching against none, and from stored rows to the tensor: linear ONNX models on the CPU.

Serving process and sidecar run as users start them, over a unix socket. Before anything is timed, predictions are
compared with the model on the matrix of a training set.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import world
from benchmarks.measure import SEED, Measured, Result, Setting, Unequal, steadily, timed
from benchmarks.models import write_heavy, write_linear
from benchmarks.world import Shape
from featurestore import FeatureStore
from featurestore.clock import to_us
from featurestore.matrix import to_matrix
from featurestore_client import FeatureClient
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.local import local_lookup
from serving.sidecar import infer_request

NAME = "inference"
WHAT = "Predict against lookup + ModelInfer, batching against none, rows to tensor"
AGAINST_PARTS_MAX, BATCHING_MIN, ROW_US_MAX = 1.3, 3.0, 3.0
CONCURRENT = 64
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Entities online, features of each, rows of a request, calls of each side, requests at 64 at a time.

    `work` is the width of the model that takes its time: 5 ms and more a call at full size.
    """

    meters: int
    features: int
    rows: int
    calls: int
    requests: int
    work: int


SIZES = {
    "tiny": Size(meters=300, features=3, rows=5, calls=5, requests=64, work=64),
    "small": Size(meters=5_000, features=50, rows=100, calls=200, requests=512, work=2_048),
    "full": Size(meters=100_000, features=50, rows=100, calls=2_000, requests=2_048, work=2_048),
}


def run(setting: Setting) -> Result:
    """Ratios of medians for Predict, of rates for batching, and the time of a row."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.meters, meters=size.meters, features=size.features)
    folder, models = world.make_repository(setting.work / "inference", size.features), setting.work / "models"
    weights = np.random.default_rng(SEED).normal(size=size.features).astype(np.float32)
    write_linear(models / "linear" / "1", weights)
    for name, batching in (("together", "true"), ("apart", "false")):
        write_heavy(models / name / "1", size.work)
        (models / name / "config.toml").write_text(f"batching = {batching}\nmax_batch_rows = {CONCURRENT}\n")
    setting.show(f"publishing {size.meters:,} entities x {size.features}")
    world.fill_history(folder, shape)
    with ExitStack() as stack:
        store = stack.enter_context(world.open_store(folder, shape))
        outcome = store.materialize_incremental(load=False)
        if outcome.errors:
            raise outcome.errors[0]
        sidecar = stack.enter_context(
            started("sidecar", "--models", str(models), "--address", f"unix://{setting.work}/s.sock")
        )
        served = ("-C", str(folder), "--now", shape.end.isoformat(), "serve", "--port", "0")
        environment = {"FEATURESTORE_INFERENCE_ADDRESS": sidecar, "FEATURESTORE_INFERENCE_UNSIGNED": "true"}
        target = stack.enter_context(started(*served, **environment))
        client = stack.enter_context(FeatureClient(target))
        channel = stack.enter_context(grpc.insecure_channel(sidecar))
        measured = [
            *_against_parts(setting, store, shape, size, weights, client, channel),
            *_batching(setting, size, channel),
            _rows_to_tensor(store, shape, size),
        ]
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=["all processes share the cores"])


def _against_parts(
    setting: Setting,
    store: FeatureStore,
    shape: Shape,
    size: Size,
    weights: NDArray[np.float32],
    client: FeatureClient,
    channel: grpc.Channel,
) -> list[Measured]:
    keys: dict[str, Any] = {
        world.KEY: np.random.default_rng(SEED).choice(shape.meters, size=size.rows, replace=False).astype(np.int64)
    }
    now = pa.array(np.full(size.rows, to_us(shape.end))).cast(world.TIMESTAMP)
    matrix = store.get_historical_features(pa.table({**keys, "as_of": now}), world.SERVICE).to_matrix()
    sides: dict[str, Callable[[], Any]] = {
        "lookup": lambda: client.get_online_features(world.SERVICE, keys, format="matrix").to_matrix(),
        "ModelInfer": lambda: _infer(channel, "linear", matrix),
        "Predict": lambda: client.predict(world.SERVICE, "linear", keys).outputs["y"],
    }
    if not np.array_equal(sides["lookup"]().view(np.uint32), matrix.view(np.uint32)):
        raise Unequal("the matrix of a lookup differs from the training set's")
    if not np.array_equal(sides["Predict"](), _infer(channel, "linear", matrix), equal_nan=True):
        raise Unequal("Predict and ModelInfer of the training set's matrix differ")
    if not np.allclose(sides["Predict"]()[:, 0], matrix @ weights, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise Unequal("the model's answer is not the product")
    for side in sides.values():
        timed(side, min(50, size.calls))
    what = f"{size.rows} x {size.features}"
    setting.show(f"{what}, {size.calls} calls each way")
    times = steadily(sides, size.calls)
    parts = times["lookup"].median + times["ModelInfer"].median
    return [
        *(
            Measured(what=f"{what} {name}, {said}", value=value * 1e3, unit="ms")
            for name, taken in times.items()
            for said, value in (("p50", taken.median), ("p99", taken.percentile(0.99)))
        ),
        Measured(
            what=f"{what} Predict against lookup + ModelInfer, p50",
            value=times["Predict"].median / parts,
            unit="x",
            required=AGAINST_PARTS_MAX,
            sense="at most",
        ),
    ]


def _batching(setting: Setting, size: Size, channel: grpc.Channel) -> list[Measured]:
    x = np.random.default_rng(SEED).normal(size=(1, size.work)).astype(np.float32)
    if not np.allclose(_infer(channel, "together", x), _infer(channel, "apart", x), rtol=1e-4):
        raise Unequal("the model answers differently with and without batching")
    one = timed(lambda: _infer(channel, "apart", x), 20)
    rates = {}
    for name in ("apart", "together"):
        setting.show(f"{size.requests:,} requests of one row, {CONCURRENT} at a time, {name}")
        with ThreadPoolExecutor(CONCURRENT) as pool:
            began = time.perf_counter()
            list(pool.map(lambda _, name=name: _infer(channel, name, x), range(size.requests)))
            rates[name] = size.requests / (time.perf_counter() - began)
    return [
        Measured(
            what=f"requests/s at {CONCURRENT} at a time, batching against none",
            value=rates["together"] / rates["apart"],
            unit="x",
            required=BATCHING_MIN,
            detail=f"{rates['together']:,.0f} and {rates['apart']:,.0f}/s; one call alone {one.median * 1e3:.1f} ms",
        )
    ]


def _rows_to_tensor(store: FeatureStore, shape: Shape, size: Size) -> Measured:
    """Packed rows as the store gave them, to the matrix: what no detour on the way to a model could save."""
    repository = store.repository
    own = (repository.registry, repository.state, repository.online, repository.clock)
    lookup = local_lookup(*own, world.SERVICE, None)
    keys = np.random.default_rng(SEED).choice(shape.meters, size=size.rows, replace=False).astype(np.int64)
    asked = lookup.ask([lookup.check({world.KEY: pa.array(keys)})])
    found = [repository.online.read(wanted.ref, wanted.keys) for wanted in asked.wanted]

    (view,) = lookup.plan.views
    rows = asked.distinct[0].in_order(found[0])

    def tensor() -> NDArray[np.float32]:
        return to_matrix(lookup.plan.matrix, view.decoder.decode(rows).decoded.for_matrix())

    times = steadily({"": tensor}, size.calls)[""]
    return Measured(
        what=f"stored rows to tensor, {size.rows} x {size.features}, a row",
        value=times.median / size.rows * 1e6,
        unit="us",
        required=ROW_US_MAX,
        sense="at most",
        detail=f"best {times.best / size.rows * 1e6:.2f} us",
    )


def _infer(channel: grpc.Channel, model: str, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    asked = infer_request(model, "", "x", matrix.shape, matrix.tobytes(), ())
    reply = pb.ModelInferResponse.FromString(channel.unary_unary(_INFER)(asked.SerializeToString(), timeout=60))
    return np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(tuple(reply.outputs[0].shape))


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[str]:
    """A command of ours that serves, as a process of its own; yields its address."""
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "featurestore.cli.main", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"serving on (\S+)", said)
            assert found is not None, f"{arguments} did not start: {said!r}"
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
