"""Batching: who shares a run with whom, what a fault costs the others, and what happens when a model hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from featurestore.errors import ModelFailed, ModelUnavailable
from serving.inference.batcher import Batcher
from serving.inference.model import Feeds
from serving.inference.model_config import ModelConfig
from serving.inference.tally import Tally
from serving.inference.tensors import Tensor
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import RunningSidecar, infer_request, rows, running
from tests.waiting import WAIT_S, until

WEIGHTS = np.array([1.0, 10.0, 100.0], np.float32)
#: Turns of the spinner that take more than a second, so that it is seen at work beyond its limit.
LONG = 2_000_000


def configure(root: Path, model: str, text: str) -> None:
    (root / model / "config.toml").write_text(text)


class Gate:
    """A model that notes its batches, and waits at each until it is let through."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.through = threading.Semaphore(0)

    def run(self, feeds: Feeds) -> list[Tensor]:
        x = feeds["x"]
        self.batches.append(len(x))
        self.through.acquire()
        if (x < 0).any():
            raise ModelFailed("a number below zero")
        return [x * 2]


def batcher(gate: Gate, *, together: bool = True, **config: Any) -> Batcher:
    return Batcher("gate", gate.run, ModelConfig(**config), Tally(), together=together, changed=lambda: None)


def ones(count: int, value: float = 1.0, width: int = 1) -> dict[str, Tensor]:
    return {"x": np.full((count, width), value, np.float32)}


# ------------------------------------------------------------------ the batcher alone


async def gather(own: Batcher, gate: Gate, *requests: dict[str, Tensor]) -> list[Any]:
    """A first request occupies the model; the others come while it is at work."""
    first = asyncio.create_task(own.infer(ones(1), 1))
    while not gate.batches:
        await asyncio.sleep(0.001)
    tasks = [asyncio.create_task(own.infer(feeds, len(feeds["x"]))) for feeds in requests]
    await asyncio.sleep(0)
    gate.through.release(100)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    return found


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_requests_that_wait_share_the_next_run_and_get_their_own_rows() -> None:
    gate = Gate()

    async def scene() -> list[Any]:
        return await gather(batcher(gate), gate, ones(2, 2.0), ones(3, 3.0), ones(1, 4.0))

    found = run(scene())

    assert gate.batches == [1, 6]
    assert [outputs[0][:, 0].tolist() for outputs in found] == [[4.0] * 2, [6.0] * 3, [8.0]]


def test_a_run_takes_no_more_rows_than_it_may() -> None:
    gate = Gate()

    run(gather_in(gate, 5, ones(3), ones(2), ones(1), ones(5)))

    assert gate.batches == [1, 5, 1, 5]


async def gather_in(gate: Gate, rows_max: int, *requests: dict[str, Tensor]) -> list[Any]:
    return await gather(batcher(gate, max_batch_rows=rows_max), gate, *requests)


def test_requests_of_other_shapes_run_apart() -> None:
    gate = Gate()

    async def scene() -> list[Any]:
        return await gather(batcher(gate), gate, ones(1, width=2), ones(1, width=3), ones(1, width=3))

    assert [len(outputs[0][0]) for outputs in run(scene())] == [2, 3, 3]
    assert gate.batches == [1, 1, 2]


def test_without_batching_each_request_has_a_run_of_its_own() -> None:
    gate = Gate()

    async def scene() -> list[Any]:
        return await gather(batcher(gate, together=False), gate, ones(2), ones(3))

    run(scene())

    assert gate.batches == [1, 2, 3]


def test_a_request_that_fails_does_not_take_those_beside_it_along() -> None:
    gate = Gate()

    async def scene() -> list[Any]:
        return await gather(batcher(gate), gate, ones(1, 5.0), ones(1, -1.0), ones(1, 6.0))

    good, bad, other = run(scene())

    assert (good[0].tolist(), other[0].tolist()) == ([[10.0]], [[12.0]])
    assert isinstance(bad, ModelFailed)


def test_a_request_whose_caller_went_away_is_not_run() -> None:
    gate = Gate()

    async def scene() -> None:
        own = batcher(gate)
        first = asyncio.create_task(own.infer(ones(1), 1))
        while not gate.batches:
            await asyncio.sleep(0.001)
        gone, stays = (asyncio.create_task(own.infer(ones(count), count)) for count in (7, 2))
        await asyncio.sleep(0)
        gone.cancel()
        gate.through.release(100)
        await asyncio.gather(first, stays)
        await own.drain()
        assert own.waiting_rows == 0
        with pytest.raises(ModelUnavailable, match="no longer served"):
            await own.infer(ones(1), 1)

    run(scene())

    assert gate.batches == [1, 2]


