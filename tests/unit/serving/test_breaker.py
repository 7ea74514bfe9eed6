"""The breaker before a real store that comes back another than it went."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import ConfigError, StoreUnreachable
from featurestore.online.reading import WantedTokens
from featurestore.online.redis import RedisAddress, RedisOnlineStore
from serving.breaker import Breaker
from serving.circuit import CircuitState
from tests.fix_redis import PASSWORD, RedisProcess
from tests.waiting import WAIT_S

ASKED = ((), (WantedTokens("weather@1", np.zeros(1, np.uint16)),))


def test_a_store_that_comes_back_and_refuses_us_is_no_longer_away_and_says_why(tmp_path: Path) -> None:
    """A Redis that lost its users: once they are made again, no restart of ours is needed."""
    with RedisProcess(tmp_path / "redis") as server:

        def admit() -> None:
            server.client.execute_command("ACL", "SETUSER", "store", "on", f">{PASSWORD}", "~fs*", "+@all")

        admit()
        address = RedisAddress(url=server.url, username="store", password=PASSWORD, timeout_s=1.0, retries=0)
        store = RedisOnlineStore("test", address)
        asyncio.run(_asked_throughout(Breaker(store.reader(0.5)), server, admit))
        store.close()


def given_up(breaker: Breaker) -> bool:
    return breaker.state is not CircuitState.CLOSED


async def _asked_throughout(breaker: Breaker, server: RedisProcess, admit: Callable[[], None]) -> None:
    await breaker.connect()
    async with asyncio.timeout(WAIT_S):
        server.kill()
        while not given_up(breaker):
            with pytest.raises(StoreUnreachable):
                await breaker.fetch(*ASKED)
            await asyncio.sleep(0.01)
        server.start()
        while given_up(breaker):
            await asyncio.sleep(0.01)
        with pytest.raises(ConfigError, match="user name or password is not accepted"):
            await breaker.fetch(*ASKED)
        admit()
        while True:
            try:
                (tokens,) = (await breaker.fetch(*ASKED)).tokens
                break
            except ConfigError:
                await asyncio.sleep(0.01)
        assert tokens.tolist() == [0]
    await breaker.close()
