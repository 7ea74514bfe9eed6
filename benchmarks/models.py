"""ONNX models for benchmarks: a linear one, and one whose weights take longer to read than a row to compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure import SEED

LAYERS = 4


def write_linear(folder: Path, weights: NDArray[np.float32]) -> None:
    """`y = x @ weights`."""
    write_layers(folder, [weights.reshape(-1, 1)])


def write_heavy(folder: Path, width: int) -> None:
    """Layers of width x width: a batch costs little more than a row, since the weights are read once for all."""
    random = np.random.default_rng(SEED)
    layer = (random.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
    write_layers(folder, [layer] * LAYERS)


def write_layers(folder: Path, layers: list[NDArray[np.float32]]) -> None:
    """One matrix product after the other."""
    names = ["x", *(f"h{place}" for place in range(1, len(layers))), "y"]
    nodes = [helper.make_node("MatMul", [name, f"w{at}"], [names[at + 1]]) for at, name in enumerate(names[:-1])]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", len(layers[0])])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", layers[-1].shape[1]])],
        [numpy_helper.from_array(layer, f"w{place}") for place, layer in enumerate(layers)],
    )
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
