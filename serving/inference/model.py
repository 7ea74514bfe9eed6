"""What a model is to the sidecar, whatever made it; and which adapter reads which file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from featurestore.errors import ModelUnavailable
from serving.inference.model_config import ModelConfig
from serving.inference.tensors import Tensor, TensorSpec

Feeds = Mapping[str, Tensor]


class Model(Protocol):
    """A model in memory. `run` may be called by several threads at a time."""

    #: What the protocol calls the kind of model.
    platform: str
    #: Where it runs: `cpu`, or `cuda`.
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> list[Tensor]:
        """The outputs in order; ModelFailed, ModelOutOfMemory, or whatever the model raises."""
        ...

    def device_bytes(self) -> int | None:
        """Memory taken on the device; None where that is not known."""
        ...


ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"


def load_model(folder: Path, config: ModelConfig) -> Model:
    """The model in a version's folder; ModelUnavailable says why there is none."""
    if (folder / ONNX_FILE).is_file():
        try:
            from serving.inference.onnx_model import OnnxModel
        except ModuleNotFoundError as error:
            raise ModelUnavailable('ONNX models need onnxruntime: pip install "featurestore[inference]"') from error
        return OnnxModel(folder / ONNX_FILE, config.threads)
    if (folder / TORCH_FILE).is_file():
        try:
            from serving.inference.torch_model import TorchModel
        except ModuleNotFoundError as error:
            raise ModelUnavailable(
                f"{folder / TORCH_FILE} needs PyTorch, which is not installed here: pip install torch, "
                "or export the model to ONNX"
            ) from error
        return TorchModel(folder / TORCH_FILE, config.max_batch_rows, cuda_graphs=config.cuda_graphs)
    raise ModelUnavailable(f"{folder} holds neither {ONNX_FILE} nor {TORCH_FILE}; put one of them there")
