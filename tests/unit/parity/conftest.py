"""The small repository for all tests of parity, on each kind of online store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.online.redis import RedisOnlineStore
from tests.fix_redis import RedisFarm
from tests.fix_repository import PROJECT, SmallRepository


@pytest.fixture(params=["sqlite", "redis"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """An empty small repository; its history is DuckDB's."""
    small = SmallRepository(tmp_path / "repository")

    if request.param == "redis":
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        small.online = RedisOnlineStore(f"{PROJECT}_{uuid.uuid4().hex}", farm.address("valkey"))
    yield small
    small.close()
