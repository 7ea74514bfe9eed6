"""Load from a process of its own: `python -m benchmarks.generator JSON` sends one message again and again.

A closed loop keeps `in_flight` calls under way. An open loop sends `rate` calls a second at times drawn beforehand,
however long answers take, and counts each from the time it was due: a server that is slow cannot slow it down. Replies
are not read, only timed; calls are never repeated.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop

from benchmarks.measure import SEED
from benchmarks.worker import ROOT, pinned
from featurestore_client import calls

#: Calls that are not counted: connecting, and the first ones of a fresh generator.
WARM_UP = 200
TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send: for `seconds`, at `rate` calls a second, or without a rate with `in_flight` at a time."""

    address: str
    message: Path
    seconds: float
    rate: float | None = None
    in_flight: int = 8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it: calls by code, times of those answered well, and how late the generator itself was."""

    codes: Mapping[str, int]
    seconds: float
    p50_ms: float
    p99_ms: float
    #: Of refused calls, 0 where there are none.
    refused_p99_ms: float
    late_p99_ms: float

    @property
    def per_s(self) -> float:
        """Calls answered well, a second."""
        return self.codes.get("OK", 0) / self.seconds


def generate(load: Load, cores: set[int] | None) -> Outcome:
    """The outcome of a load from a process pinned to `cores`."""
    command = [sys.executable, "-m", "benchmarks.generator", json.dumps(asdict(load), default=str)]
    with pinned(cores):
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    return Outcome(**json.loads(done.stdout))


class _Generator:
    def __init__(self, load: Load, channel: grpc.aio.Channel) -> None:
        self._load, self._message = load, Path(load.message).read_bytes()
        self._method = channel.unary_unary(calls.LOOKUP.path)
        self._answers: list[tuple[str, float]] = []
        self._late: list[float] = []

    async def run(self) -> Outcome:
        """Warm up, then the load."""
        for _ in range(WARM_UP):
            await self._call(time.perf_counter())
        self._answers.clear()
        gc.collect()
        gc.freeze()
        began = time.perf_counter()
        await (self._closed(began) if self._load.rate is None else self._open(began, self._load.rate))
        return self._outcome(time.perf_counter() - began)

    async def _closed(self, began: float) -> None:
        async def one_after_the_other() -> None:
            while (now := time.perf_counter()) < began + self._load.seconds:
                await self._call(now)

        await asyncio.gather(*(one_after_the_other() for _ in range(self._load.in_flight)))

    async def _open(self, began: float, rate: float) -> None:
        count = int(rate * self._load.seconds)
        due = began + np.cumsum(np.random.default_rng(SEED).exponential(1 / rate, count))
        under_way = set()
        for moment in due.tolist():
            # Shorter pauses than a loop can sleep are made up for: the late ones are sent at once.
            if (pause_s := moment - time.perf_counter()) > 0:
                await asyncio.sleep(pause_s)
            self._late.append(max(0.0, time.perf_counter() - moment))
            call = asyncio.create_task(self._call(moment))
            under_way.add(call)
            call.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _call(self, due: float) -> None:
        code = "OK"
        try:
            await self._method(self._message, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self._answers.append((code, time.perf_counter() - due))

    def _outcome(self, seconds: float) -> Outcome:
        codes: dict[str, int] = {}
        for code, _ in self._answers:
            codes[code] = codes.get(code, 0) + 1
        well = [taken * 1e3 for code, taken in self._answers if code == "OK"]
        refused = [taken * 1e3 for code, taken in self._answers if code != "OK"]
        return Outcome(
            codes=codes,
            seconds=seconds,
            p50_ms=_quantile(well, 0.5),
            p99_ms=_quantile(well, 0.99),
            refused_p99_ms=_quantile(refused, 0.99),
            late_p99_ms=_quantile([late * 1e3 for late in self._late], 0.99),
        )


def _quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share, method="higher")) if values else 0.0


async def _main(asked: dict[str, Any]) -> None:
    load = Load(**asked)
    async with grpc.aio.insecure_channel(load.address, calls.CHANNEL_OPTIONS) as channel:
        outcome = await _Generator(load, channel).run()
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(json.loads(sys.argv[1])))
