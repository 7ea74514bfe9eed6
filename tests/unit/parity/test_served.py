"""What clients received, recorded and recomputed from history: clean logs are equal, each tampering has its cause."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from featurestore import FeatureService, FeatureStore, FixedClock, Status
from featurestore.online.keys import encode_keys
from featurestore.parity.report import CODEC, DEFINITION, FOREIGN, LOST
from featurestore.parity.served import AWAY, UNNOTED, ServedParity
from featurestore.served_log import SCHEMA, ReadLog
from featurestore.status import StaleReason
from materialization.job import Request
from serving.local import answer, local_lookup
from serving.lookup import OnlineLookup
from serving.plan import compile_plan
from serving.served_log import ServedLog, ServedLogOptions
from tests.fix_redis import RedisFarm
from tests.fix_repository import NOON, SmallRepository, created_table, hours, weather

REF = "weather@1"
FEATURES = ["weather:temp", "weather:seen"]
SECOND = timedelta(seconds=1)


@pytest.fixture(params=["duckdb and sqlite", "postgres and redis"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallRepository]:
    """An empty small repository on embedded stores, and on servers."""
    if request.param == "duckdb and sqlite":
        made = SmallRepository(tmp_path / "repository")
    else:
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        url: str = request.getfixturevalue("postgres_shared")
        made = SmallRepository.on_servers(
            tmp_path / "repository", f"served_{uuid.uuid4().hex[:12]}", url, farm.valkey.url
        )
    yield made
    made.close()


class Served:
    """Serves from the online store of a repository, and records all of it."""

    def __init__(self, small: SmallRepository) -> None:
        self.small, self.folder = small, small.root / "served"
        options = ServedLogOptions(folder=self.folder, sample=1.0, max_bytes=1 << 24, queue_rows=1000)
        self._log = ServedLog(options)

    def serve(self, at: datetime, *airports: str | None, features: Sequence[str] = FEATURES) -> list[int]:
        """Look airports up at a time; returns their statuses."""
        lookup = local_lookup(self.small.registry, self.small.state, self.small.online, FixedClock(at), None, features)
        response = answer(lookup, {"origin": pa.array(airports, pa.string())}, None)
        self._log.record(response)
        return list(response.views[0].statuses.tolist())

    def serve_by(self, service: FeatureService, at: datetime, *airports: str) -> list[int]:
        """The same by a service that no registry needs to know."""
        small = self.small
        schemas = {ref: small.registry.row_schemas(ref) for ref in small.registry.views()}
        plan = compile_plan(service, small.registry.views(), schemas)
        watermark = small.state.publish_state(REF)
        assert watermark is not None
        lookup = OnlineLookup(plan, small.online, FixedClock(at), Fixed(watermark.watermark_us))
        response = lookup.lookup({"origin": pa.array(airports)})
        self._log.record(response)
        return list(response.views[0].statuses.tolist())

    def verified(self) -> ServedParity:
        """End the log and verify it."""
        self._log.close()
        (parity,), read = verify(self.small, self.folder)
        assert read == ReadLog(files=1)
        return parity


class Fixed:
    """A watermark."""

    def __init__(self, watermark_us: int | None) -> None:
        self._watermark_us = watermark_us

    def watermark_us(self, ref: str) -> int | None:
        """Always the same."""
        return self._watermark_us


def verify(small: SmallRepository, log: Path) -> tuple[list[ServedParity], ReadLog]:
    with small.opened() as repository:
        return FeatureStore.of(repository).verify_served(log)


def test_what_was_served_as_published_is_equal(small: SmallRepository) -> None:
    """Before the first publish, between two, after a correction, expired, of nobody, of a null key, of one field."""
    small.apply(weather(ttl=hours(6)))
    served = Served(small)
    small.write("weather/a.parquet", [("JFK", NOON - hours(1), 1.0, 1), ("LGA", NOON - hours(5), None, None)])
    assert served.serve(NOON - hours(1), "JFK") == [Status.NOT_FOUND]
    small.at(NOON).done()
    assert served.serve(NOON + hours(0.5), "JFK", "LGA", "EWR", None) == [
        Status.PRESENT, Status.NULL, Status.NOT_FOUND, Status.NOT_FOUND,
    ]  # fmt: skip
    small.write("weather/b.parquet", [("JFK", NOON - hours(1), 7.0, 1), ("EWR", NOON + hours(1), -0.0, 3)])
    small.at(NOON + hours(2)).done()
    assert served.serve(NOON + hours(3), "JFK", "EWR", "JFK") == [Status.PRESENT] * 3
    assert served.serve(NOON + hours(3), "LGA", features=["weather:seen"]) == [Status.EXPIRED]

    # The first row had happened by its request, and the correction's event by the second one.
    assert served.verified() == ServedParity(view=REF, records=9, equal=9, late=2)


def test_rows_that_a_policy_nulls_are_equal(small: SmallRepository) -> None:
    small.apply(weather(freshness=hours(1)))
    small.write("weather/a.parquet", [("JFK", NOON, 1.0, 1)])
    small.at(NOON).done()
    served = Served(small)
    for policy in ("null", "serve"):
        service = FeatureService(name="now", features=[weather()], on_stale=policy)
        assert served.serve_by(service, NOON + hours(2), "JFK", "LGA") == [Status.STALE, Status.NOT_FOUND]
    assert served.verified() == ServedParity(view=REF, records=4, equal=4)


def test_rows_that_waited_for_their_publish_are_equal_and_counted_late(small: SmallRepository) -> None:
    small.apply(weather())
    small.write("weather/a.parquet", [("JFK", NOON, 1.0, 1), ("LGA", NOON, 1.0, 1)])
    small.at(NOON).done()
    small.write("weather/b.parquet", [("JFK", NOON + hours(1), 2.0, 2)])
    small.at(NOON + hours(2)).done(Request(publish=False))
    served = Served(small)
    served.serve(NOON + hours(2), "JFK", "LGA")
    assert served.verified() == ServedParity(view=REF, records=2, equal=2, late=1)


def test_while_a_publish_runs_the_row_before_and_the_row_after_are_right(small: SmallRepository) -> None:
    small.apply(weather())
    small.write("weather/a.parquet", [("JFK", NOON, 1.0, 1)])
    small.at(NOON).done()
    served = Served(small)
    served.serve(NOON + hours(1), "JFK")
    small.write("weather/b.parquet", [("JFK", NOON + hours(1), 2.0, 2)])
    small.at(NOON + hours(1)).done()
    served.serve(NOON + hours(1), "JFK")
    served.serve(NOON + hours(1) + 2 * SECOND, "JFK")
    assert served.verified() == ServedParity(view=REF, records=3, equal=3, late=1, uncertain=2)


def test_any_mixture_of_loads_publishes_repairs_and_requests_is_equal(small: SmallRepository) -> None:
    chance = random.Random(7)
    small.apply(weather(created=True, ttl=hours(9)))
    served = Served(small)
    airports = ["JFK", "LGA", "EWR", "BOS"]
    now = NOON
    for step in range(8):
        now += timedelta(minutes=chance.randint(5, 240))
        rows = [
            (airport, now - hours(chance.randint(0, 9)), now + hours(chance.randint(-7, 1)),
             chance.choice([None, 1.5, -0.0, float("nan")]), step)
            for airport in chance.sample(airports, 3)
        ]  # fmt: skip
        small.write(f"weather/{step}.parquet", created_table(rows))
        small.at(now).done(Request(publish=chance.random() < 0.6, repair=chance.random() < 0.2))
        for _ in range(2):
            now += timedelta(minutes=chance.randint(1, 30))
            served.serve(now, *chance.choices([*airports, "ZZZ"], k=6))
    parity = served.verified()
    assert parity.faults == Counter(), parity.examples
    assert (parity.records, parity.equal) == (96, 96)
    assert parity.late > 0


# ------------------------------------------------------------------ tampering


@pytest.fixture
def published(small: SmallRepository) -> SmallRepository:
    """Two publishes of three airports, an hour apart."""
    small.apply(weather())
    for hour in (0, 1):
        rows = [(airport, NOON + hours(hour), float(hour), hour) for airport in ("JFK", "LGA", "EWR")]
        small.write(f"weather/{hour}.parquet", rows)
        small.at(NOON + hours(hour)).done()
    return small


LATER = NOON + hours(2)


def key(airport: str) -> pa.Array:
    return encode_keys([pa.array([airport])], list(weather().join_keys.values()))


def put(small: SmallRepository, airport: str, row: bytes) -> None:
    """Store a row behind the publisher's back."""
    small.online.overwrite(REF, key(airport), pa.array([row], pa.binary()))


