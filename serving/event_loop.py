"""The event loop of a serving process, what would stall it, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def stop_on_signals() -> asyncio.Event:
    """An event that is set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def unless_stopped(stop: asyncio.Event) -> AsyncIterator[None]:
    """Breaks the block off when `stop` is set before its end; what follows the block runs all the same."""
    task = asyncio.current_task()
    assert task is not None, "asyncio runs this in a task"

    async def break_off() -> None:
        await stop.wait()
        task.cancel()

    watching = asyncio.create_task(break_off())
    try:
        yield
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        task.uncancel()
    finally:
        watching.cancel()


@contextlib.contextmanager
def kept_from_collection() -> Iterator[None]:
    """What is there now stays meanwhile: full collections would look at all of it again and again, 60 ms each time.

    Not for a process that lets go of large things later on: what is in a cycle would stay, too.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
