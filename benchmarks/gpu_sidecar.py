"""`python -m benchmarks.gpu_sidecar [--kind onnx|torch] [--features N] [--width N]`: the sidecar's cost on a device.

Latency and rows a second by batch size, over a unix socket from the sidecar, beside the same model called in this
process (the floor); and the bytes a second that inputs make. Prints one JSON document. Works on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.inference import started
from benchmarks.measure import SEED, Unequal, steadily
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.inference.model import Model, load_model
from serving.inference.model_config import ModelConfig
from serving.inference.warm_up import warm_up
from serving.sidecar import infer_request

ROWS = (1, 8, 64, 512, 4096)
INFER = "/inference.GRPCInferenceService/ModelInfer"
MESSAGE_BYTES_MAX = 64 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("onnx", "torch"), default="onnx", help="which framework runs the model")
    parser.add_argument("--features", type=int, default=50, help="columns of the matrix")
    parser.add_argument("--width", type=int, default=1024, help="of the two hidden layers")
    parser.add_argument("--calls", type=int, default=200, help="calls of each side and size")
    args = parser.parse_args()
    config = ModelConfig(max_batch_rows=max(ROWS), warm_up_rows=ROWS)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write = write_torch if args.kind == "torch" else write_onnx
        write(models / "mlp" / "1", layers(args.features, args.width))
        listed = ", ".join(map(str, ROWS))
        (models / "mlp" / "config.toml").write_text(f"max_batch_rows = {max(ROWS)}\nwarm_up_rows = [{listed}]\n")
        own = load_model(models / "mlp" / "1", config)
        warm_up(own, config)
        measured = []
        with started("sidecar", "--models", str(models), "--address", f"unix://{folder}/s.sock") as address:
            options = [(f"grpc.max_{way}_message_length", MESSAGE_BYTES_MAX) for way in ("send", "receive")]
            with grpc.insecure_channel(address, options) as channel:
                measured = [one_size(channel, own, rows, args.features, args.calls) for rows in ROWS]
    about = {"machine": machine.facts(), "kind": args.kind, "device": own.device, "device bytes": own.device_bytes()}
    print(json.dumps({**about, "features": args.features, "width": args.width, "measured": measured}, indent=2))


def one_size(channel: grpc.Channel, own: Model, rows: int, features: int, calls: int) -> dict[str, Any]:
    """Both sides on batches of so many rows, their answers compared first."""
    x = np.random.default_rng(SEED).normal(size=(rows, features)).astype(np.float32)
    (name,) = (spec.name for spec in own.inputs)
    method = channel.unary_unary(INFER)

    def over_socket() -> NDArray[np.float32]:
        asked = infer_request("mlp", "", name, x.shape, x.tobytes(), ())
        reply = pb.ModelInferResponse.FromString(method(asked.SerializeToString(), timeout=60))
        return np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(rows, -1)

    sides: dict[str, Callable[[], Any]] = {"sidecar": over_socket, "in process": lambda: own.run({name: x})[0]}
    if not np.allclose(sides["sidecar"](), sides["in process"](), rtol=1e-3, atol=1e-3):
        raise Unequal(f"{rows} rows: the sidecar's answer differs")
    for _ in range(10):
        over_socket()
    times = steadily(sides, calls)
    told: dict[str, Any] = {"rows": rows}
    for side, taken in times.items():
        told[side] = {
            "p50 ms": taken.median * 1e3,
            "p99 ms": taken.percentile(0.99) * 1e3,
            "rows/s": rows / taken.median,
            "input MB/s": x.nbytes / taken.median / 1e6,
        }
    told["sidecar's own ms"] = (times["sidecar"].median - times["in process"].median) * 1e3
    return told


def layers(features: int, width: int) -> list[NDArray[np.float32]]:
    """The weights of a network with two hidden layers and one output."""
    random = np.random.default_rng(SEED)
    sizes = [(features, width), (width, width), (width, 1)]
    return [(random.normal(size=size) / np.sqrt(size[0])).astype(np.float32) for size in sizes]


def write_onnx(folder: Path, weights: list[NDArray[np.float32]]) -> None:
    """As ONNX."""
    from benchmarks.models import write_layers

    write_layers(folder, weights)


def write_torch(folder: Path, weights: list[NDArray[np.float32]]) -> None:
    """As an exported PyTorch program."""
    import torch

    modules = [torch.nn.Linear(*layer.shape, bias=False) for layer in weights]
    with torch.no_grad():
        for module, layer in zip(modules, weights, strict=True):
            module.weight.copy_(torch.from_numpy(layer.T.copy()))
    network = torch.nn.Sequential(*modules).eval()
    dynamic = ({0: torch.export.Dim("rows", min=1, max=max(ROWS))},)
    program = torch.export.export(network, (torch.zeros(4, weights[0].shape[0]),), dynamic_shapes=dynamic)
    folder.mkdir(parents=True)
    torch.export.save(program, folder / "model.pt2")


if __name__ == "__main__":
    main()
