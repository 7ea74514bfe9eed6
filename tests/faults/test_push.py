"""A push that is killed between any two of its steps, and pushes of many processes at once: nothing acknowledged is
lost, nothing is twice, and one materialize-incremental later online is what history says.

The pushes are real processes; failpoints end them as SIGKILL would.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore, FixedClock
from featurestore.failpoint import KILLED, VARIABLE
from featurestore.ingest.push import RowResult
from featurestore.repository import Repository
from featurestore.settings import load_settings
from materialization.job import Request
from tests.fix_redis import RedisFarm
from tests.fix_repository import NOON, Row, SmallRepository, hours, rows_table, weather

SEED = 20240301
#: Acknowledged before any process is killed.
KNOWN: list[Row] = [("A", NOON - hours(2), 1.0, 1), ("B", NOON - hours(2), 2.0, 2)]
#: What the killed push brings: a correction, a newer row, a new entity, a future row, a row sent again.
BROUGHT: list[Row] = [
    ("A", NOON - hours(2), 5.0, 1),
    ("B", NOON - hours(1), 6.0, 2),
    ("C", NOON - hours(1), 7.0, 3),
    ("D", NOON + hours(1), 8.0, 4),
    KNOWN[1],
]
#: Where a push dies, and whether its rows are durable by then.
POINTS = {
    "embedded": {
        "push.gated": False,
        "push.sequenced": False,
        "push.before_commit": False,
        "push.durable": True,
        "push.online": True,
        "push.settled": True,
    },
    "shared": {
        "push.gated": False,
        "push.sequenced": False,
        "append.before_commit": False,
        "push.durable": True,
        "push.online": True,
        "push.settled": True,
    },
}
JOBS = multiprocessing.get_context("forkserver")
JOBS.set_forkserver_preload([__name__, "featurestore.online.redis", "featurestore.offline.postgres"])
PROCESSES, BATCHES, BATCH_ROWS = 4, 6, 12


def made(request: pytest.FixtureRequest, kind: str, root: Path) -> SmallRepository:
    """A repository on DuckDB and SQLite ("embedded"), on Postgres and Valkey, or on DuckDB and Valkey ("mixed")."""
    project = f"push_{uuid.uuid4().hex}"
    if kind == "embedded":
        small = SmallRepository(root, project=project)
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        if kind == "shared":
            url: str = request.getfixturevalue("postgres_shared")
            small = SmallRepository.on_servers(root, project, url, farm.valkey.url)
        else:
            online = f'kind = "redis"\nurl = "{farm.valkey.url}"'
            small = SmallRepository(root, project=project, online_settings=online)
    small.apply(weather())
    return small


@pytest.fixture
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """As the test's parameter says."""
    small = made(request, request.param, tmp_path / "repository")
    yield small
    small.close()


def pushing(root: Path, batches: list[list[Row]], environment: dict[str, str], told: Any) -> None:
    """Push batches, in a process of its own; tells the results of each when it is acknowledged."""
    for name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
        del os.environ[name]
    os.environ.update(environment)
    with Repository(load_settings(root), FixedClock(NOON)) as repository:
        for rows in batches:
            told.put((rows, FeatureStore.of(repository).push("weather", rows_table(rows)).results.tolist()))


def killed(repository: SmallRepository, point: str) -> None:
    """A push that a failpoint ends before it is acknowledged."""
    told = JOBS.SimpleQueue()
    job = JOBS.Process(target=pushing, args=(repository.root, [BROUGHT], {VARIABLE: point}, told))
    job.start()
    job.join(60)
    assert job.exitcode == KILLED, point


def push(repository: SmallRepository, rows: list[Row]) -> list[str]:
    with repository.opened() as opened:
        return [RowResult(code).name for code in FeatureStore.of(opened).push("weather", rows_table(rows)).results]


def assert_history(repository: SmallRepository, rows: list[Row]) -> None:
    """One publish later history is these rows, each once, and online its projection."""
    repository.done(Request(load=False))
    assert repository.values() == sorted(((key, at, at, *values) for key, at, *values in set(rows)), key=repr)
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    repository.assert_verified()


