"""A model behind the Open Inference Protocol, asked batch after batch by one caller who may wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

from serving.inference.tensors import Tensor, from_raw
from serving.sidecar import SIGNATURE, Sidecar, SidecarAccess, SidecarOverloaded, infer_request, raw_outputs

#: Pauses of one batch that the sidecar turns away; what it turned away never ran.
PAUSES_MAX = 100


class RemoteModel:
    """A version of a model at an address: the one that answers when this is made. Not for use in an event loop."""

    rows_max = None

    def __init__(self, access: SidecarAccess, name: str, version: str) -> None:
        self._name = name
        self._runner = asyncio.Runner()
        self._closing = AsyncExitStack()
        try:
            self._sidecar = self._runner.run(self._made(access))
            self.description = self._runner.run(self._sidecar.describe(name, version))
        except BaseException:
            self.close()
            raise

    def run(self, matrix: Tensor) -> Mapping[str, Tensor]:
        """The outputs by name; ModelError, or whatever else the sidecar's answer means."""
        return self._runner.run(self._run(matrix))

    def close(self) -> None:
        """Close the channel."""
        self._runner.run(self._closing.aclose())
        self._runner.close()

    async def _made(self, access: SidecarAccess) -> Sidecar:
        sidecar = Sidecar(access)
        self._closing.push_async_callback(sidecar.close)
        return sidecar

    async def _run(self, matrix: Tensor) -> dict[str, Tensor]:
        # By its version, so that neither a canary nor a switch on the way mixes two models in one file.
        told = self.description
        request = infer_request(self._name, told.version, told.inputs[0][0], matrix.shape, matrix.tobytes(), ())
        if told.signature is not None:
            request.parameters[SIGNATURE].string_param = str(told.signature.get("signature"))
        for pauses_left in range(PAUSES_MAX, -1, -1):
            try:
                reply = await self._sidecar.infer(request)
                break
            except SidecarOverloaded as error:
                if not pauses_left:
                    raise
                await asyncio.sleep(error.retry_after_ms / 1000)
        return {
            tensor.name: from_raw(data, tensor.datatype, tensor.shape, f"output {tensor.name!r}")
            for tensor, data in zip(reply.outputs, raw_outputs(reply), strict=True)
        }
