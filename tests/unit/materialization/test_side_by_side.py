"""Views side by side: the same outcome as one after the other, on Postgres and Redis; Ctrl-C ends all of them."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.feature_view import FeatureView
from materialization.job import Request
from tests.fix_redis import RedisFarm
from tests.fix_repository import NOON, SmallRepository, hours, weather

COUNT = 4


@pytest.fixture
def shared(tmp_path: Path, postgres_shared: str, redis_farm: RedisFarm) -> Iterator[SmallRepository]:
    project = f"side_{uuid.uuid4().hex}"
    redis = redis_farm.address("valkey").url
    small = SmallRepository.on_servers(tmp_path / "repository", project, postgres_shared, redis)
    yield small
    small.close()


def views() -> list[FeatureView]:
    """Views of the same shape, each with files of its own."""
    return [replace(weather(f"data/w{number}"), name=f"w{number}") for number in range(COUNT)]


def fill(repository: SmallRepository) -> None:
    repository.apply(*views())
    for number in range(COUNT):
        rows = [(f"A{n:02}", NOON - hours(1 + n % 3), float(n), number) for n in range(35)]
        repository.write(f"w{number}/a.parquet", rows)


def test_views_side_by_side_end_as_one_after_the_other(shared: SmallRepository) -> None:
    fill(shared)

    outcome = replace(shared.materializer(), parallel=3).run(list(shared.registry.views().values()), Request())

    assert outcome.errors == []
    assert [view.view for view in outcome.views] == [view.ref for view in views()]
    for view in views():
        assert shared.offline.history_rows(view.ref) == 35
        shared.assert_online_is_projection(view.ref)


def test_one_view_that_fails_does_not_keep_the_others_from_theirs(shared: SmallRepository) -> None:
    fill(shared)
    (shared.root / "data" / "w1" / "a.parquet").write_bytes(b"no Parquet")

    outcome = replace(shared.materializer(), parallel=3).run(list(shared.registry.views().values()), Request())

    assert [view.error is None for view in outcome.views] == [True, False, True, True]
    (run,) = shared.state.runs()
    assert run.state == "failed"


def test_an_interruption_ends_all_views_and_the_next_run_resumes_them(shared: SmallRepository) -> None:
    fill(shared)
    seen: list[str] = []

    def interrupt(view: str, step: str, rows: int) -> None:
        seen.append(view)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    jobs = replace(shared.materializer(), parallel=2, progress=interrupt)
    # A shell that runs the tests in the background has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            jobs.run(list(shared.registry.views().values()), Request())
    finally:
        signal.signal(signal.SIGINT, before)

    (run,) = shared.state.runs()
    assert run.state == "interrupted"
    for view in views():
        shared.state.acquire_lease(view.ref, "the next one", 1.0)
    assert sum(shared.offline.history_rows(view.ref) for view in views()) < COUNT * 35
