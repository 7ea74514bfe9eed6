"""Recomputes from history what clients received, record by record of a served log, and names what differs and why.

What the online store held at an instant follows from the publish log: at least the projection of the last publish
acknowledged by then, at most that of the last one begun by then; rows only move forward between the two. A record is
equal when history holds its row bit for bit, and the row lies within these bounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.clock import iso_text, timedelta_us
from featurestore.compiler.names import CREATED, EVENT, ROW, SEQUENCE
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.dtypes import INTEGERS, Int64, Timestamp
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.offline.base import OfflineStore
from featurestore.offline.served import PublishLog, Stretch
from featurestore.offline.spine import Spine
from featurestore.online.keys import decode_key, encode_keys
from featurestore.online.order_keys import OrderKeys
from featurestore.parity.report import CODEC, DEFINITION, FOREIGN, LOST
from featurestore.parity.rows import order_sides
from featurestore.served_log import SEPARATOR, part_digests
from featurestore.status import StaleReason, Status, row_statuses

Mask = NDArray[np.bool_]

#: At least so long after a publish a worker may answer as before it: it reads another clock than the publisher.
BOUND_US = 1_000_000
EXAMPLES_MAX = 5

UNNOTED, AWAY = "publish not noted", "store away"
CAUSES = {
    LOST: "an acknowledged write was gone when this was served: a flush, a restart without persistence, an old backup",
    FOREIGN: "history never held this row, or holds other values for it: something else wrote to the store",
    DEFINITION: "the view or a field is not applied here, or the row is judged otherwise: another registry served it",
    CODEC: "the key of the record could not be read",
    AWAY: "the store did not answer and no cache had the row, and the client was told so: its status was ERROR",
    UNNOTED: "history holds the row, and no publish had brought it by then: a job was cut short between write and note",
}


@dataclass(frozen=True, kw_only=True)
class ServedDifference:
    """One record that differs; order keys as text, None where there is no row."""

    cause: str
    key: Mapping[str, object]
    served_at: str
    status: str
    served: str | None
    expected: str | None


@dataclass(kw_only=True)
class ServedParity:
    """The records of one view. `late` and `uncertain` are among the equal ones."""

    view: str
    records: int = 0
    equal: int = 0
    #: History holds a newer row that was visible by then, and no publish had brought it yet: the delay of publishes.
    late: int = 0
    #: A publish was under way, so that more than one row would have been right.
    uncertain: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[ServedDifference] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A row, or none, for each of some records."""

    found: Mask
    order: OrderKeys

    def at(self, row: int) -> str | None:
        """The order key of one of them, in words."""
        if not self.found[row]:
            return None
        event_us, created_us, sequence = self.order.at(row)
        return f"event {iso_text(event_us)}, created {iso_text(created_us)}, sequence {sequence}"


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Some records of one view that show the same fields, as columns; `spine` asks for their keys at their times."""

    keys: pa.BinaryArray
    statuses: NDArray[np.uint8]
    #: Served from a cache whose link to the store was lost, and said so: it may be older than what was published.
    unconfirmed: Mask
    served: Answer
    digests: pa.Array
    spine: Spine

    @classmethod
    def of(cls, view: FeatureView, table: pa.Table) -> tuple[Records, Mask]:
        """From records of a log; and which of them have a key that can be read."""
        columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        keys, readable = _decoded(columns["key"], view)
        times = {name: _numbers(columns[name]) for name in ("served_at", EVENT, CREATED)}
        order = OrderKeys(times[EVENT], times[CREATED], _numbers(columns["sequence"]))
        spine = Spine(table=table, as_of_column="served_at", as_of_us=times["served_at"], keys=keys)
        served = Answer(columns["sequence"].is_valid().to_numpy(zero_copy_only=False), order)
        unconfirmed = columns["stale_reason"].to_numpy() == StaleReason.UNCONFIRMED
        statuses = columns["status"].to_numpy()
        return cls(columns["key"], statuses, unconfirmed, served, columns["digest"], spine), readable


@dataclass(frozen=True, kw_only=True)
class ServedVerifier:
    """Verifies records of one view; `log` is its publish log."""

    project: str
    view: FeatureView
    offline: OfflineStore
    log: PublishLog
    #: How long workers may answer from their near caches without asking the store.
    near_cache_us: int = 0

    def verify(self, table: pa.Table, parity: ServedParity) -> None:
        """Judge the records of a part of a log, and count them into `parity`; the offline store is open."""
        for names, rows in _by_fields(table):
            self._verify(rows, names, parity)

    def _verify(self, table: pa.Table, names: Sequence[str], parity: ServedParity) -> None:
        records, readable = Records.of(self.view, table)
        causes = np.full(table.num_rows, "", dtype=object)
        if unknown := [name for name in names if name not in self.view.fields]:
            causes[:] = DEFINITION
            _count(parity, self.view, records, causes, None, unknown)
            return
        as_of_us = records.spine.as_of_us
        bound_us = max(BOUND_US, self.near_cache_us)
        first, last = self.log.last_by(as_of_us - bound_us), self._last_begun(as_of_us + bound_us)
        least, greatest = self._published(records, first), self._published(records, last)
        jumped = self._stretch_of(first) != self._stretch_of(last)
        fields = [self.view.fields[name] for name in names]
        held, nulls = self._held(records, fields)
        below = _sides(records.served, least) < 0
        above = _sides(records.served, greatest) > 0
        gone = ~records.served.found & below & self._expired(least, as_of_us)
        causes[above & held] = UNNOTED
        causes[below] = LOST
        causes[jumped | gone | records.unconfirmed] = ""
        causes[records.served.found & ~held] = FOREIGN
        causes[(causes == "") & ~self._judged_alike(records, nulls)] = DEFINITION
        causes[records.statuses == Status.ERROR] = AWAY
        causes[~readable] = CODEC
        equal = causes == ""
        parity.uncertain += int(np.count_nonzero(equal & (jumped | (_sides(least, greatest) != 0))))
        parity.late += int(np.count_nonzero(equal & (_sides(records.served, self._known(records)) < 0)))
        _count(parity, self.view, records, causes, least, ())

    # ------------------------------------------------------------------ what history says

    def _published(self, records: Records, numbers: NDArray[np.int64]) -> Answer:
        """What the publish of each number had brought for each record."""
        parts = []
        for stretch in self.log.stretches():
            inside = (stretch.first <= numbers) & (numbers <= stretch.last)
            if inside.any():
                parts.append(self._asked(records, "as_served", pa.array(numbers, mask=~inside), stretch))
        return _answer(parts, len(numbers))

    def _known(self, records: Records) -> Answer:
        """What was visible by the time of each record, whether it had been published or not."""
        return _answer([self._asked(records, "created")], records.spine.rows)

    def _asked(
        self, records: Records, knowledge: str, numbers: pa.Array | None = None, stretch: Stretch | None = None
    ) -> pa.Table:
        # The order key is asked for as fields are.
        asked = (Field(name=CREATED, dtype=Timestamp), Field(name=SEQUENCE, dtype=Int64))
        join = PointInTimeJoin(
            project=self.project,
            view=replace(self.view, schema=(*self.view.schema, *asked)),
            fields=[CREATED, SEQUENCE],
            position=self.offline.position(self.view.ref),
            knowledge=knowledge,
            pushes=stretch is not None and stretch.pushes.num_rows > 0,
        )
        return self.offline.point_in_time(join, records.spine.asking(self.view.join_keys, numbers), stretch)

    def _held(self, records: Records, fields: Sequence[Field]) -> tuple[Mask, Mask]:
        """Which records show a row as history holds it, bit for bit; and which history rows hold no value at all."""
        held, nulls = np.zeros(records.spine.rows, dtype=bool), np.zeros(records.spine.rows, dtype=bool)
        sequences = np.unique(records.served.order.sequence[records.served.found])
        rows = self.offline.rows_of(self.view, pa.array(sequences)) if len(sequences) else None
        if rows is None or rows.num_rows == 0:
            return held, nulls
        rows = rows.sort_by(SEQUENCE).combine_chunks()
        known = rows.column(SEQUENCE).to_numpy()
        places = np.searchsorted(known, records.served.order.sequence).clip(max=len(known) - 1)
        rows = rows.take(pa.array(places))
        order = OrderKeys.of(rows)
        columns = [rows.column(field.name).combine_chunks() for field in fields]
        same = (order_sides(order, records.served.order) == 0) & records.served.found
        same &= _equal(_keys(rows, self.view), records.keys)
        hidden = part_digests(fields, order, [pa.nulls(len(column), column.type) for column in columns])
        shown, dark = _equal(part_digests(fields, order, columns), records.digests), _equal(hidden, records.digests)
        # A service may null the values of STALE rows, which is its policy's to say; EXPIRED rows show none.
        stale, expired = records.statuses == Status.STALE, records.statuses == Status.EXPIRED
        held = same & np.where(expired, dark, shown | (stale & dark))
        nulls = np.logical_and.reduce([column.is_null().to_numpy(zero_copy_only=False) for column in columns])
        return held, nulls

    def _judged_alike(self, records: Records, nulls: Mask) -> Mask:
        """Which records have the status that the rule gives; STALE is serving's own, and stands for the two below."""
        served, ttl = records.served, self.view.ttl
        ttl_us = None if ttl is None else timedelta_us(ttl)
        right = row_statuses(served.found, served.order.event_us, records.spine.as_of_us, nulls, ttl_us=ttl_us)
        live = (right == Status.PRESENT) | (right == Status.NULL)
        alike: Mask = (records.statuses == right) | ((records.statuses == Status.STALE) & live)
        return alike

    def _expired(self, answer: Answer, as_of_us: NDArray[np.int64]) -> Mask:
        """A store may let an expired row go."""
        if self.view.ttl is None:
            return np.zeros(len(as_of_us), dtype=bool)
        expired: Mask = answer.found & (as_of_us - answer.order.event_us > timedelta_us(self.view.ttl))
        return expired

    def _last_begun(self, as_of_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the last publish begun by each instant; -1 before the first."""
        if len(self.log.started_us) == 0:
            return np.full(len(as_of_us), -1, dtype=np.int64)
        begun = np.minimum.accumulate(self.log.started_us[::-1])[::-1]
        return np.searchsorted(begun, as_of_us, side="right").astype(np.int64) - 1

    def _stretch_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        firsts = np.array([stretch.first for stretch in self.log.stretches()], dtype=np.int64)
        # Before the first publish the store is empty, which the first stretch begins with.
        return np.searchsorted(firsts, np.maximum(numbers, 0), side="right").astype(np.int64)


def verify_records(
    tables: Iterable[pa.Table], verifiers: Mapping[str, ServedVerifier], batch_rows: int
) -> list[ServedParity]:
    """Judge the records of a log, so many at a time; `verifiers` by name@version of the views that are applied."""
    found: dict[str, ServedParity] = {}
    for records in _gathered(tables, batch_rows):
        for ref in pc.unique(records.column("view")).to_pylist():
            parity = found.setdefault(ref, ServedParity(view=ref))
            rows = records.filter(pc.equal(records.column("view"), ref))
            if ref not in verifiers:
                parity.records += rows.num_rows
                parity.faults[DEFINITION] += rows.num_rows
                continue
            with verifiers[ref].offline.open(write=False):
                verifiers[ref].verify(rows, parity)
    return [found[ref] for ref in sorted(found)]


def _gathered(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


# ------------------------------------------------------------------ columns


def _by_fields(table: pa.Table) -> Iterator[tuple[list[str], pa.Table]]:
    for shown in pc.unique(table.column("fields")).to_pylist():
        yield shown.split(SEPARATOR), table.filter(pc.equal(table.column("fields"), shown))


def _decoded(encoded: pa.BinaryArray, view: FeatureView) -> tuple[dict[str, pa.Array], Mask]:
    """The join keys of encoded keys, each distinct one looked at once; and which can be read (null ones can)."""
    distinct = encoded.dictionary_encode()
    decoded = [decode_key(key, view.join_keys) for key in distinct.dictionary.to_pylist()]
    sound = np.array([key.keys() == view.join_keys.keys() for key in decoded], dtype=bool)
    keys = {}
    for name, dtype in view.join_keys.items():
        kind = pa.int64() if dtype in INTEGERS else arrow_type(dtype)
        keys[name] = pa.array([key.get(name) for key in decoded], kind).take(distinct.indices)
    readable = np.ones(len(encoded), dtype=bool)
    present = distinct.indices.is_valid().to_numpy(zero_copy_only=False)
    readable[present] = sound[distinct.indices.drop_null().to_numpy()]
    return keys, readable


def _keys(rows: pa.Table, view: FeatureView) -> pa.BinaryArray:
    columns = [rows.column(name).combine_chunks() for name in view.join_keys]
    return encode_keys(columns, list(view.join_keys.values()))


def _numbers(column: pa.Array) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.cast(pa.int64()).fill_null(0).to_numpy()
    return numbers


def _answer(parts: Sequence[pa.Table], rows: int) -> Answer:
    """Answers to some of `rows` records, in the order of the records."""
    place = np.full(rows, -1, dtype=np.int64)
    if not parts:
        none = np.zeros(rows, dtype=np.int64)
        return Answer(place >= 0, OrderKeys(none, none, none))
    answers = pa.concat_tables(parts)
    place[answers.column(ROW).to_numpy()] = np.arange(answers.num_rows)
    taken = answers.take(pa.array(place, mask=place < 0))
    order = OrderKeys(*(_numbers(taken.column(name).combine_chunks()) for name in (EVENT, CREATED, SEQUENCE)))
    return Answer(place >= 0, order)


def _sides(left: Answer, right: Answer) -> NDArray[np.int8]:
    """-1, 0 or 1 per record as the left row is less, equal or greater; no row is less than any."""
    sides = order_sides(left.order, right.order)
    sides[~left.found & ~right.found] = 0
    sides[left.found & ~right.found] = 1
    sides[~left.found & right.found] = -1
    return sides


def _equal(left: pa.Array, right: pa.Array) -> Mask:
    same: Mask = pc.equal(left, right).fill_null(False).to_numpy(zero_copy_only=False)
    return same


def _count(
    parity: ServedParity,
    view: FeatureView,
    records: Records,
    causes: NDArray[np.object_],
    expected: Answer | None,
    unknown: Sequence[str],
) -> None:
    parity.records += len(causes)
    parity.equal += int(np.count_nonzero(causes == ""))
    for cause in sorted(set(causes) - {""}):
        rows = np.flatnonzero(causes == cause)
        room = EXAMPLES_MAX - sum(example.cause == cause for example in parity.examples)
        parity.faults[cause] += len(rows)
        for row in rows[: max(room, 0)]:
            key = records.keys[int(row)].as_py()
            parity.examples.append(
                ServedDifference(
                    cause=cause,
                    key={} if key is None else decode_key(key, view.join_keys),
                    served_at=iso_text(int(records.spine.as_of_us[row])),
                    status=Status(int(records.statuses[row])).name,
                    served=records.served.at(int(row)),
                    expected=f"no field {', '.join(unknown)}" if expected is None else expected.at(int(row)),
                )
            )
