"""Every cause of a difference is planted behind the publisher's back, and found as exactly that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from featurestore import Field, Float64
from featurestore.clock import to_us
from featurestore.compiler.latest_rows import LatestRows
from featurestore.errors import ParityError
from featurestore.feature_view import FeatureView
from featurestore.ingest.projection import Projection
from featurestore.ingest.publish import WRITE_BYTES, gathered
from featurestore.online.keys import decode_key, encode_keys
from featurestore.online.redis import RedisOnlineStore
from featurestore.online.row_encoder import RowEncoder
from featurestore.online.row_layout import SCHEMA_ID_AT, VERSION_AT
from featurestore.parity.report import (
    CODEC,
    DEFINITION,
    DIFFERENT,
    DUE,
    EVICTED,
    EVICTION,
    EXTRA,
    FOREIGN,
    LATE,
    LOST,
    MISSING,
    STALE,
    ViewParity,
)
from featurestore.parity.rows import RowReader
from featurestore.parity.verify import Verifier
from materialization.job import Request
from tests.fix_redis import RedisFarm
from tests.fix_repository import FIELDS, NOON, SmallRepository, created_table, hours, rows_table, weather

REF = "weather@1"
AIRPORTS = [f"A{n:02}" for n in range(40)]
#: The airport that tests tamper with, and one that never was.
ONE, NOBODY = "A07", "ZZZ"
#: A value of the last field, in the eight bytes that end a row.
LAST_BYTE = -8


@pytest.fixture
def published(repository: SmallRepository) -> SmallRepository:
    """Two hours of forty airports, published one after the other."""
    repository.apply(weather())
    for hour in (2, 1):
        rows = [(airport, NOON - hours(hour), float(place), hour) for place, airport in enumerate(AIRPORTS)]
        repository.write(f"weather/{9 - hour}.parquet", rows)
        repository.done()
    return repository


def verify(repository: SmallRepository, *, sample: int | None = None, now: datetime | None = None) -> ViewParity:
    """The comparison of the one view."""
    registry = repository.registry
    reader = RowReader(
        view=registry.view(REF),
        schema_id=registry.schema_id(REF),
        schemas=registry.row_schemas(REF),
        offline=repository.offline,
    )
    verifier = Verifier(project=registry.project, reader=reader, online=repository.online, batch_rows=16, sample=sample)
    return verifier.verify(repository.state.publish_state(REF), to_us(now or repository.clock.now()))


def key_of(airport: str, view: FeatureView | None = None) -> bytes:
    """Its online key."""
    dtypes = list((view or weather()).join_keys.values())
    return bytes(encode_keys([pa.array([airport])], dtypes)[0].as_py())


def put(repository: SmallRepository, airport: str, row: bytes) -> None:
    """Store a row behind the publisher's back."""
    repository.online.overwrite(REF, pa.array([key_of(airport)], pa.binary()), pa.array([row], pa.binary()))


def lose(repository: SmallRepository, airport: str) -> None:
    """Remove a row behind the publisher's back."""
    repository.online.delete(REF, pa.array([key_of(airport)], pa.binary()))


def older(row: bytes) -> bytes:
    """The same row, a microsecond earlier."""
    return (int.from_bytes(row[:8], "big") - 1).to_bytes(8, "big") + row[8:]


def newer(row: bytes) -> bytes:
    """The same row, a microsecond later."""
    return (int.from_bytes(row[:8], "big") + 1).to_bytes(8, "big") + row[8:]


def patched(row: bytes, at: int, byte: int) -> bytes:
    """The row with one byte otherwise."""
    changed = bytearray(row)
    changed[at] = byte
    return bytes(changed)


def earlier_version(repository: SmallRepository, airport: str) -> bytes:
    """The row history held for the airport an hour before: what a restored backup shows."""
    return repository.projection(NOON - hours(1.5))[key_of(airport)]


Tamper = Callable[[SmallRepository, bytes], None]
TAMPERED: dict[str, tuple[Tamper, str, str, str]] = {
    "a row is gone": (lambda r, row: lose(r, ONE), MISSING, LOST, ONE),
    "an acknowledged write is gone": (lambda r, row: put(r, ONE, earlier_version(r, ONE)), STALE, LOST, ONE),
    "an older row nobody knows": (lambda r, row: put(r, ONE, older(row)), STALE, FOREIGN, ONE),
    "a newer row nobody knows": (lambda r, row: put(r, ONE, newer(row)), DIFFERENT, FOREIGN, ONE),
    "another value": (lambda r, row: put(r, ONE, patched(row, LAST_BYTE, row[LAST_BYTE] ^ 1)), DIFFERENT, FOREIGN, ONE),
    "an unknown schema": (lambda r, row: put(r, ONE, patched(row, SCHEMA_ID_AT, 9)), DIFFERENT, DEFINITION, ONE),
    "another codec": (lambda r, row: put(r, ONE, patched(row, VERSION_AT, 9)), DIFFERENT, CODEC, ONE),
    "a row cut short": (lambda r, row: put(r, ONE, row[:-1]), DIFFERENT, CODEC, ONE),
    "an entity nobody knows": (lambda r, row: put(r, NOBODY, row), EXTRA, FOREIGN, NOBODY),
    "its schema unknown": (lambda r, row: put(r, NOBODY, patched(row, SCHEMA_ID_AT, 9)), EXTRA, DEFINITION, NOBODY),
    "its codec unknown": (lambda r, row: put(r, NOBODY, patched(row, VERSION_AT, 9)), EXTRA, CODEC, NOBODY),
}


