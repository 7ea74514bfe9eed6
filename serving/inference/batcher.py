"""Dynamic batching: requests that wait together run together, in threads of the model's own.

All but `_Instance._work` runs on the event loop. A thread that a model keeps cannot be killed: its requests are failed,
it gets no more work, and when no thread is left the model is not ready until one of them comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter_ns

import numpy as np

from featurestore.errors import (
    InputError,
    ModelError,
    ModelFailed,
    ModelOutOfMemory,
    ModelUnavailable,
    ServingError,
)
from serving.admission import Overloaded
from serving.inference.model import Feeds
from serving.inference.model_config import ModelConfig
from serving.inference.tally import Tally
from serving.inference.tensors import Tensor

log = logging.getLogger(__name__)

#: Names of threads that run models begin so.
THREAD_PREFIX = "model: "

Run = Callable[[Feeds], list[Tensor]]
Answer = list[Tensor] | ModelError


class QueueFull(Overloaded):
    """As many rows wait for the model as may."""

    def __init__(self, model: str, waiting: int, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        ServingError.__init__(
            self,
            f"{waiting} rows wait for {model}; try again in {retry_after_ms} ms, or give it more room (queue_rows, "
            "instances) or another sidecar",
        )


@dataclass(slots=True, eq=False)
class _Waiting:
    feeds: Feeds
    rows: int
    #: Sizes beside the rows: only requests that agree in them can be put together.
    form: tuple[tuple[int, ...], ...]
    answered: asyncio.Future[list[Tensor]]
    arrived_ns: int


class Batcher:
    """The queue before one version of a model, and the threads that run it. Make it on the event loop."""

    def __init__(
        self, name: str, run: Run, config: ModelConfig, tally: Tally, *, together: bool, changed: Callable[[], None]
    ) -> None:
        self._name, self._config, self._tally, self._changed = name, config, tally, changed
        self._rows_max = config.max_batch_rows
        self._together = together
        self._delay_ns = round(config.max_delay_ms * 1e6)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        #: Rows in the queue.
        self.waiting_rows = 0
        self._instances = [_Instance(name, run, self._loop, self._finished) for _ in range(config.instances)]
        self._idle = list(self._instances)
        self._due: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._mean_s = 0.001
        self._ended = False

    @property
    def stuck(self) -> bool:
        """Whether the model keeps every thread it has longer than it may."""
        return all(instance.given_up for instance in self._instances)

    async def infer(self, feeds: Feeds, rows: int) -> list[Tensor]:
        """The outputs for one request, in the model's order."""
        if rows > self._rows_max and self._together:
            raise InputError(
                f"{rows} rows in one request, {self._name} takes {self._rows_max}; split it, or raise max_batch_rows"
            )
        if self._ended:
            raise ModelUnavailable(f"{self._name} is no longer served; ask for another version")
        if self.stuck:
            raise self._stuck_error()
        if self._queue and self.waiting_rows + rows > self._config.queue_rows:
            self._tally.shed += 1
            raise QueueFull(self._name, self.waiting_rows, self._retry_after_ms())
        form = tuple(tensor.shape[1:] for tensor in feeds.values()) if self._together else ()
        answered: asyncio.Future[list[Tensor]] = self._loop.create_future()
        self._queue.append(_Waiting(feeds, rows, form, answered, perf_counter_ns()))
        self.waiting_rows += rows
        self._pump()
        return await answered

    async def drain(self) -> None:
        """Return once every request is answered, and end the threads; call it when no more come."""
        while self._queue or any(i.batch is not None and not i.given_up for i in self._instances):
            self._drained.clear()
            await self._drained.wait()
        self._ended = True
        for instance in self._instances:
            instance.inbox.put(None)

    def _pump(self) -> None:
        """Give work to threads that have none."""
        while self._idle and self._queue:
            if self._delay_ns and self.waiting_rows < self._rows_max:
                left_ns = self._queue[0].arrived_ns + self._delay_ns - perf_counter_ns()
                if left_ns > 0:
                    if self._due is None:
                        self._due = self._loop.call_later(left_ns / 1e9, self._is_due)
                    return
            batch = self._next_batch()
            if batch:
                self._start(self._idle.pop(), batch)
            else:
                self._drained.set()  # all who waited have given up

    def _is_due(self) -> None:
        self._due = None
        self._pump()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        rows = 0
        while self._queue:
            first = self._queue[0]
            gone = first.answered.done()  # its caller has given up
            if not gone and batch and not self._fits(batch, rows, first):
                break
            self._queue.popleft()
            self.waiting_rows -= first.rows
            if not gone:
                batch.append(first)
                rows += first.rows
        return batch

    def _fits(self, batch: list[_Waiting], rows: int, item: _Waiting) -> bool:
        return self._together and rows + item.rows <= self._rows_max and item.form == batch[0].form

    def _start(self, instance: _Instance, batch: list[_Waiting]) -> None:
        instance.batch, instance.started_ns = batch, perf_counter_ns()
        instance.limit = self._loop.call_later(self._config.run_timeout_s, self._give_up, instance)
        instance.inbox.put(batch)

    def _finished(self, instance: _Instance, answers: Sequence[Answer], took_ns: int) -> None:
        assert instance.batch is not None, "a thread answers what it was given"
        assert instance.limit is not None, "a thread answers what it was given"
        batch, instance.batch = instance.batch, None
        instance.limit.cancel()
        if instance.given_up:
            instance.given_up = False
            log.warning("%s answers again", self._name)
            self._changed()
        self._mean_s += 0.05 * (took_ns / 1e9 - self._mean_s)
        self._tally.ran(
            [item.rows for item in batch], [instance.started_ns - item.arrived_ns for item in batch], took_ns
        )
        for item, answer in zip(batch, answers, strict=True):
            if item.answered.done():
                continue
            if isinstance(answer, ModelError):
                item.answered.set_exception(answer)
            else:
                item.answered.set_result(answer)
        self._idle.append(instance)
        self._pump()
        self._drained.set()

    def _give_up(self, instance: _Instance) -> None:
        """A run takes too long: its requests fail, and its thread is left alone."""
        assert instance.batch is not None, "its limit is cancelled when it answers"
        instance.given_up = True
        self._tally.stuck += 1
        error = ModelUnavailable(
            f"{self._name} has not answered for {self._config.run_timeout_s:g} s; look at the model, or raise "
            "run_timeout_s"
        )
        for item in instance.batch:
            if not item.answered.done():
                item.answered.set_exception(error)
        log.error("%s; %d of %d threads are lost to it", error, self._given_up(), len(self._instances))
        if self.stuck:
            for item in self._queue:
                if not item.answered.done():
                    item.answered.set_exception(self._stuck_error())
            self._queue.clear()
            self.waiting_rows = 0
            self._changed()
        self._drained.set()

    def _given_up(self) -> int:
        return sum(instance.given_up for instance in self._instances)

    def _stuck_error(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"{self._name} hangs in each of its {len(self._instances)} runs; load another version, or restart the "
            "sidecar"
        )

    def _retry_after_ms(self) -> int:
        """When those who wait will have gone, at the pace of late."""
        batches = self.waiting_rows / self._rows_max / len(self._instances)
        return max(1, round(1e3 * self._mean_s * (batches + 1)))


