"""A sidecar on its own thread and event loop, and a caller that speaks the protocol without anybody's client."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from featurestore.errors import FeatureStoreError
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.inference.server import SidecarOptions, sidecar
from serving.inference.servicer import SERVICE
from serving.inference.tensors import datatype_of, from_raw, to_raw
from tests.waiting import WAIT_S

POLL_S = 0.05


class RunningSidecar:
    """Runs until the block ends; raises what keeps it from starting."""

    def __init__(self, options: SidecarOptions) -> None:
        self._address: Future[str] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(options),))
        self._thread.start()
        self.address = self._address.result(timeout=WAIT_S)
        self.channel = grpc.insecure_channel(self.address)

    def stop(self) -> None:
        """Begin to drain."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
            self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(timeout=WAIT_S)
        assert not self._thread.is_alive()
        self.channel.close()

    async def _serve(self, options: SidecarOptions) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with sidecar(options) as address:
                self._address.set_result(address)
                await self._stopping.wait()
        except FeatureStoreError as error:
            self._address.set_exception(error)

    # ------------------------------------------------------------------ calls

    def call(self, method: str, request: Any, reply: type[Any], timeout_s: float = WAIT_S) -> Any:
        """One call of the protocol."""
        send = self.channel.unary_unary(f"/{SERVICE}/{method}", response_deserializer=reply.FromString)
        return send(request if isinstance(request, bytes) else request.SerializeToString(), timeout=timeout_s)

    def reply(self, model: str, inputs: Mapping[str, NDArray], timeout_s: float = WAIT_S, **asked: Any) -> Any:
        """The reply of ModelInfer, inputs raw."""
        return self.call("ModelInfer", infer_request(model, inputs, **asked), pb.ModelInferResponse, timeout_s)

    def infer(
        self, model: str, inputs: Mapping[str, NDArray], timeout_s: float = WAIT_S, **asked: Any
    ) -> dict[str, NDArray]:
        """The outputs of ModelInfer by name."""
        return outputs_of(self.reply(model, inputs, timeout_s, **asked))

    def ready(self, model: str, version: str = "") -> bool:
        """ModelReady."""
        return self.call("ModelReady", pb.ModelReadyRequest(name=model, version=version), pb.ModelReadyResponse).ready

    def metadata(self, model: str, version: str = "") -> Any:
        """ModelMetadata."""
        return self.call(
            "ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), pb.ModelMetadataResponse
        )

    def load(self, model: str) -> None:
        """RepositoryModelLoad."""
        self.call(
            "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=model), pb.RepositoryModelLoadResponse
        )

    def unload(self, model: str) -> None:
        """RepositoryModelUnload."""
        self.call(
            "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=model), pb.RepositoryModelUnloadResponse
        )

    def index(self) -> list[tuple[str, str, str, str]]:
        """RepositoryIndex: (name, version, state, reason)."""
        reply = self.call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
        return [(one.name, one.version, one.state, one.reason) for one in reply.models]

    def health(self, name: str) -> str:
        """grpc.health.v1 of the server (empty) or a model."""
        check = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )
        reply = check(health_pb2.HealthCheckRequest(service=name).SerializeToString(), timeout=20)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def infer_request(
    model: str,
    inputs: Mapping[str, NDArray],
    *,
    version: str = "",
    request_id: str = "",
    outputs: tuple[str, ...] = (),
    signature: str | None = None,
) -> pb.ModelInferRequest:
    """A ModelInferRequest with raw inputs."""
    asked = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, tensor in inputs.items():
        asked.inputs.add(name=name, datatype=datatype_of(tensor.dtype), shape=tensor.shape)
        asked.raw_input_contents.append(to_raw(tensor))
    for name in outputs:
        asked.outputs.add(name=name)
    if signature is not None:
        asked.parameters["featurestore_signature"].string_param = signature
    return asked


def outputs_of(reply: Any) -> dict[str, NDArray]:
    """The outputs of a reply by name."""
    return {
        tensor.name: from_raw(data, tensor.datatype, tuple(tensor.shape), tensor.name)
        for tensor, data in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


@contextlib.contextmanager
def running(models: Path, **options: Any) -> Iterator[RunningSidecar]:
    """A sidecar over a folder of models, on a free port, that looks at the folder often."""
    chosen = {"address": "127.0.0.1:0", "poll_s": POLL_S, "drain_s": 5.0, **options}
    made = RunningSidecar(SidecarOptions(models=models, **chosen))
    try:
        yield made
    finally:
        made.stop()
        made.join()


def rows(count: int, width: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """Random rows."""
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