@pytest.mark.parametrize(("tamper", "kind", "cause", "airport"), TAMPERED.values(), ids=TAMPERED.keys())
def test_a_planted_cause_is_found_as_exactly_that_and_repair_heals_it(
    published: SmallRepository, tamper: Tamper, kind: str, cause: str, airport: str
) -> None:
    sound = published.stored()
    tamper(published, sound[key_of(ONE)])

    parity = verify(published)

    assert parity.faults == Counter({(kind, cause): 1})
    assert [(found.kind, found.cause, found.key) for found in parity.examples] == [(kind, cause, {"origin": airport})]
    assert parity.equal == len(AIRPORTS) - (kind != EXTRA)
    repaired = published.done(Request(load=False, repair=True))
    assert repaired.published is not None
    assert repaired.published.rows_written == 1
    assert published.stored() == sound
    assert verify(published).faults.total() == 0


def test_examples_tell_both_rows(published: SmallRepository) -> None:
    put(published, ONE, earlier_version(published, ONE))

    (example,) = verify(published).examples

    assert example.expected is not None
    assert example.online is not None
    assert example.expected["event_timestamp"] == NOON - hours(1)
    assert example.online["event_timestamp"] == NOON - hours(2)


def test_a_store_that_gives_up_rows_is_named_as_the_cause(
    published: SmallRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(published, ONE)
    monkeypatch.setattr(published.online, "evictions", lambda: 12)

    assert verify(published).faults == Counter({(EVICTED, EVICTION): 1})


def test_a_row_past_its_ttl_may_be_gone_and_from_then_on_only(repository: SmallRepository) -> None:
    repository.apply(weather(ttl=timedelta(hours=3)))
    repository.write("weather/1.parquet", [(ONE, NOON - hours(1), 1.0, 1)])
    repository.done()
    lose(repository, ONE)
    last_moment = NOON + hours(2)

    alive = verify(repository, now=last_moment)
    past = verify(repository, now=last_moment + timedelta(microseconds=1))

    assert alive.faults == Counter({(MISSING, LOST): 1})
    assert (past.faults.total(), past.equal, past.expired) == (0, 1, 1)


def test_rows_that_wait_are_pending_with_cause_and_age_and_no_fault(repository: SmallRepository) -> None:
    repository.apply(weather(created=True))
    first = [("A", NOON - hours(4), NOON - hours(4), 1.0, 1), ("B", NOON - hours(1), NOON + hours(1), 2.0, 2)]
    repository.write("weather/1.parquet", created_table(first))
    repository.done()
    repository.at(NOON + hours(2))
    late = [("A", NOON - hours(3), NOON - hours(3), 3.0, 3)]
    repository.write("weather/2.parquet", created_table(late))
    repository.done(Request(publish=False))

    parity = verify(repository)

    assert parity.faults.total() == 0
    assert parity.equal == 1
    assert parity.pending == Counter({LATE: 1, DUE: 1})
    # The late row arrived after the last publish, at noon; the other one became known an hour later.
    assert parity.pending_us == 2 * 3600 * 1_000_000
    repository.done()
    assert verify(repository).pending.total() == 0


def test_a_row_that_is_online_before_its_publish_is_equal_when_history_holds_it(published: SmallRepository) -> None:
    """A push is online at once; the publish that follows finds it there."""
    published.at(NOON + hours(1))
    published.write("weather/9.parquet", [(ONE, NOON, 9.0, 9), (NOBODY, NOON, 9.0, 9)])
    published.done(Request(publish=False))
    pushed = published.projection(NOON + hours(1))
    for airport in (ONE, NOBODY):
        put(published, airport, pushed[key_of(airport)])

    parity = verify(published)

    assert parity.faults.total() == 0
    assert parity.equal == len(AIRPORTS) + 1


def test_a_row_of_an_older_schema_is_equal_by_its_values(published: SmallRepository) -> None:
    """A field added later is null in both: the row's bytes differ from what is packed today, its values do not."""
    before = published.stored()
    published.apply(weather(schema=(*FIELDS, Field(name="wind", dtype=Float64))))
    assert published.registry.schema_id(REF) == 2

    parity = verify(published)

    assert published.stored() == before
    assert (parity.faults.total(), parity.equal) == (0, len(AIRPORTS))


def test_a_sample_compares_so_many_entities_the_same_every_time(published: SmallRepository) -> None:
    whole, ten, again = verify(published), verify(published, sample=10), verify(published, sample=10)
    more = verify(published, sample=1000)

    assert (whole.compared, ten.compared, ten.equal, ten.entities) == (len(AIRPORTS), 10, 10, len(AIRPORTS))
    assert ten == again
    assert more == whole


def test_a_sample_finds_what_lies_in_it_and_no_more(published: SmallRepository) -> None:
    published.online.drop(REF)

    found = verify(published, sample=10)

    assert found.faults == Counter({(MISSING, LOST): 10})


def test_a_view_that_was_never_published_has_no_rows_online(repository: SmallRepository) -> None:
    repository.apply(weather())
    repository.write("weather/1.parquet", rows_table([(ONE, NOON - hours(1), 1.0, 1)]))
    repository.done(Request(publish=False))
    assert verify(repository).faults.total() == 0
    put(repository, NOBODY, bytes(24) + b"\x01")

    assert verify(repository).faults == Counter({(EXTRA, CODEC): 1})


def test_while_a_repair_is_unfinished_there_is_nothing_to_compare(published: SmallRepository) -> None:
    lease = published.state.acquire_lease(REF, "somebody", 60.0)
    published.state.begin_repair(lease)

    with pytest.raises(ParityError, match="cut short"):
        verify(published)


def test_rows_whose_keys_share_a_hash_are_told_apart(
    published: SmallRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten keys a hash: nothing is taken for equal, missing or extra because of that."""
    monkeypatch.setattr("featurestore.ingest.projection.key_hash", _crowded_hash)

    parity = verify(published)

    assert parity.faults.total() == 0


def _crowded_hash(keys: pa.BinaryArray, *seed: object) -> object:
    from featurestore.online.keys import key_hash

    hashes = key_hash(keys, *seed)  # type: ignore[arg-type]
    return hashes if seed else hashes % len(AIRPORTS) // 10


def test_the_projection_costs_forty_bytes_an_entity(published: SmallRepository) -> None:
    view = published.registry.view(REF)
    state = published.state.publish_state(REF)
    assert state is not None
    query = LatestRows(project="small", view=view, position_to=state.position, horizon_to_us=state.horizon_us)
    with published.offline.open(write=False):
        projection = Projection(query, published.offline, RowEncoder(1, view.schema), 16)
    columns = [value for value in vars(projection).values() if hasattr(value, "nbytes")]
    assert sum(column.nbytes for column in columns) == 40 * len(AIRPORTS)


def test_an_encoded_key_is_read_back_for_messages() -> None:
    view = weather()
    assert decode_key(key_of(ONE), view.join_keys) == {"origin": ONE}
    assert decode_key(b"\x01i\x80", view.join_keys) == {"key": "016980"}
    assert decode_key(key_of(ONE) + b"\x00", view.join_keys) == {"key": (key_of(ONE) + b"\x00").hex()}


def test_a_flushed_store_is_missing_all_it_held_and_repair_brings_it_back(
    published: SmallRepository, request: pytest.FixtureRequest
) -> None:
    """A restart without persistence: rows, tokens and scripts are gone."""
    sound = published.stored()
    if isinstance(published.online, RedisOnlineStore):
        farm: RedisFarm = request.getfixturevalue("redis_farm")
        farm.valkey.client.flushall()
        farm.valkey.client.script_flush()
    else:
        published.online.drop(REF)

    parity = verify(published)

    assert parity.faults == Counter({(MISSING, LOST): len(AIRPORTS)})
    published.done(Request(load=False, repair=True))
    assert published.stored() == sound
    assert verify(published).faults.total() == 0


def test_packed_rows_are_put_together_up_to_a_number_or_a_size_and_never_cut() -> None:
    rows = pa.array([b"r%d" % n for n in range(4)], pa.binary())
    large = pa.array([bytes(WRITE_BYTES // 4)] * 4, pa.binary())

    assert [len(keys) for keys, _ in gathered([(rows, rows)] * 6, 10)] == [12, 12]
    assert [len(keys) for keys, _ in gathered([(rows, rows)] * 4, 10)] == [12, 4]
    assert [len(keys) for keys, _ in gathered([(rows, large)] * 2, 10)] == [4, 4]
    together = next(gathered([(rows, rows)] * 3, 12))
    assert together == (pa.concat_arrays([rows] * 3), pa.concat_arrays([rows] * 3))
    assert list(gathered([], 10)) == []