class _Instance:
    """A thread that runs the model on one batch after the other."""

    def __init__(
        self,
        name: str,
        run: Run,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[_Instance, Sequence[Answer], int], None],
    ) -> None:
        self.inbox: SimpleQueue[list[_Waiting] | None] = SimpleQueue()
        self.batch: list[_Waiting] | None = None
        self.started_ns = 0
        self.limit: asyncio.TimerHandle | None = None
        self.given_up = False
        self._run, self._loop, self._report = run, loop, finished
        threading.Thread(target=self._work, name=f"{THREAD_PREFIX}{name}", daemon=True).start()

    def _work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            started_ns = perf_counter_ns()
            answers = _answers(self._run, batch)
            took_ns = perf_counter_ns() - started_ns
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._report, self, answers, took_ns)
            del batch, answers


def _answers(run: Run, batch: Sequence[_Waiting]) -> Sequence[Answer]:
    """An answer for each request of a batch. When the whole fails, each is run alone: one of them may be the cause."""
    if len(batch) == 1:
        return [_answer(run, batch[0].feeds)]
    joined = {name: np.concatenate([item.feeds[name] for item in batch]) for name in batch[0].feeds}
    outputs = _answer(run, joined)
    if isinstance(outputs, ModelError):
        return [_answer(run, item.feeds) for item in batch]
    ends = np.cumsum([item.rows for item in batch]).tolist()
    if any(len(tensor) != ends[-1] for tensor in outputs):
        told = ", ".join(str(len(tensor)) for tensor in outputs)
        broken = ModelFailed(f"the model gave {told} rows for {ends[-1]}; mend it, or set batching = false")
        return [broken] * len(batch)
    begins = [0, *ends[:-1]]
    return [[tensor[begin:end] for tensor in outputs] for begin, end in zip(begins, ends, strict=True)]


def _answer(run: Run, feeds: Feeds) -> Answer:
    try:
        return run(feeds)
    except ModelError as error:
        return error
    except MemoryError:
        return ModelOutOfMemory("the model ran out of memory; send fewer rows, or lower max_batch_rows")
    except Exception as error:  # noqa: BLE001 - a model is foreign code: its fault is that of its requests alone
        return ModelFailed(f"the model raised {type(error).__name__}: {error}")
