"""Run where kserve is installed: a KServe ModelServer on the gRPC port argv[1], with one linear model, until killed."""

from __future__ import annotations

import sys

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Linear(Model):  # type: ignore[misc]  # not installed here
    """`y = x @ [1, 10, 100, 1000, 10000]`."""

    def load(self) -> bool:
        """Ready at once."""
        self.ready = True
        return True

    async def get_input_types(self) -> list[dict]:
        """One matrix."""
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}]

    async def get_output_types(self) -> list[dict]:
        """One column."""
        return [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]

    def predict(self, payload: InferRequest, headers: object = None, **others: object) -> InferResponse:
        """The weighted sums."""
        x = payload.inputs[0].as_numpy()
        y = (x @ (10.0 ** np.arange(5)).astype(np.float32)).reshape(-1, 1)
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=len(y) % 2 == 0)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    model = Linear("linear")
    model.load()
    grpc_port, http_port = map(int, sys.argv[1:])
    ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1, enable_latency_logging=False).start([model])
