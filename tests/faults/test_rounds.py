"""Jobs killed round after round, at failpoints and by SIGKILL, while late, shuffled, corrected and re-sent rows come.

After each round the next run finishes: nothing lost, nothing twice, no older row over a newer one, `verify` clean. The
expected rows come from what was written to the sources, by the oracle; FEATURESTORE_FAULT_ROUNDS asks for more rounds.
A job is a process of the command line, forked from one that has imported it: no time goes into starting Python.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import String
from featurestore.cli.main import main
from featurestore.clock import to_us
from featurestore.failpoint import KILLED, VARIABLE
from featurestore.online.keys import decode_key
from featurestore.online.row_codec import ORDER_KEY_BYTES, RowDecoder
from materialization.job import Request
from tests import oracle
from tests.fix_redis import RedisFarm
from tests.fix_repository import FIELDS, NOON, CreatedRow, SmallRepository, created_table, hours, weather

ROUNDS = int(os.environ.get("FEATURESTORE_FAULT_ROUNDS", "60"))
SEED = 20240301
REF = "weather@1"
COMMAND = "materialize-incremental"
SIGKILL = "SIGKILL"
#: Where a job is killed, and at how many hits of that place; a round brings enough rows for three batches.
POINTS = {
    "append.begin": 3,
    "append.before_commit": 3,
    "append.after_commit": 3,
    "load.before_cursor": 1,
    "materialize.between": 1,
    "publish.after_batch": 3,
    "publish.before_commit": 1,
}
HITS_MIN = 3
AIRPORTS = [f"A{number:02}" for number in range(48)]
ROWS = 36
#: A SIGKILL comes at most so long after the job has begun.
KILL_S_MAX = 0.4

JOBS = multiprocessing.get_context("forkserver")
JOBS.set_forkserver_preload([__name__, "featurestore.cli.materialize_incremental", "featurestore.online.redis"])


@dataclass
class Sources:
    """Files of rows, and the rows in the order in which they must arrive."""

    repository: SmallRepository
    rng: random.Random
    files: dict[str, list[CreatedRow]] = field(default_factory=dict)
    #: (airport, event, created) -> its values, later ones correct earlier ones.
    arrived: dict[tuple[str, datetime, datetime], list[tuple[float | None, int | None]]] = field(default_factory=dict)

    def fresh(self, now: datetime, number: int) -> list[CreatedRow]:
        """Rows of the last hours and some late by days, some known only later; each place once."""
        ages = [self.rng.choice([0.5, 1, 2, 30, 900]) for _ in AIRPORTS]
        knowing = [self.rng.choice([0, 0, 0.25, 3]) for _ in AIRPORTS]
        rows: list[CreatedRow] = [
            (airport, now - hours(age), now - hours(age - delay), self.rng.choice([None, float(number)]), number)
            for airport, age, delay in zip(AIRPORTS, ages, knowing, strict=True)
        ]
        return rows[: ROWS - 6]

    def corrections(self, count: int, number: int) -> list[CreatedRow]:
        """Other values at places of rows that arrived."""
        places = self.rng.sample(sorted(self.arrived), min(count, len(self.arrived)))
        return [(*place, -float(number), number) for place in places]

    def resent(self, count: int) -> list[CreatedRow]:
        """Rows that arrived before, those that were corrected since among them."""
        known = [(*place, *value) for place, values in sorted(self.arrived.items()) for value in values]
        return self.rng.sample(known, min(count, len(known)))

    def bring(self, name: str, rows: list[CreatedRow]) -> None:
        """Write a file, or one anew, in any order."""
        self.files[name] = rows
        self.rng.shuffle(rows)
        self.repository.write(f"weather/{name}.parquet", created_table(rows))
        for airport, event, created, temp, seen in rows:
            values = self.arrived.setdefault((airport, event, created), [])
            if (temp, seen) not in values:
                values.append((temp, seen))

    def bring_round(self, number: int, now: datetime) -> None:
        """A new file, and often an old one again with a late row and a correction more."""
        fresh = self.fresh(now, number)
        # One place has one new value in a file: of twins, bytes would decide and not arrival.
        taken = {row[:3] for row in fresh}
        corrections = [row for row in self.corrections(3, number) if row[:3] not in taken]
        if self.files and self.rng.random() < 0.5:
            # Files arrive in the order of their names: an old one comes first.
            name = self.rng.choice(sorted(self.files))
            late = (self.rng.choice(AIRPORTS), now - hours(400), now, 0.5, number)
            self.bring(name, [*self.files[name], late, *corrections])
            corrections = []
        self.bring(f"{number:05}", [*fresh, *corrections, *self.resent(3)])

    def rows(self) -> list[tuple[str, datetime, datetime, float | None, int | None]]:
        """Every row that must be history, once, as `SmallRepository.values` tells them."""
        return sorted(((*place, *value) for place, values in self.arrived.items() for value in values), key=repr)

    def projection(self, now: datetime) -> dict[str, tuple[float | None, int | None]]:
        """What must be online at `now`, by the oracle."""
        rows = [
            oracle.Row(keys=(airport,), event=to_us(event), created=to_us(created), value=value, sequence=sequence)
            for (airport, event, created), values in self.arrived.items()
            for sequence, value in enumerate(values)
        ]
        by_airport = {airport: [row for row in rows if row.keys == (airport,)] for airport in AIRPORTS}
        chosen = [oracle.projection(of_one, 0, to_us(now)) for of_one in by_airport.values()]
        return {str(keys[0]): row.value for one in chosen for keys, row in one.items()}


def planned(count: int, rng: random.Random) -> list[str]:
    """Where the rounds are killed: each place three times, then SIGKILLs and places by turns."""
    places = [place if most == 1 else f"{place}:{hit % most + 1}" for place, most in POINTS.items() for hit in range(3)]
    more = [place for turn in range(count) for place in (SIGKILL, SIGKILL, places[turn % len(places)])]
    chosen = (places + more)[:count]
    rng.shuffle(chosen)
    return chosen


@pytest.fixture(params=["embedded", "shared"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """A repository on DuckDB and SQLite, and one on Postgres and Valkey."""
    if request.param == "embedded":
        small = SmallRepository(tmp_path / "repository")
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        url: str = request.getfixturevalue("postgres_shared")
        project = f"rounds_{uuid.uuid4().hex}"
        small = SmallRepository.on_servers(tmp_path / "repository", project, url, farm.valkey.url)
    yield small
    small.close()


def test_rounds_of_kills_lose_nothing_double_nothing_and_leave_no_older_row(
    setting: SmallRepository, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(SEED)
    sources = Sources(setting, rng)
    setting.apply(weather(created=True))
    sources.bring("00000", sources.fresh(NOON, 0))
    setting.done()
    hits: Counter[str] = Counter()
    for number, place in enumerate(planned(ROUNDS // 2, rng), 1):
        setting.at(NOON + hours(number))
        sources.bring_round(number, setting.clock.now())
        before, online = setting.history(), setting.stored()

        hits[kill(setting, place, rng)] += 1

        assert setting.history().slice(0, before.num_rows).equals(before), (number, place)
        assert_no_older(online, setting.stored())
        if rng.random() < 0.3:
            sources.bring(f"{number:05}b", [*sources.corrections(2, -number), *sources.resent(2)])
        setting.done()
        assert_whole(setting, sources, f"round {number} of seed {SEED}, killed at {place}")
    for place in (*POINTS, SIGKILL):
        record_property(f"kills at {place}", hits[place])
    assert {place: hits[place] for place in POINTS if hits[place] < HITS_MIN} == {}
    assert hits[SIGKILL] > 0


def kill(repository: SmallRepository, place: str, rng: random.Random) -> str:
    """Run a job that is killed at `place`; says where it was, "too late" when it was done before."""
    if place != SIGKILL:
        job = started(repository, [], {VARIABLE: place})
        job.join(60)
        assert job.exitcode == KILLED, (place, said(repository))
        return place.partition(":")[0]
    repair = rng.random() < 0.3
    last = repository.state.runs(1)[0].id
    if repair:
        keys = rng.sample(sorted(repository.stored()), 5)
        repository.online.delete(REF, pa.array(keys, pa.binary()))
    job = started(repository, ["--repair"] * repair, {})
    while repository.state.runs(1)[0].id == last and job.exitcode is None:
        threading.Event().wait(0.005)
    threading.Event().wait(rng.uniform(0, KILL_S_MAX))
    job.kill()
    job.join(60)
    assert job.exitcode in (0, -signal.SIGKILL), said(repository)
    if repair:
        # Rows were taken away; a repair that came too early, or died before it was noted, did not see that.
        assert not repository.run(Request(repair=True)).errors
    return SIGKILL if job.exitcode else "too late"


def started(repository: SmallRepository, flags: list[str], environment: dict[str, str]) -> Any:
    """A job in a process of its own."""
    at = ["-C", str(repository.root), "--now", repository.clock.now().isoformat()]
    job = JOBS.Process(target=command, args=([*at, COMMAND, *flags], repository.root / "said", environment))
    job.start()
    return job


def said(repository: SmallRepository) -> str:
    """What jobs wrote."""
    return (repository.root / "said").read_text()


def command(arguments: list[str], said: Path, environment: dict[str, str]) -> None:
    """The command line, in a process of its own, without settings of the tests."""
    for name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
        del os.environ[name]
    os.environ.update(environment)
    with said.open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(main(arguments))


def assert_no_older(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
    """No entity has an older row than before."""
    for key, row in after.items():
        assert row[:ORDER_KEY_BYTES] >= before.get(key, b"")[:ORDER_KEY_BYTES]


def assert_whole(repository: SmallRepository, sources: Sources, where: str) -> None:
    """History is what the sources held; online is its projection, in bytes and by the oracle; `verify` agrees."""
    assert repository.values() == sources.rows(), where
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    assert decoded(repository.stored()) == sources.projection(repository.clock.now()), where
    repository.assert_verified()


def decoded(stored: dict[bytes, bytes]) -> dict[str, tuple[float | None, int | None]]:
    """airport -> the values of its online row."""
    columns = RowDecoder({1: FIELDS}, FIELDS).decode(pa.array(stored.values(), pa.binary())).columns
    airports = [str(decode_key(key, {"origin": String})["origin"]) for key in stored]
    return dict(zip(airports, zip(*(column.to_pylist() for column in columns), strict=True), strict=True))
