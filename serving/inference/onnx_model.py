"""ONNX models in ONNX Runtime: on CUDA where its build has it and a device answers, on the CPU otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from featurestore.errors import ModelFailed, ModelOutOfMemory, ModelUnavailable
from serving.inference.model import Feeds
from serving.inference.tensors import ANY_SIZE, Tensor, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
#: They have no class in common but Exception.
_FAULTS = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
_NO_MEMORY = ("failed to allocate", "out of memory", "bad_alloc", "bad allocation")
#: In the order of preference.
_PROVIDERS = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}


class OnnxModel:
    """A session; it locks nothing, so threads run it side by side."""

    platform = "onnxruntime_onnx"

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the processor from those that answer requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        there = onnxruntime.get_available_providers()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[name for name in _PROVIDERS if name in there]
            )
        except _FAULTS as error:
            raise ModelUnavailable(
                f"{path} cannot be loaded: {_first_line(error)}; export it again, or restore the file"
            ) from error
        self.device = _PROVIDERS[self._session.get_providers()[0]]
        self.inputs = tuple(_spec(node, path) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._texts = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]

    def run(self, feeds: Feeds) -> list[Tensor]:
        """The outputs in order."""
        if self._texts:
            feeds = {**feeds, **{name: _text(feeds[name], name) for name in self._texts}}
        try:
            outputs: list[Tensor] = self._session.run(self._names, feeds)
        except _FAULTS as error:
            said = str(error).lower()
            kind = ModelOutOfMemory if any(words in said for words in _NO_MEMORY) else ModelFailed
            raise kind(_first_line(error)) from error
        return outputs

    def device_bytes(self) -> int | None:
        """None: ONNX Runtime does not say."""
        return None


def _spec(node: onnxruntime.NodeArg, path: Path) -> TensorSpec:
    if node.type not in _DATATYPES:
        raise ModelUnavailable(
            f"{path}: {node.name!r} is {node.type}, which has no place in the protocol; export the model with tensors "
            "only (skl2onnx: options={'zipmap': False})"
        )
    shape = tuple(size if isinstance(size, int) else ANY_SIZE for size in node.shape)
    return TensorSpec(node.name, _DATATYPES[node.type], shape)


def _text(tensor: Tensor, name: str) -> Tensor:
    try:
        decoded: Tensor = np.array([value.decode() for value in tensor.ravel().tolist()], object).reshape(tensor.shape)
    except UnicodeDecodeError as error:
        raise ModelFailed(f"input {name!r} is not UTF-8, as text is in ONNX: {error}") from error
    return decoded


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]
