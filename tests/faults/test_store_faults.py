"""The Redis store goes wrong under a job: flushed, restarted empty, cut off, full. It is said clearly, and heals.

Jobs are real processes of the command line; the server is one of these tests' own, so that it can be hurt.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fix_proxy import Proxy
from tests.fix_redis import RedisProcess
from tests.fix_repository import NOON, Row, SmallRepository, hours, weather

COMMAND = "materialize-incremental"
HEAL = (COMMAND, "--publish-only", "--repair")
ROWS = 3_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as started:
        yield started


def some_rows() -> list[Row]:
    return [(f"airport {n:05} of a name that takes room", NOON - hours(1), float(n), n) for n in range(ROWS)]


def on_redis(root: Path, url: str, retries: int = 3) -> SmallRepository:
    """A repository whose online store is Redis, and whose source waits to be read."""
    online = f'kind = "redis"\nurl = "{url}"\nretries = {retries}'
    small = SmallRepository(root, project=f"faults_{uuid.uuid4().hex}", online_settings=online, batch_rows=100)
    small.apply(weather())
    small.write("weather/a.parquet", some_rows())
    return small


@pytest.fixture
def repository(tmp_path: Path, server: RedisProcess) -> Iterator[SmallRepository]:
    small = on_redis(tmp_path / "repository", server.url)
    yield small
    small.close()


def restart(server: RedisProcess) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("fault", [lambda server: server.client.flushall(), restart], ids=["flushed", "restarted"])
def test_verify_names_what_an_emptied_store_lost_and_repair_heals_it(
    repository: SmallRepository, server: RedisProcess, fault: Callable[[RedisProcess], None]
) -> None:
    repository.done()
    fault(server)
    # What came after the loss is there.
    repository.write("weather/b.parquet", [("new", NOON, 1.0, 1)])
    repository.done()

    verified = repository.run_command("verify", "--json")

    assert verified.returncode == 1, verified.stderr
    (view,) = json.loads(verified.stdout)["views"]
    assert view["causes"] == {"missing": {"lost by the store": ROWS}}
    assert (view["missing"], view["equal"]) == (ROWS, 1)
    healed = repository.run_command(*HEAL)
    assert healed.returncode == 0, healed.stderr
    repository.assert_online_is_projection()
    repository.assert_verified()


def test_a_network_cut_half_way_through_a_publish_is_said_and_the_next_run_heals(
    tmp_path: Path, server: RedisProcess
) -> None:
    with Proxy(server.port) as proxy:
        small = on_redis(tmp_path / "repository", f"redis://127.0.0.1:{proxy.port}", retries=0)
        proxy.cut_after = 100_000
        cut = small.run_command(COMMAND)

        assert cut.returncode == 3, cut.stderr
        assert "Traceback" not in cut.stderr
        assert f"127.0.0.1:{proxy.port}" in cut.stderr
        assert 0 < small.online.count("weather@1") < ROWS
        small.done()
        small.assert_online_is_projection()
        small.assert_verified()
        small.close()


def test_a_store_that_is_full_is_said_and_the_next_run_goes_on_once_it_has_room(
    repository: SmallRepository, server: RedisProcess
) -> None:
    used = int(server.client.info("memory")["used_memory"])
    server.client.config_set("maxmemory", used + 200_000)
    try:
        full = repository.run_command(COMMAND)
    finally:
        server.client.config_set("maxmemory", 0)

    assert full.returncode == 3, full.stderr
    assert "Traceback" not in full.stderr
    assert "maxmemory" in full.stderr
    assert repository.online.count("weather@1") < ROWS
    repository.done()
    repository.assert_online_is_projection()
    repository.assert_verified()
