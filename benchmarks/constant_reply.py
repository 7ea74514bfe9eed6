"""`featurestore serve` with one more method, `Constant`, which answers as many bytes as a lookup of 100 x 50 does.

What one worker could do at most: the same server, interceptors and metrics, and no work. Arguments are those of
`featurestore`.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc

from featurestore.cli.main import main
from serving.servicer import SERVICE, FeatureServing

#: 100 rows x 50 float32 as columns, with their names.
REPLY = bytes(22_000)


class WithConstant(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC carries no types
    """The methods of a servicer, and Constant."""

    def __init__(self, methods: grpc.GenericRpcHandler) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call."""
        if details.method == f"/{SERVICE}/Constant":
            return grpc.unary_unary_rpc_method_handler(_constant)
        return self._methods.service(details)


async def _constant(message: bytes, context: Any) -> bytes:
    return REPLY


if __name__ == "__main__":
    known = FeatureServing.handlers
    FeatureServing.handlers = lambda self: WithConstant(known(self))  # type: ignore[method-assign]
    sys.exit(main())
