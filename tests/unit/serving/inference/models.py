"""Small ONNX models, written with onnx's own helpers: one that adds up, and those that misbehave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 9
#: Name -> type and shape.
Tensors = Mapping[str, tuple[int, Sequence[str | int]]]


def write_linear(folder: Path, weights: NDArray[np.float32], bias: float = 0.0) -> Path:
    """`y = x @ weights + bias`: FP32 [rows, n] to FP32 [rows, 1]."""
    constants = {"w": weights.astype(np.float32).reshape(-1, 1), "b": np.array([bias], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    inputs: Tensors = {"x": (TensorProto.FLOAT, ["rows", len(weights)])}
    return write(folder, nodes, inputs, {"y": (TensorProto.FLOAT, ["rows", 1])}, constants)


def write_linear_of_width(folder: Path, width: int) -> Path:
    """Says that it takes so many numbers a row."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    tensors: Tensors = {"x": (TensorProto.FLOAT, ["rows", width])}
    return write(folder, nodes, tensors, {"y": (TensorProto.FLOAT, ["rows", width])}, {})


def write_doubler(folder: Path) -> Path:
    """Says that it gives a row for each row, and gives two."""
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
    tensors: Tensors = {"x": (TensorProto.FLOAT, ["rows", 1])}
    return write(folder, nodes, tensors, {"y": (TensorProto.FLOAT, ["rows", 1])}, {})


def write_picky(folder: Path) -> Path:
    """`y = table[x]` for INT64 x of 0 to 2; raises on others, which spoils a whole batch."""
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    inputs = {"x": (TensorProto.INT64, ["rows"])}
    constants = {"table": np.array([10, 11, 12], np.float32)}
    return write(folder, nodes, inputs, {"y": (TensorProto.FLOAT, ["rows"])}, constants)


def write_two_inputs(folder: Path) -> Path:
    """`sum = a + b` and text passed through: several types, several outputs."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Identity", ["words"], ["same_words"])]
    inputs = {
        "a": (TensorProto.INT32, ["rows"]),
        "b": (TensorProto.INT32, ["rows"]),
        "words": (TensorProto.STRING, ["rows"]),
    }
    outputs = {"sum": (TensorProto.INT32, ["rows"]), "same_words": (TensorProto.STRING, ["rows"])}
    return write(folder, nodes, inputs, outputs, {})


def write_spinner(folder: Path) -> Path:
    """Turns as often as the largest number of its INT64 input `turns` says, then returns the input."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["next"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "yes", "zero"], ["done"], body=body),
        helper.make_node("Cast", ["done"], ["nothing"], to=TensorProto.INT64),
        helper.make_node("Mul", ["nothing", "none"], ["naught"]),
        helper.make_node("Add", ["turns", "naught"], ["y"]),
    ]
    constants = {"yes": np.array(True), "zero": np.zeros(1, np.float32), "none": np.zeros(1, np.int64)}
    inputs = {"turns": (TensorProto.INT64, ["rows"])}
    return write(folder, nodes, inputs, {"y": (TensorProto.INT64, ["rows"])}, constants)


def write_glutton(folder: Path) -> Path:
    """Allocates as many floats as the largest number of its input says."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=1),
        helper.make_node("ConstantOfShape", ["most"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["none"], keepdims=1),
        helper.make_node("Cast", ["none"], ["naught"], to=TensorProto.INT64),
        helper.make_node("Add", ["x", "naught"], ["y"]),
    ]
    inputs = {"x": (TensorProto.INT64, ["rows"])}
    return write(folder, nodes, inputs, {"y": (TensorProto.INT64, ["rows"])}, {})


def write_many_types(folder: Path, width: int) -> Path:
    """Of `width` numbers a row: each as text, as INT64 beyond what float64 keeps, halved in precision, whether it is
    positive, and in a dimension more; and the first alone."""
    nodes = [
        helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING),
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "much"], ["big"]),
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Greater", ["x", "naught"], ["positive"]),
        helper.make_node("Unsqueeze", ["x", "second"], ["deep"]),
        helper.make_node("Gather", ["x", "none"], ["first"], axis=1),
    ]
    outputs: Tensors = {
        "text": (TensorProto.STRING, ["rows", width]),
        "big": (TensorProto.INT64, ["rows", width]),
        "half": (TensorProto.FLOAT16, ["rows", width]),
        "positive": (TensorProto.BOOL, ["rows", width]),
        "deep": (TensorProto.FLOAT, ["rows", 1, width]),
        "first": (TensorProto.FLOAT, ["rows"]),
    }
    constants: dict[str, NDArray] = {
        "much": np.array([2**53], np.int64),
        "naught": np.array([0], np.float32),
        "second": np.array([1], np.int64),
        "none": np.asarray(0, np.int64),
    }
    return write(folder, nodes, {"x": (TensorProto.FLOAT, ["rows", width])}, outputs, constants)


def write_choosy(folder: Path, width: int) -> Path:
    """Of `width` numbers a row that are 0 or 1; raises on others."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "whole"], ["y"]),
    ]
    tensors: Tensors = {"x": (TensorProto.FLOAT, ["rows", width])}
    outputs: Tensors = {"y": (TensorProto.FLOAT, ["rows", width])}
    return write(folder, nodes, tensors, outputs, {"table": np.array([10, 11], np.float32)})


def write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: Tensors,
    outputs: Tensors,
    constants: Mapping[str, NDArray],
) -> Path:
    """A model of these nodes as `folder`/model.onnx; written whole, then moved there."""
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)
    return path
