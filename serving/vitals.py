"""The health of a server over grpc.health.v1, whose watches end when the server drains."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1.health import aio


class Vitals(aio.HealthServicer):  # type: ignore[misc]  # gRPC carries no types
    """Who watches it would keep a server that drains from its end, until the time for that is over."""

    def __init__(self) -> None:
        super().__init__()
        self._draining = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        """Tells each change, up to the end of the server."""
        tasks = [asyncio.ensure_future(work) for work in (super().Watch(request, context), self._draining.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0] in done:
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()

    async def enter_graceful_shutdown(self) -> None:
        """No service is served any more, and nobody watches it."""
        await super().enter_graceful_shutdown()
        self._draining.set()
