"""A gRPC server that fails as its script says before it answers: for the client's side of trouble."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.calls import HEALTH, LOOKUP


@dataclass(frozen=True)
class Failure:
    """One answer that is none."""

    code: grpc.StatusCode
    metadata: tuple[tuple[str, str], ...] = ()
    after_s: float = 0.0
    message: str = "as the script says"


@dataclass
class Scripted:
    """What the server answers next, and what it saw."""

    failures: list[Failure] = field(default_factory=list)
    health: list[bytes] = field(default_factory=list)
    target: str = ""
    asked_at: list[float] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)

    def lookup(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        """Fail while the script says so, then answer with no rows."""
        self.asked_at.append(time.monotonic())
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        if self.failures:
            failure = self.failures.pop(0)
            time.sleep(failure.after_s)
            context.set_trailing_metadata(failure.metadata)
            context.abort(failure.code, failure.message)
        return pb.GetOnlineFeaturesResponse(rows=7).SerializeToString()

    def check(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        """The health that the script says; SERVING after its end."""
        return self.health.pop(0) if self.health else b"\x08\x01"


@contextmanager
def scripted(
    failures: Sequence[Failure] = (),
    health: Sequence[bytes] = (),
    credentials: grpc.ServerCredentials | None = None,
    port: int = 0,
) -> Iterator[Scripted]:
    """A running server with the script."""
    script = Scripted([*failures], [*health])
    handlers = {
        LOOKUP.path: grpc.unary_unary_rpc_method_handler(script.lookup),
        HEALTH.path: grpc.unary_unary_rpc_method_handler(script.check),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    for path, handler in handlers.items():
        _, service, name = path.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    if credentials is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    script.target = f"localhost:{port}"
    server.start()
    try:
        yield script
    finally:
        server.stop(0).wait()