def verified_after(small: SmallRepository) -> ServedParity:
    served = Served(small)
    served.serve(LATER, "JFK", "LGA")
    return served.verified()


def test_another_value_under_the_same_order_key_is_a_foreign_write(published: SmallRepository) -> None:
    row = published.stored()[key("JFK")[0].as_py()]
    put(published, "JFK", row[:-8] + bytes([row[-8] ^ 1]) + row[-7:])
    parity = verified_after(published)
    assert (parity.faults, parity.equal) == (Counter({FOREIGN: 1}), 1)
    (example,) = parity.examples
    assert (example.key, example.served_at, example.status) == ({"origin": "JFK"}, "2024-03-01T14:00:00Z", "PRESENT")
    assert example.served == example.expected == (
        "event 2024-03-01T13:00:00Z, created 2024-03-01T13:00:00Z, sequence 5"
    )  # fmt: skip


@pytest.mark.parametrize("step", [-1, 1])
def test_a_row_that_history_never_held_is_a_foreign_write(published: SmallRepository, step: int) -> None:
    row = published.stored()[key("JFK")[0].as_py()]
    put(published, "JFK", (int.from_bytes(row[:8], "big") + step).to_bytes(8, "big") + row[8:])
    assert verified_after(published).faults == Counter({FOREIGN: 1})