@pytest.mark.parametrize(
    ("repository", "point"),
    [(kind, point) for kind, points in POINTS.items() for point in points],
    indirect=["repository"],
)
def test_a_push_killed_between_two_steps_is_whole_or_nothing(
    repository: SmallRepository, point: str, request: pytest.FixtureRequest
) -> None:
    durable = (POINTS["embedded"] | POINTS["shared"])[point]
    assert push(repository, KNOWN) == ["ACCEPTED", "ACCEPTED"]

    killed(repository, point)

    repository.assert_verified_but_pending()
    assert_history(repository, KNOWN + BROUGHT * durable)
    expected = ["CORRECTION", "ACCEPTED", "ACCEPTED", "ACCEPTED", "DUPLICATE"]
    assert push(repository, BROUGHT) == (["DUPLICATE"] * len(BROUGHT) if durable else expected)
    assert push(repository, KNOWN) == ["DUPLICATE", "DUPLICATE"]
    assert_history(repository, KNOWN + BROUGHT)


@pytest.mark.parametrize("repository", ["embedded", "shared"], indirect=True)
def test_a_killed_push_that_is_sent_again_at_once_counts_once(repository: SmallRepository) -> None:
    killed(repository, "push.durable")
    assert push(repository, BROUGHT) == ["DUPLICATE"] * len(BROUGHT)
    assert_history(repository, BROUGHT)


@pytest.mark.parametrize("repository", ["embedded", "mixed"], indirect=True)
@pytest.mark.parametrize(
    "point", ["append.before_commit", "append.after_commit", "drain.appended", "drain.before_remove"]
)
def test_a_job_killed_while_it_drains_loses_nothing_and_doubles_nothing(
    repository: SmallRepository, point: str
) -> None:
    push(repository, KNOWN)
    push(repository, BROUGHT)
    ended = repository.run_command("materialize-incremental", "--publish-only", FEATURESTORE_FAILPOINT=point)
    assert ended.returncode == KILLED, ended.stderr
    assert push(repository, BROUGHT) == ["DUPLICATE"] * len(BROUGHT)
    assert_history(repository, KNOWN + BROUGHT)


@pytest.mark.parametrize("repository", ["embedded", "shared"], indirect=True)
def test_until_the_next_publish_nobody_knows_what_a_killed_push_served(repository: SmallRepository) -> None:
    repository.done(Request(load=False))
    killed(repository, "push.online")  # at noon
    repository.at(NOON + hours(3))
    repository.done(Request(load=False))
    asked = [NOON - timedelta(minutes=1), NOON + hours(2), NOON + hours(4)]
    with repository.opened() as opened:
        got = FeatureStore.of(opened).get_historical_features(
            pa.table({"origin": ["C"] * len(asked), "as_of": asked}),
            features=["weather:temp"],
            knowledge="as_served",
            with_status=True,
        )
    assert got.to_arrow().column("weather__uncertain").to_pylist() == [False, True, False]
    assert got.to_arrow().column("temp").to_pylist()[2] == 7.0


@pytest.mark.parametrize("repository", ["embedded", "shared", "mixed"], indirect=True)
def test_processes_that_push_to_one_view_at_once_end_in_one_order(repository: SmallRepository) -> None:
    """Rows of few places and values: processes send the same rows and correct each other; jobs drain between."""
    rng = random.Random(SEED)
    pool: list[Row] = [
        (f"A{airport}", NOON - hours(age), float(value), value)
        for airport in range(5)
        for age in (1, 2, 3)
        for value in range(3)
    ]
    told = JOBS.SimpleQueue()
    work = [[rng.sample(pool, BATCH_ROWS) for _ in range(BATCHES)] for _ in range(PROCESSES)]
    jobs = [JOBS.Process(target=pushing, args=(repository.root, batches, {}, told)) for batches in work]
    for job in jobs:
        job.start()
    answers = []
    for count in range(PROCESSES * BATCHES):
        answers.append(told.get())
        if count % BATCHES == 0:
            repository.done(Request(load=False))
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0

    taken: Counter[Row] = Counter()
    for rows, codes in answers:
        assert RowResult.REJECTED not in codes
        taken.update(row for row, code in zip(rows, codes, strict=True) if code != RowResult.DUPLICATE)
    sent = {row for batches in work for rows in batches for row in rows}
    assert taken == Counter(dict.fromkeys(sent, 1))
    assert_history(repository, sorted(sent))
