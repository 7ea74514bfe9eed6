"""Work that may hang, in threads of its own: those who give up do not wait for it, nor does the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from featurestore.errors import StoreUnreachable

Result = TypeVar("Result")


class OwnThreads:
    """Threads for questions to a store that may be silent, `most` at a time: those without an answer stay taken."""

    def __init__(self, store: str, most: int) -> None:
        self._store, self._most = store, most
        self._free = threading.Semaphore(most)

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises; StoreUnreachable when all others still wait for theirs."""
        if not self._free.acquire(blocking=False):
            raise StoreUnreachable(
                f"{self._store} has answered none of {self._most} questions yet; see that it runs, and ask again"
            )

        def asked() -> Result:
            try:
                return work()
            finally:
                self._free.release()

        return await in_own_thread(asked, self._store)


def left_to_itself(work: Callable[[], object], name: str) -> None:
    """Begin `work` in a thread of this name."""
    threading.Thread(target=work, name=name, daemon=True).start()


async def in_own_thread(work: Callable[[], Result], name: str, timeout_s: float | None = None) -> Result:
    """What `work` returns or raises; TimeoutError when it takes too long. Who is cancelled leaves it to itself."""
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

    left_to_itself(run, name)
    async with asyncio.timeout(timeout_s):
        return await future