def test_the_row_of_another_entity_is_a_foreign_write(published: SmallRepository) -> None:
    put(published, "JFK", published.stored()[key("LGA")[0].as_py()])
    assert verified_after(published).faults == Counter({FOREIGN: 1})


def test_a_row_that_is_gone_or_older_than_was_acknowledged_is_lost(published: SmallRepository) -> None:
    """A flush, and an old backup."""
    published.online.delete(REF, key("JFK"))
    put(published, "LGA", published.projection(NOON)[key("LGA")[0].as_py()])
    parity = verified_after(published)
    assert (parity.faults, parity.equal) == (Counter({LOST: 2}), 0)
    assert {example.served for example in parity.examples} == {
        None, "event 2024-03-01T12:00:00Z, created 2024-03-01T12:00:00Z, sequence 3"
    }  # fmt: skip


def test_a_cache_that_said_it_was_not_confirmed_may_be_behind(published: SmallRepository) -> None:
    put(published, "JFK", published.projection(NOON)[key("JFK")[0].as_py()])
    served = Served(published)
    served.serve(LATER, "JFK")
    assert served.verified().faults == Counter({LOST: 1})
    unconfirmed = {"status": [Status.STALE], "stale_reason": [StaleReason.UNCONFIRMED]}
    rewritten(served.folder, **{name: pa.array(value, pa.uint8()) for name, value in unconfirmed.items()})
    (parity,), _ = verify(published, served.folder)
    assert (parity.faults, parity.late) == (Counter(), 1)


def test_a_row_that_no_publish_had_brought_is_named_so(published: SmallRepository) -> None:
    """Its job was killed between the write and the note of it."""
    published.write("weather/late.parquet", [("JFK", LATER - SECOND, 3.0, 3)])
    published.at(LATER).done(Request(publish=False))
    put(published, "JFK", published.projection(LATER)[key("JFK")[0].as_py()])
    assert verified_after(published).faults == Counter({UNNOTED: 1})


def test_a_view_that_is_not_applied_here_is_another_definition(published: SmallRepository) -> None:
    served = Served(published)
    served.serve(LATER, "JFK", "LGA")
    published.apply(weather(version=2))
    assert served.verified() == ServedParity(view=REF, records=2, faults=Counter({DEFINITION: 2}))


def rewritten(log: Path, **columns: pa.Array) -> None:
    """The one file of a log with other columns."""
    (file,) = log.iterdir()
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), column)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_table(table)


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"status": pa.array([Status.ERROR, Status.PRESENT], pa.uint8())}, AWAY),
        ({"key": pa.array([b"\xff", key("LGA")[0].as_py()], pa.binary())}, CODEC),
        ({"status": pa.array([Status.EXPIRED, Status.PRESENT], pa.uint8())}, FOREIGN),
        ({"status": pa.array([Status.NULL, Status.PRESENT], pa.uint8())}, DEFINITION),
        ({"fields": pa.array(["temp,wind", "temp,seen"])}, DEFINITION),
        ({"digest": pa.array([b"\0" * 16, None], pa.binary(16)).fill_null(b"\1" * 16)}, FOREIGN),
    ],
    ids=["error", "key", "values of an expired row", "status", "field", "digest"],
)
def test_each_part_of_a_record_is_checked(published: SmallRepository, columns: dict[str, pa.Array], cause: str) -> None:
    served = Served(published)
    served.serve(LATER, "JFK", "LGA")
    assert served.verified().equal == 2
    rewritten(served.folder, **columns)
    (parity,), _ = verify(published, served.folder)
    assert parity.faults == Counter({cause: 2 if "digest" in columns else 1})
