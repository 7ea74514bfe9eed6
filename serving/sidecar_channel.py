"""The channel to whoever runs models, over TLS with the certificates of the moment; what keeps it from connecting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from serving.access.certificates import Pem, PemFiles, watch_certificates
from serving.grpc_tls import channel_credentials
from serving.inference._pb.inference import open_inference_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_METHODS = ("ModelInfer", "ModelMetadata", "ServerLive")
#: What gRPC says when there was no connection to send on.
_NOT_SENT = "failed to connect"

#: What gRPC says of a connection that does not come about, and the way out. Servers that want TLS, or a certificate, do
#: not say so: they hang up.
_HUNG_UP = ("socket closed", "connection reset")
_PLAIN_HINTS = {
    _HUNG_UP: "somebody hangs up there, as servers that speak TLS only do; set inference.tls_ca to the authorities of "
    "its certificate",
}
_TLS_HINTS = {
    ("certificate_verify_failed",): "its certificate is of no authority in inference.tls_ca, or has expired; put its "
    "authority there, or renew the certificate",
    ("hostname verification",): "its certificate is for other names; let inference.address name it by one of them",
    ("wrong_version_number",): "it speaks no TLS; start it with --tls-cert and --tls-key, or remove inference.tls_ca",
    (
        *_HUNG_UP,
        "alert",
    ): "somebody hangs up there, as servers do that want a certificate, or one of another authority; "
    "set inference.tls_cert and inference.tls_key to one that it takes",
}


class SidecarChannel:
    """A channel to `address`; with `files`, over TLS. When they change, calls go over another one.

    Make it in the event loop that uses it; ConfigError when the files are bad.
    """

    def __init__(
        self, address: str, options: Sequence[tuple[str, int]], files: PemFiles | None, grace_s: float
    ) -> None:
        self._address, self._options, self._grace_s = address, options, grace_s
        self._files = None if files is None else watch_certificates(files)
        self._closing: set[asyncio.Task[None]] = set()
        self._open(None if self._files is None else self._files.current())

    def method(self, name: str) -> Any:
        """The method of the protocol, from bytes to bytes, to be called now."""
        if self._files is not None and (pem := self._files.current()) is not self._pem:
            # What was sent over the old one may still be answered there.
            closing = asyncio.create_task(self._channel.close(self._grace_s))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._open(pem)
        return self._methods[name]

    def hint(self, error: grpc.aio.AioRpcError) -> str:
        """The way out, for a call that could not be sent."""
        said = (error.details() or "").lower()
        for signs, hint in (_PLAIN_HINTS if self._files is None else _TLS_HINTS).items():
            if any(sign in said for sign in signs):
                return hint
        return "start `featurestore sidecar` there, or mend inference.address"

    async def close(self) -> None:
        """Close it."""
        await self._channel.close()
        for closing in list(self._closing):
            await closing

    def _open(self, pem: Pem | None) -> None:
        self._pem = pem
        if pem is None:
            self._channel = grpc.aio.insecure_channel(self._address, self._options)
        else:
            self._channel = grpc.aio.secure_channel(self._address, channel_credentials(pem), self._options)
        self._methods = {name: self._channel.unary_unary(f"/{_SERVICE}/{name}") for name in _METHODS}


def is_unsent(error: grpc.aio.AioRpcError) -> bool:
    """Whether there was no connection to send it on."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and _NOT_SENT in (error.details() or "").lower()
