"""Several workers on one port: started, restarted when they die, rolled one by one, stopped together.

Workers are processes of their own that share the port (SO_REUSEPORT): the kernel spreads connections over those that
listen, and a worker listens only once it is ready. The supervisor knows a worker by its first line on stdout, and a
worker stops when its stdin ends, so that none outlives a supervisor that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from featurestore.errors import ConfigError, ServingError
from serving.event_loop import unless_stopped

log = logging.getLogger(__name__)

#: Pauses before a dead worker is replaced grow from here to there.
PAUSE_S, PAUSE_S_MAX = 0.1, 5.0
#: A worker that lived so long is well: its place counts no deaths any more.
STEADY_S = 30.0
#: Deaths of one place in a row after which the supervisor gives up.
DEATHS_MAX = 5


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many workers, how each is started, and how long things may take."""

    workers: int
    #: A worker's command line, given the port.
    command: Callable[[int], Sequence[str]]
    #: From the start of a worker to its first line.
    ready_s: float = 120.0
    #: From SIGTERM to its end; then it is killed.
    stop_s: float = 30.0


class WorkerFailed(ServingError):
    """A worker did not get ready, or its place lost one after the other; `code` is how the last one exited."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


def supervise(host: str, port: int, options: WorkerOptions, ready: Callable[[str], None]) -> None:
    """Run until SIGTERM or SIGINT, then stop all; SIGHUP replaces the workers one by one, each new one ready first.

    `ready` is called with `host:port` once all are ready. WorkerFailed when they do not get or stay so; ConfigError
    when the port is taken, or cannot be shared.
    """
    with _reserved(host, port) as taken:
        asyncio.run(Supervisor(options, taken).run(lambda: ready(f"{host}:{taken}")))


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """A port that only workers of ours share: bound, never listened at, as long as this lasts."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(
            f"{sys.platform} has no SO_REUSEPORT, so that several workers cannot share a port; set serving.workers = 1 "
            "and run several servers behind a load balancer"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe, socket.socket(family) as keeper:
        try:
            # Without SO_REUSEPORT first: somebody else who shares the port would get half of the requests.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            taken = int(probe.getsockname()[1])
            probe.close()
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            keeper.bind((host, taken))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for a free one"
            ) from error
        yield taken


class Supervisor:
    """Keeps every place filled with a worker."""

    def __init__(self, options: WorkerOptions, port: int) -> None:
        self._options, self._port = options, port
        self._workers: dict[int, Process] = {}
        #: One change at a time: a roll does not cross a restart.
        self._changing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._roll = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._roll.set)
        places = range(self._options.workers)
        try:
            async with unless_stopped(self._stop), asyncio.TaskGroup() as tasks:
                for place in places:
                    tasks.create_task(self._fill(place))
            if self._stop.is_set():
                return
            ready()
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(self._keep(place)) for place in places]
                keeping.append(tasks.create_task(self._roll_when_asked()))
                await self._stop.wait()
                for task in keeping:
                    task.cancel()
        except* WorkerFailed as failed:
            raise failed.exceptions[0] from None
        finally:
            await asyncio.gather(*(self._end(worker) for worker in self._workers.values()))

    async def _fill(self, place: int) -> None:
        self._workers[place] = await self._started()

    async def _started(self) -> Process:
        """A worker that is ready."""
        # A session of its own: Ctrl-C in a terminal reaches the supervisor alone.
        command = self._options.command(self._port)
        worker = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        try:
            assert worker.stdout is not None
            async with asyncio.timeout(self._options.ready_s):
                if await worker.stdout.readline():
                    log.info("worker %d is ready", worker.pid)
                    return worker
                code = await worker.wait()
            raise WorkerFailed(f"worker {worker.pid} ended with {code} before it was ready; its reason is above", code)
        except TimeoutError:
            worker.kill()
            late = f"worker {worker.pid} was not ready after {self._options.ready_s:g} s; look at its log"
            raise WorkerFailed(late, code=3) from None
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            raise

    async def _keep(self, place: int) -> None:
        """Replace the worker of a place whenever it dies."""
        deaths = 0
        loop = asyncio.get_running_loop()
        while True:
            worker, since = self._workers[place], loop.time()
            code = await worker.wait()
            async with self._changing:
                if self._workers[place] is not worker:
                    deaths = 0  # replaced on purpose
                    continue
                deaths = await self._replaced(place, code, 0 if loop.time() - since >= STEADY_S else deaths)

    async def _replaced(self, place: int, code: int, deaths: int) -> int:
        """Fill a place again whose worker ended with `code`; returns how many have died there in a row."""
        while True:
            deaths += 1
            if deaths >= DEATHS_MAX:
                raise WorkerFailed(f"{deaths} workers ended soon, the last with {code}; their reasons are above", code)
            log.warning("a worker ended with %d and is replaced (%d of %d)", code, deaths, DEATHS_MAX)
            await asyncio.sleep(min(PAUSE_S * 2 ** (deaths - 1), PAUSE_S_MAX))
            try:
                await self._fill(place)
            except WorkerFailed as failed:
                code = failed.code
            else:
                return deaths

    async def _roll_when_asked(self) -> None:
        while True:
            await self._roll.wait()
            self._roll.clear()
            for place in list(self._workers):
                async with self._changing:
                    try:
                        fresh = await self._started()
                    except WorkerFailed as failed:
                        log.warning("the workers are not rolled any further, the old ones go on: %s", failed)
                        break
                    old, self._workers[place] = self._workers[place], fresh
                await self._end(old)
            log.info("rolled")

    async def _end(self, worker: Process) -> None:
        """Let it finish what it began."""
        with contextlib.suppress(ProcessLookupError):
            worker.terminate()
        try:
            async with asyncio.timeout(self._options.stop_s):
                await worker.wait()
        except TimeoutError:
            log.warning("worker %d did not end within %g s and is killed", worker.pid, self._options.stop_s)
            worker.kill()
            await worker.wait()
