"""`featurestore sidecar` as a user runs it: a process of its own, that ends well even when a model does not."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme

from serving.inference._pb.inference import open_inference_pb2 as pb
from tests.fix_cli import Run
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import infer_request, outputs_of

COMMAND = [sys.executable, "-m", "featurestore.cli.main", "--json", "sidecar"]


@contextmanager
def sidecar(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address, as it says it, and the process."""
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 60)[0], "it says nothing"
            said = "".join(iter(process.stdout.readline, "}\n")) + "}"
            yield json.loads(said)["serving"], process
        finally:
            process.kill()


def infer(
    address: str,
    model: str,
    inputs: dict[str, np.ndarray],
    timeout_s: float = 20,
    credentials: grpc.ChannelCredentials | None = None,
) -> dict[str, np.ndarray]:
    made = grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    with made as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        reply = method(infer_request(model, inputs).SerializeToString(), timeout=timeout_s)
    return outputs_of(pb.ModelInferResponse.FromString(reply))


def test_it_serves_on_a_unix_socket_and_ends_with_0(tmp_path: Path) -> None:
    models.write_linear(tmp_path / "models" / "linear" / "1", np.array([1, 10, 100], np.float32))
    with sidecar("--models", str(tmp_path / "models"), "--address", f"unix://{tmp_path}/s.sock") as (address, process):
        found = infer(address, "linear", {"x": np.ones((2, 3), np.float32)})["y"]
        second = subprocess.run(
            [*COMMAND, "--models", str(tmp_path / "models"), "--address", address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)

    assert found.tolist() == [[111.0], [111.0]]
    assert (second.returncode, "another process answers there" in second.stdout) == (2, True)
    assert code == 0


def test_it_ends_though_a_model_hangs(tmp_path: Path) -> None:
    models.write_spinner(tmp_path / "spinner" / "1")
    (tmp_path / "spinner" / "config.toml").write_text("run_timeout_s = 0.2\nbatching = false\n")
    with sidecar("--models", str(tmp_path), "--address", "127.0.0.1:0") as (address, process):
        with pytest.raises(grpc.RpcError, match="has not answered"):
            infer(address, "spinner", {"turns": np.array([1 << 60])})
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)

    assert code == 0


def test_a_folder_that_is_not_there_is_the_users_fault(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--models", str(tmp_path / "none")], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert "name a folder of models with --models" in json.loads(done.stdout)["error"]["message"]


def test_with_certificates_it_answers_only_who_shows_one(tmp_path: Path) -> None:
    """As a stranger's client sees it; the certificates lie where the command is told to work."""
    ca, client_ca = trustme.CA(), trustme.CA()
    mine, own = client_ca.issue_cert("serving.internal"), ca.issue_cert("127.0.0.1")
    (tmp_path / "own.pem").write_bytes(own.cert_chain_pems[0].bytes())
    (tmp_path / "own.key").write_bytes(own.private_key_pem.bytes())
    (tmp_path / "clients.pem").write_bytes(client_ca.cert_pem.bytes())
    models.write_linear(tmp_path / "linear" / "1", np.array([1, 10, 100], np.float32))
    pair = ("--tls-cert", f"{tmp_path}/own.pem", "--tls-key", f"{tmp_path}/own.key")
    root, inputs = ca.cert_pem.bytes(), {"x": np.ones((1, 3), np.float32)}
    shown = grpc.ssl_channel_credentials(root, mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes())
    arguments = ("--models", str(tmp_path), "--address", "127.0.0.1:0", "--tls-client-ca", f"{tmp_path}/clients.pem")
    with sidecar(*arguments, *pair) as (address, _):
        for strange in (None, grpc.ssl_channel_credentials(root)):
            with pytest.raises(grpc.RpcError) as caught:
                infer(address, "linear", inputs, credentials=strange)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert infer(address, "linear", inputs, credentials=shown)["y"].tolist() == [[111.0]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tls-cert", "none.pem"), "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca", "none.pem"), "give --tls-cert and --tls-key too"),
    ],
)
def test_certificates_that_do_not_go_together_are_refused(
    inside: Run, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    done = inside(tmp_path, "--json", "sidecar", "--models", tmp_path, *flags)

    assert (done.code, said in done.error["message"]) == (2, True)
