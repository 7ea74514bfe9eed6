"""The way from the serving process to whoever runs its models: our sidecar, Triton, or any other KServe v2 server.

Knows the Open Inference Protocol and nothing of features. A call is repeated only when the request was never sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from featurestore.errors import (
    FeatureStoreError,
    InputError,
    ModelFailed,
    ModelOutOfMemory,
    ModelUnavailable,
    NotFoundError,
    ServingError,
)
from featurestore_client.errors import RETRY_AFTER_MS
from serving.access.certificates import PemFiles
from serving.admission import Overloaded
from serving.circuit import Circuit, CircuitState
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.inference.tensors import CONTENTS, DTYPES, to_raw
from serving.sidecar_channel import SidecarChannel, is_unsent

SIGNATURE = "featurestore_signature"
_PAUSE_S = 0.02
PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SidecarAccess:
    """Where the models are (`host:port` or `unix:///path`), how long they may take, what is not insisted on."""

    address: str
    timeout_s: float = 1.0
    #: Further tries when nobody could be reached.
    retries: int = 2
    #: Whether models without a signature are fed.
    unsigned: bool = False
    #: None: plaintext.
    tls: PemFiles | None = None
    message_bytes_max: int = 64 << 20


class NoSuchModel(NotFoundError):
    """The sidecar does not know the model, or its version."""

    def __init__(self, name: str, said: str) -> None:
        self.kind, self.name, self.known = "model", name, ()
        FeatureStoreError.__init__(self, said)


class SidecarOverloaded(Overloaded):
    """The sidecar turned the request away."""

    def __init__(self, said: str, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        ServingError.__init__(self, said)


@dataclass(frozen=True)
class ModelDescription:
    """What a model takes, and what it was trained on; `version` and `signature` are told by our sidecar alone."""

    version: str
    #: (name, datatype, shape) of each.
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    signature: dict[str, Any] | None


class Sidecar:
    """A channel to the models. Make it in the event loop that uses it; ConfigError when its certificates are bad."""

    def __init__(self, access: SidecarAccess) -> None:
        self.access = access
        options = [
            ("grpc.max_receive_message_length", access.message_bytes_max),
            ("grpc.max_send_message_length", access.message_bytes_max),
            ("grpc.enable_retries", 0),
            # A sidecar that restarts is back within seconds.
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]
        self._channel = SidecarChannel(access.address, options, access.tls, access.timeout_s)
        self._circuit = Circuit(f"the sidecar at {access.address}", self._answers)

    @property
    def state(self) -> CircuitState:
        """Whether requests reach it."""
        return self._circuit.state

    async def describe(self, model: str, version: str) -> ModelDescription:
        """What the model takes; ModelUnavailable, NoSuchModel."""
        asked = pb.ModelMetadataRequest(name=model, version=version)
        told = pb.ModelMetadataResponse.FromString(await self._call("ModelMetadata", asked, model))
        text = told.parameters[SIGNATURE].string_param if SIGNATURE in told.parameters else ""
        return ModelDescription(
            version=told.parameters["version"].string_param if "version" in told.parameters else version,
            inputs=tuple((spec.name, spec.datatype, tuple(spec.shape)) for spec in told.inputs),
            outputs=tuple(spec.name for spec in told.outputs),
            signature=_document(text, model),
        )

    async def infer(self, asked: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """The model's answer; the error that it is otherwise."""
        reply = await self._call("ModelInfer", asked, asked.model_name)
        return pb.ModelInferResponse.FromString(reply)

    async def close(self) -> None:
        """Close the channel."""
        self._circuit.close()
        await self._channel.close()

    async def _call(self, method: str, asked: Any, model: str) -> bytes:
        if self._circuit.is_open:
            raise ModelUnavailable(self._circuit.refusal)
        message = asked.SerializeToString()
        deadline = asyncio.get_running_loop().time() + self.access.timeout_s
        for tries_left in range(self.access.retries, -1, -1):
            remaining_s = deadline - asyncio.get_running_loop().time()
            try:
                reply: bytes = await self._channel.method(method)(message, timeout=max(remaining_s, 0.001))
            except grpc.aio.AioRpcError as error:
                fault = self._fault(error, model)
                if not is_unsent(error):
                    self._count(error, fault)
                    raise fault from error
                if not tries_left or remaining_s <= _PAUSE_S:
                    self._circuit.failed(fault)
                    raise fault from error
                await asyncio.sleep(_PAUSE_S)
            else:
                self._circuit.succeeded()
                return reply
        raise AssertionError("the last try returns or raises")

    def _count(self, error: grpc.aio.AioRpcError, fault: Exception) -> None:
        """A sidecar that is silent is like one that is not there; one that refuses is there."""
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            self._circuit.failed(fault)
        else:
            self._circuit.succeeded()

    def _fault(self, error: grpc.aio.AioRpcError, model: str) -> Exception:
        said = error.details() or ""
        match error.code():
            case grpc.StatusCode.UNAVAILABLE if not is_unsent(error):
                return ModelUnavailable(f"the sidecar: {said}")
            case grpc.StatusCode.UNAVAILABLE:
                return ModelUnavailable(
                    f"no sidecar answers at {self.access.address} ({said}); {self._channel.hint(error)}"
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return TimeoutError(
                    f"the sidecar at {self.access.address} has not answered within {self.access.timeout_s:g} s; look "
                    "at the model, or raise inference.timeout_s"
                )
            case grpc.StatusCode.NOT_FOUND:
                return NoSuchModel(model, f"the sidecar: {said}")
            case grpc.StatusCode.INVALID_ARGUMENT:
                return InputError(f"the sidecar: {said}")
            case grpc.StatusCode.FAILED_PRECONDITION:
                return ServingError(f"the sidecar: {said}")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                hint = dict(error.trailing_metadata() or ()).get(RETRY_AFTER_MS)
                if isinstance(hint, str) and hint.isdecimal():
                    return SidecarOverloaded(f"the sidecar: {said}", int(hint))
                return ModelOutOfMemory(f"the sidecar: {said}")
        return ModelFailed(f"the sidecar: {error.code().name}: {said}")

    async def _answers(self) -> bool:
        try:
            await self._channel.method("ServerLive")(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return True


def infer_request(
    model: str, version: str, input_name: str, shape: Sequence[int], raw: bytes, outputs: Sequence[str]
) -> pb.ModelInferRequest:
    """A ModelInferRequest with one FP32 input."""
    asked = pb.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=[raw])
    asked.inputs.add(name=input_name, datatype="FP32", shape=shape)
    for name in outputs:
        asked.outputs.add(name=name)
    return asked


def raw_outputs(reply: pb.ModelInferResponse) -> list[bytes]:
    """The bytes of every output; ModelFailed where some are missing. Other servers may send typed contents."""
    raw = list(reply.raw_output_contents) or [_typed(tensor) for tensor in reply.outputs]
    if len(raw) != len(reply.outputs):
        raise ModelFailed(
            f"the server of model {reply.model_name!r} gave {len(reply.outputs)} outputs, {len(raw)} of them raw; it "
            "must send all of them raw, or none"
        )
    return raw


def _typed(tensor: pb.ModelInferResponse.InferOutputTensor) -> bytes:
    if tensor.datatype not in CONTENTS:
        raise ModelFailed(f"output {tensor.name!r} is {tensor.datatype}, which must be sent raw; mend its server")
    return to_raw(np.array(getattr(tensor.contents, CONTENTS[tensor.datatype]), DTYPES[tensor.datatype]))


def _document(text: str, model: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ServingError(f"the signature of model {model!r} is no JSON: {error}; write it again") from error
    return document if isinstance(document, dict) else None
