"""Run where tritonclient is installed: asks the sidecar at argv[1] everything, and prints what it heard as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shared
from tritonclient.utils import InferenceServerException


def main() -> None:
    """One round of the protocol, as Triton's own client does it."""
    client = triton.InferenceServerClient(sys.argv[1])
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    told = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("linear"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata("linear", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "answer": infer(client, x),
        "refused": refused(client, x),
        "shared": shared_memory(client, x),
    }
    client.unload_model("linear")
    told["unloaded"] = client.is_model_ready("linear")
    client.load_model("linear")
    told["loaded"] = client.is_model_ready("linear")
    print(json.dumps(told))


def infer(client: triton.InferenceServerClient, x: np.ndarray) -> list[float]:
    """Inputs in the message."""
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    found = client.infer("linear", [tensor], outputs=[triton.InferRequestedOutput("y")], request_id="7")
    return found.as_numpy("y")[:, 0].tolist()


def refused(client: triton.InferenceServerClient, x: np.ndarray) -> dict[str, list[str]]:
    """Status and words of each fault."""
    faults = {"model": ("none", "x", x), "input": ("linear", "z", x), "shape": ("linear", "x", x[:, :2].copy())}
    told = {}
    for name, (model, tensor_name, values) in faults.items():
        tensor = triton.InferInput(tensor_name, list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        try:
            client.infer(model, [tensor])
        except InferenceServerException as error:
            told[name] = [error.status(), error.message()]
    return told


def shared_memory(client: triton.InferenceServerClient, x: np.ndarray) -> list[float]:
    """Inputs and outputs in shared memory."""
    region = shared.create_shared_memory_region("region", "/featurestore_interop", 4096)
    try:
        shared.set_shared_memory_region(region, [x])
        client.register_system_shared_memory("region", "/featurestore_interop", 4096)
        assert "region" in client.get_system_shared_memory_status(as_json=True)["regions"]
        tensor = triton.InferInput("x", list(x.shape), "FP32")
        tensor.set_shared_memory("region", x.nbytes)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("region", 16, offset=1024)
        output = client.infer("linear", [tensor], outputs=[wanted]).get_output("y")
        found = shared.get_contents_as_numpy(region, np.float32, list(output.shape), 1024)[:, 0].tolist()
        client.unregister_system_shared_memory("region")
    finally:
        shared.destroy_shared_memory_region(region)
    return found


if __name__ == "__main__":
    main()