def test_a_batcher_is_drained_though_those_who_waited_went_away() -> None:
    async def work() -> None:
        made = batcher(Gate(), max_delay_ms=50)
        asked = asyncio.create_task(made.infer(ones(1), 1))
        await asyncio.sleep(0)
        asked.cancel()
        async with asyncio.timeout(WAIT_S):
            await made.drain()

    asyncio.run(work())


def test_a_request_without_rows_is_answered_before_its_batcher_is_drained() -> None:
    async def work() -> None:
        gate = Gate()
        gate.through.release()
        made = batcher(gate, max_delay_ms=50)
        asked = asyncio.create_task(made.infer(ones(0), 0))
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            await made.drain()
            (answered,) = await asked
        assert answered.shape == (0, 1)

    asyncio.run(work())


def test_more_rows_than_may_wait_are_turned_away_with_a_time_to_come_back() -> None:
    gate = Gate()

    async def scene() -> list[Any]:
        return await gather(batcher(gate, queue_rows=5), gate, ones(4), ones(2), ones(1))

    taken, shed, fits = run(scene())

    assert (len(taken[0]), len(fits[0])) == (4, 1)
    assert shed.retry_after_ms > 0
    assert "4 rows wait for gate" in str(shed)


def test_a_request_waits_for_others_as_long_as_it_may() -> None:
    gate = Gate()
    gate.through.release(100)

    async def scene() -> None:
        patient = batcher(gate, max_delay_ms=10_000.0, max_batch_rows=4)
        first = asyncio.create_task(patient.infer(ones(1), 1))
        await asyncio.sleep(0.05)
        assert gate.batches == []
        await asyncio.gather(first, patient.infer(ones(3), 3))  # a full batch waits for nobody
        await batcher(gate, max_delay_ms=1.0, max_batch_rows=4).infer(ones(2), 2)

    run(scene())

    assert gate.batches == [4, 2]


# ------------------------------------------------------------------ over the wire


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    root = tmp_path_factory.mktemp("models")
    models.write_linear(root / "linear" / "1", WEIGHTS)
    models.write_picky(root / "picky" / "1")
    configure(root, "picky", "max_delay_ms = 50")
    models.write_spinner(root / "spinner" / "1")
    configure(root, "spinner", "run_timeout_s = 0.2\nbatching = false")
    with running(root) as made:
        yield made


def test_concurrent_requests_each_get_their_own_answer(sidecar: RunningSidecar) -> None:
    def ask(seed: int) -> bool:
        x = rows(seed % 5 + 1, seed=seed)
        return np.allclose(sidecar.infer("linear", {"x": x})["y"][:, 0], x @ WEIGHTS, rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_a_request_that_the_model_refuses_spoils_no_other_of_its_batch(sidecar: RunningSidecar) -> None:
    def ask(number: int) -> float | str:
        try:
            return float(sidecar.infer("picky", {"x": np.array([number])})["y"][0])
        except grpc.RpcError as error:
            return error.code().name

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [0, 9, 1, 2])) == [10.0, "UNKNOWN", 11.0, 12.0]


def test_a_model_that_hangs_is_not_ready_others_are_and_it_comes_back(sidecar: RunningSidecar) -> None:
    asked = {"turns": np.array([LONG])}
    with pytest.raises(grpc.RpcError, match=r"has not answered for 0.2 s") as given_up:
        sidecar.infer("spinner", asked)
    with pytest.raises(grpc.RpcError, match="hangs in each of its 1 runs") as refused:
        sidecar.infer("spinner", {"turns": np.array([1])})

    assert {given_up.value.code(), refused.value.code()} == {grpc.StatusCode.UNAVAILABLE}
    assert (sidecar.ready("spinner"), sidecar.health("spinner")) == (False, "NOT_SERVING")
    assert sidecar.infer("linear", {"x": rows(1)})["y"].shape == (1, 1)
    until(lambda: turns(sidecar))
    assert (sidecar.ready("spinner"), sidecar.health("spinner")) == (True, "SERVING")


def turns(sidecar: RunningSidecar) -> bool:
    """Whether the spinner answers (again)."""
    try:
        return sidecar.infer("spinner", {"turns": np.array([1])})["y"].tolist() == [1]
    except grpc.RpcError:
        return False


def test_a_caller_with_a_deadline_is_answered_by_it(sidecar: RunningSidecar) -> None:
    with pytest.raises(grpc.RpcError) as late:
        sidecar.infer("spinner", {"turns": np.array([LONG // 4])}, timeout_s=0.05)

    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: turns(sidecar))


def test_a_sidecar_that_stops_finishes_what_it_began(tmp_path: Path) -> None:
    models.write_spinner(tmp_path / "spinner" / "1")
    with running(tmp_path) as made:
        send = made.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        request = infer_request("spinner", {"turns": np.array([LONG])})
        under_way = send.future(request.SerializeToString(), timeout=WAIT_S)
        time.sleep(0.5)
        made.stop()
        under_way.result(timeout=WAIT_S)
        made.join()
