"""Work that may hang, in a thread of its own that keeps nobody from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

#: Names of threads that run models begin so.
THREAD_PREFIX = "model: "


async def in_own_thread(work: Callable[[], Result], timeout_s: float) -> Result:
    """What `work` returns or raises; TimeoutError when it takes too long, and its thread is left to itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # what `work` gave

    def run() -> None:
        result, raised = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, whatever it is
            raised = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, raised)

    threading.Thread(target=run, name=f"{THREAD_PREFIX}load", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await future
