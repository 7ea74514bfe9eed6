"""Exported PyTorch programs (torch.export): on CUDA where a device answers, on the CPU otherwise.

Requests are padded to the nearest of a few fixed sizes, so that memory is allocated once and, on a GPU, each size is a
CUDA graph: inputs go from pinned memory to the device without blocking, one launch runs all kernels, outputs come back
the same way, and only then does the thread wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from featurestore.errors import ModelFailed, ModelOutOfMemory, ModelUnavailable
from serving.inference.model import Feeds
from serving.inference.tensors import ANY_SIZE, Tensor, TensorSpec

_DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
#: Runs before a graph is captured, as PyTorch asks for: libraries set themselves up in the first ones.
_CAPTURE_WARM_UPS = 3


class TorchModel:
    """A program on one device. Runs take turns: there is one stream, and one set of buffers for each size."""

    platform = "pytorch_export"

    def __init__(self, path: Path, rows_max: int, *, cuda_graphs: bool) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._graphs = cuda_graphs and self.device == "cuda"
        self._lock = threading.Lock()
        before = self._allocated()
        try:
            program = torch.export.load(path)
            self._module = program.module().to(self.device)
        except torch.OutOfMemoryError as error:
            raise ModelUnavailable(f"{path} does not fit on the device: {error}") from error
        except (RuntimeError, ValueError, OSError, LookupError, AttributeError, BadZipFile) as error:
            raise ModelUnavailable(f"{path} cannot be loaded: {error}; export it again with torch.export") from error
        self.inputs, self.outputs = _specs(program, path)
        self._weights_bytes = self._allocated() - before
        self._stream = torch.cuda.Stream() if self.device == "cuda" else None
        rows_min = _rows_min(program)
        self._sizes = tuple(_sizes(rows_min, rows_max)) if self.inputs and self.inputs[0].has_rows else ()
        self._buffers: dict[int, _Buffers] = {}

    def run(self, feeds: Feeds) -> list[Tensor]:
        """The outputs in order."""
        rows = len(feeds[self.inputs[0].name]) if self._sizes else 0
        size = next((size for size in self._sizes if size >= rows), 0)
        try:
            with self._lock, torch.inference_mode():
                if not self._is_fixed(size):
                    return self._run_as_is(feeds, rows)
                return self._run_sized(feeds, rows, size)
        except torch.OutOfMemoryError as error:
            raise ModelOutOfMemory(f"{error}; send fewer rows, or lower max_batch_rows") from error
        except RuntimeError as error:
            raise ModelFailed(f"the model raised: {error}") from error

    def device_bytes(self) -> int | None:
        """Weights and buffers on the GPU."""
        if self._stream is None:
            return None
        return self._weights_bytes + sum(buffers.bytes for buffers in list(self._buffers.values()))

    def _is_fixed(self, size: int) -> bool:
        """Whether buffers of a fixed size serve this request."""
        one_row = all(ANY_SIZE not in spec.shape[1:] for spec in self.inputs)
        return self._stream is not None and size > 0 and one_row

    def _run_as_is(self, feeds: Feeds, rows: int) -> list[Tensor]:
        short = bool(self._sizes) and rows < self._sizes[0]
        given = []
        for spec in self.inputs:
            tensor = feeds[spec.name]
            if short:
                tensor = np.concatenate([tensor, np.zeros((self._sizes[0] - rows, *tensor.shape[1:]), tensor.dtype)])
            # PyTorch may write to what it is given, and the bytes of a request are not to be written to.
            given.append(torch.from_numpy(np.array(tensor)).to(self.device))
        outputs = [tensor.cpu().numpy() for tensor in self.call(given)]
        return [tensor[:rows] for tensor in outputs] if short else outputs

    def _run_sized(self, feeds: Feeds, rows: int, size: int) -> list[Tensor]:
        assert self._stream is not None, "buffers are for GPUs"
        with torch.cuda.stream(self._stream):
            if size not in self._buffers:
                self._buffers[size] = _Buffers(self, size, graph=self._graphs, stream=self._stream)
            buffers = self._buffers[size]
            for spec, pinned, on_device in zip(self.inputs, buffers.pinned, buffers.inputs, strict=True):
                pinned[:rows].numpy()[...] = feeds[spec.name]
                pinned[rows:].zero_()
                on_device.copy_(pinned, non_blocking=True)
            outputs = buffers.launch()
            for tensor, pinned in zip(outputs, buffers.returned, strict=True):
                pinned[:rows].copy_(tensor[:rows], non_blocking=True)
        self._stream.synchronize()  # the interpreter is free meanwhile
        return [pinned[:rows].numpy().copy() for pinned in buffers.returned]

    def call(self, inputs: list[Any]) -> list[Any]:
        """The program on tensors of the device."""
        return _listed(self._module(*inputs))

    def _allocated(self) -> int:
        return int(torch.cuda.memory_allocated()) if self.device == "cuda" else 0


class _Buffers:
    """The tensors of one size, pinned and on the device, and the graph that leads from inputs to outputs."""

    def __init__(self, model: TorchModel, size: int, *, graph: bool, stream: Any) -> None:
        before = torch.cuda.memory_allocated()
        self._model, self._graph = model, None
        self.pinned = [
            torch.zeros((size, *spec.shape[1:]), dtype=_dtype(spec), pin_memory=True) for spec in model.inputs
        ]
        self.inputs = [tensor.to("cuda") for tensor in self.pinned]
        for _ in range(_CAPTURE_WARM_UPS):
            self._outputs = model.call(self.inputs)
        if graph:
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._outputs = model.call(self.inputs)
        self.returned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in self._outputs]
        self.bytes = int(torch.cuda.memory_allocated() - before)

    def launch(self) -> list[Any]:
        """The outputs of what is in `inputs`, as soon as the stream gets there."""
        if self._graph is None:
            return self._model.call(self.inputs)
        self._graph.replay()
        return self._outputs


def _specs(program: Any, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    signature, nodes = program.graph_signature, {node.name: node for node in program.graph.nodes}
    inputs = tuple(_spec(name, nodes[name].meta["val"], path) for name in signature.user_inputs)
    outputs = tuple(
        _spec(f"output__{place}", nodes[name].meta["val"], path) for place, name in enumerate(signature.user_outputs)
    )
    return inputs, outputs


def _spec(name: str, value: Any, path: Path) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in _DATATYPES:
        raise ModelUnavailable(f"{path}: {name!r} is no tensor of a type that the protocol has; export it with tensors")
    # Sizes that vary are symbols.
    return TensorSpec(
        name, _DATATYPES[value.dtype], tuple(size if isinstance(size, int) else ANY_SIZE for size in value.shape)
    )


def _rows_min(program: Any) -> int:
    """Programs exported with a varying size often want at least 2 of it."""
    lowers = [int(bounds.lower) for bounds in program.range_constraints.values()]
    return max([1, *lowers])


def _sizes(rows_min: int, rows_max: int) -> Iterator[int]:
    """Powers of two from the least that the program takes to the first that holds the largest batch."""
    size = 1
    while size < rows_min:
        size *= 2
    yield size
    while size < rows_max:
        size *= 2
        yield size


def _dtype(spec: TensorSpec) -> Any:
    return next(dtype for dtype, name in _DATATYPES.items() if name == spec.datatype)


def _listed(outputs: Any) -> list[Any]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
