"""Others speak with our sidecar, and we with others: Triton's own client, and a KServe ModelServer.

Both want a protobuf older than ours, so each has an environment of its own, kept in the folder of temporary files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.environment import interpreter
from featurestore_client import FeatureClient, NotFound, RequestFailed, Retries
from serving.server import ServeOptions
from serving.sidecar import SidecarAccess
from tests.ports import free_port
from tests.unit.serving.conftest import Backend
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import running
from tests.unit.serving.running import server

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENVIRONMENTS = Path(tempfile.gettempdir()) / "featurestore-interop"


def python(name: str, *requirements: str) -> Path:
    ENVIRONMENTS.mkdir(exist_ok=True)
    return interpreter(ENVIRONMENTS / name, requirements, lambda said: print(said, file=sys.stderr))


def test_the_client_of_triton_works_with_our_sidecar(tmp_path: Path) -> None:
    models.write_linear(tmp_path / "linear" / "1", np.array([1, 10, 100], np.float32))
    interpreter_ = python("tritonclient", "tritonclient[grpc]==2.*")
    with running(tmp_path) as sidecar:
        done = subprocess.run(
            [interpreter_, HERE / "triton_side.py", sidecar.address],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    expected = (np.arange(12).reshape(4, 3) @ [1, 10, 100]).tolist()
    assert (told["live"], told["ready"], told["model ready"]) == (True, True, True)
    assert told["server"]["name"] == "featurestore-sidecar"
    assert told["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert told["index"]["models"] == [{"name": "linear", "version": "1", "state": "READY"}]
    assert told["answer"] == told["shared"] == expected
    assert {name: status for name, (status, _) in told["refused"].items()} == {
        "model": "StatusCode.NOT_FOUND",
        "input": "StatusCode.INVALID_ARGUMENT",
        "shape": "StatusCode.INVALID_ARGUMENT",
    }
    assert (told["unloaded"], told["loaded"]) == (False, True)


@contextmanager
def kserve(folder: Path) -> Iterator[int]:
    """A KServe ModelServer; yields its gRPC port."""
    port = free_port()
    command = [str(python("kserve", "kserve==0.21.*")), str(HERE / "kserve_side.py"), str(port), str(free_port())]
    with (
        (folder / "kserve.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield port
        finally:
            process.kill()


def test_predict_works_with_a_model_server_of_kserve(tmp_path: Path) -> None:
    keys: dict[str, list[Any]] = {"origin": ["JFK", "JFK", "JFK"], "number": [1, 2, 1]}
    request = {"hour": [1, 2, 3]}
    with kserve(tmp_path) as port, Backend.filled(tmp_path) as backend:
        access = SidecarAccess(address=f"127.0.0.1:{port}", unsigned=True, timeout_s=5.0)
        options = ServeOptions(port=0, sidecar=access)
        with server(backend.engine(), options) as serving, patient(serving.target) as client:
            await_server(client, keys, request, tmp_path / "kserve.log")
            for rows in (2, 3):  # KServe answers raw, and typed
                few = {name: values[:rows] for name, values in keys.items()}
                asked = {"hour": request["hour"][:rows]}
                matrix = client.get_online_features("departures", few, request=asked, format="matrix").to_matrix()
                found = client.predict("departures", "linear", few, request=asked).outputs["y"]

                np.testing.assert_allclose(found[:, 0], matrix @ (10.0 ** np.arange(5)), rtol=1e-6)
            with pytest.raises((NotFound, RequestFailed), match="none"):
                client.predict("departures", "none", keys, request=request)


def patient(target: str) -> FeatureClient:
    return FeatureClient(target, timeout_s=60, retries=Retries(attempts_max=1_000))


def await_server(client: FeatureClient, keys: dict, request: dict, log: Path) -> None:
    """Predict until KServe is up; retried by the client while nobody answers there."""
    try:
        client.predict("departures", "linear", keys, request=request, timeout_s=60)
    except RequestFailed as error:
        pytest.fail(f"{error}\n{log.read_text()[-2000:]}")
