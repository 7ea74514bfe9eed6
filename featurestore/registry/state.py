"""The state of jobs: sequences, publish states and their log, leases, runs, cursors. Shared by several processes.

Every method is one transaction. Moves of a view's state name the lease they stand on and are refused once it is lost.
Leases and runs tell the real time, never the settable one: a replay of 2013 must not expire them. Leases run by the
clock of their database, so that those of several hosts may differ.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, select, update

from featurestore.clock import TIMESTAMP_MIN_US, SystemClock, from_us, to_us
from featurestore.errors import LeaseLost, NotFoundError, StoreBusy, StoreError
from featurestore.registry.database import Database
from featurestore.registry.document import canonical_json
from featurestore.registry.holder import holder_name, is_gone
from featurestore.registry.schema import cursors, leases, open_pushes, publish_log, publish_states, runs, sequences

log = logging.getLogger(__name__)

RunState = Literal["running", "succeeded", "failed", "interrupted"]
PublishKind = Literal["publish", "push", "repair"]


@dataclass(frozen=True, kw_only=True)
class PublishState:
    """The projection (position, horizon) that the online store holds."""

    position: int
    horizon_us: int
    #: Greatest event time published and visible; None before the first row.
    watermark_us: int | None
    acknowledged_at_us: int

    @property
    def repairing(self) -> bool:
        """Whether a repair was begun and is not done: the online store holds no projection of any instant."""
        return self.position == REPAIRING

    @property
    def published_to_us(self) -> int | None:
        """The horizon of the last publish; None where rows were pushed and nothing published."""
        return None if self.horizon_us == TIMESTAMP_MIN_US else self.horizon_us


#: The position of a view whose projection is being rewritten: until the repair is done, nothing is known of it.
REPAIRING = -1
#: A push of another machine that began so long ago is taken for dead: clients wait seconds.
PUSH_AGE_MAX_US = 3_600_000_000


@dataclass(frozen=True, kw_only=True)
class PublishRecord:
    """One publish, push batch or repair of one view."""

    view: str
    position_from: int
    position_to: int
    #: None for the first publish.
    horizon_from_us: int | None
    horizon_to_us: int
    watermark_us: int | None
    started_at_us: int
    acknowledged_at_us: int
    rows_written: int
    keys_repaired: int
    kind: PublishKind
    #: A push alone: the sequences of the rows it brought online, both included; empty when it was cut short.
    sequence_from: int | None = None
    sequence_to: int | None = None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one view, until `expires_at_us`; `fence` grows whenever it is taken anew."""

    view: str
    holder: str
    fence: int
    expires_at_us: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One job, as people see it."""

    id: str
    kind: str
    views: tuple[str, ...]
    state: RunState
    started_at_us: int
    finished_at_us: int | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class StateStore:
    """Job state of one project."""

    def __init__(self, database: Database, project: str) -> None:
        self.database, self.project = database, project

    # -------------------------------------------------------------- sequences

    def take_sequences(self, ref: str, count: int) -> int:
        """The first number of an own block of `count`; atomic across processes, from 1, durable on return."""
        assert count >= 0
        with self.database.write() as connection:
            return self._taken(connection, ref, count)

    def _taken(self, connection: Connection, ref: str, count: int) -> int:
        mine = (sequences.c.project == self.project) & (sequences.c.view == ref)
        first: int | None = connection.scalar(select(sequences.c.next).where(mine))
        if first is None:
            first = 1
            connection.execute(insert(sequences).values(project=self.project, view=ref, next=first + count))
        else:
            connection.execute(update(sequences).where(mine).values(next=first + count))
        return first

    # -------------------------------------------------------------- publishing

    def publish_state(self, ref: str) -> PublishState | None:
        """What the online store holds of the view; None before the first publish."""
        with self.database.read() as connection:
            row = connection.execute(select(publish_states).where(self._mine(publish_states, ref))).one_or_none()
        if row is None:
            return None
        return PublishState(
            position=row.position,
            horizon_us=row.horizon_us,
            watermark_us=row.watermark_us,
            acknowledged_at_us=row.acknowledged_at_us,
        )

    def commit_publish(self, record: PublishRecord, lease: Lease) -> None:
        """New publish state and its log row in one transaction; LeaseLost when it is no longer the writer's."""
        state = {
            "position": record.position_to,
            "horizon_us": record.horizon_to_us,
            "watermark_us": record.watermark_us,
            "acknowledged_at_us": record.acknowledged_at_us,
        }
        with self.database.write() as connection:
            self.require_lease(connection, lease)
            held = self._watermark(connection, record.view)
            if record.kind != "repair" and held is not None:
                # Rows pushed meanwhile may be newer than what was published.
                state["watermark_us"] = max(held, record.watermark_us or held)
            self._put(connection, publish_states, record.view, state)
            self._close_pushes(connection, record)
            self._log(connection, record)

    def begin_repair(self, lease: Lease) -> None:
        """Note that the projection is about to be rewritten, so that a repair cut short is begun again."""
        with self.database.write() as connection:
            self.require_lease(connection, lease)
            mine = self._mine(publish_states, lease.view)
            connection.execute(update(publish_states).where(mine).values(position=REPAIRING))

    # -------------------------------------------------------------- pushes

    def begin_push(self, ref: str, count: int, started_at_us: int) -> int:
        """The first number of a block of `count`, as `take_sequences`; the push is open until it is settled."""
        begun = {
            "started_at_us": started_at_us,
            "begun_at_us": to_us(SystemClock().now()),
            "holder": holder_name("push"),
        }
        with self.database.write() as connection:
            first = self._taken(connection, ref, count)
            row = {"project": self.project, "view": ref, "sequence_from": first}
            connection.execute(insert(open_pushes).values(**row, **begun))
        return first

    def commit_push(
        self,
        ref: str,
        first: int,
        last: int | None,
        *,
        started_at_us: int,
        watermark_us: int | None,
        rows_written: int,
        now_us: Callable[[], int],
    ) -> None:
        """Settle the push that began at `first`: it brought online what was visible of the sequences up to `last`.

        Nothing is logged when it brought nothing (None). Times of acknowledgement rise with the log, being read inside.
        """
        with self.database.write() as connection:
            mine = self._mine(open_pushes, ref) & (open_pushes.c.sequence_from == first)
            connection.execute(delete(open_pushes).where(mine))
            done_us = now_us()
            if last is not None:
                self._log(
                    connection, _push_record(ref, first, last, started_at_us, done_us, watermark_us, rows_written)
                )
                self._raise_watermark(connection, ref, watermark_us, done_us)

    def leave_push(self, ref: str, first: int) -> None:
        """Nobody works on the push any more, and it is not settled: the next publish delivers its rows."""
        with self.database.write() as connection:
            mine = self._mine(open_pushes, ref) & (open_pushes.c.sequence_from == first)
            connection.execute(update(open_pushes).where(mine).values(holder=""))

    def _close_pushes(self, connection: Connection, record: PublishRecord) -> None:
        """Log the pushes that were cut short before this publish: until it, nobody knew what they left online."""
        begun = open_pushes.c.started_at_us <= record.started_at_us
        opened = connection.execute(select(open_pushes).where(self._mine(open_pushes, record.view), begun)).all()
        long_ago_us = to_us(SystemClock().now()) - PUSH_AGE_MAX_US
        for push in opened:
            if push.holder and push.begun_at_us > long_ago_us and not is_gone(push.holder):
                continue
            first = push.sequence_from
            times = (push.started_at_us, record.acknowledged_at_us)
            self._log(connection, _push_record(record.view, first, first - 1, *times, None, 0))
            mine = self._mine(open_pushes, record.view) & (open_pushes.c.sequence_from == first)
            connection.execute(delete(open_pushes).where(mine))

    def _raise_watermark(self, connection: Connection, ref: str, watermark_us: int | None, done_us: int) -> None:
        held = connection.execute(select(publish_states).where(self._mine(publish_states, ref))).one_or_none()
        if held is None:
            # Pushed to and never published: nothing of history is online, whatever its position and time.
            state = {"position": 0, "horizon_us": TIMESTAMP_MIN_US, "watermark_us": watermark_us}
            self._put(connection, publish_states, ref, state | {"acknowledged_at_us": done_us})
        elif watermark_us is not None and (held.watermark_us is None or held.watermark_us < watermark_us):
            mine = self._mine(publish_states, ref)
            connection.execute(update(publish_states).where(mine).values(watermark_us=watermark_us))

    def _watermark(self, connection: Connection, ref: str) -> int | None:
        held: int | None = connection.scalar(
            select(publish_states.c.watermark_us).where(self._mine(publish_states, ref))
        )
        return held

    def _log(self, connection: Connection, record: PublishRecord) -> None:
        connection.execute(insert(publish_log).values(project=self.project, **asdict(record)))

    def publish_log(self, ref: str, last: int | None = None) -> list[PublishRecord]:
        """Every publish, push batch and repair of the view, or the `last` ones, in the order of their commits."""
        with self.database.read() as connection:
            query = select(publish_log).where(self._mine(publish_log, ref)).order_by(publish_log.c.id.desc())
            rows = connection.execute(query.limit(last)).mappings().all()[::-1]
        return [PublishRecord(**{k: v for k, v in row.items() if k not in ("id", "project")}) for row in rows]

    # -------------------------------------------------------------- leases

    def acquire_lease(self, ref: str, holder: str, ttl_s: float) -> Lease:
        """Become the one writer of the view; StoreBusy naming who is, and since when.

        A lease may be taken over once it has expired, or once the process it names has ended on this machine
        (`holder_name()` makes such holders).
        """
        with self.database.write() as connection:
            now_us = self.database.now_us(connection)
            lease = {"holder": holder, "acquired_at_us": now_us, "expires_at_us": now_us + int(ttl_s * 1_000_000)}
            held = connection.execute(select(leases).where(self._mine(leases, ref))).one_or_none()
            if held is not None and held.expires_at_us > now_us and not is_gone(held.holder):
                raise StoreBusy(_held(ref, held))
            fence = 1 if held is None else held.fence + 1
            self._put(connection, leases, ref, lease | {"fence": fence})
        return Lease(view=ref, holder=holder, fence=fence, expires_at_us=now_us + int(ttl_s * 1_000_000))

    def renew_lease(self, lease: Lease, ttl_s: float) -> Lease:
        """Keep the lease for another `ttl_s` from now; LeaseLost when somebody else has taken it."""
        with self.database.write() as connection:
            expires_at_us = self.database.now_us(connection) + int(ttl_s * 1_000_000)
            self.require_lease(connection, lease)
            mine = self._mine(leases, lease.view)
            connection.execute(update(leases).where(mine).values(expires_at_us=expires_at_us))
        return Lease(view=lease.view, holder=lease.holder, fence=lease.fence, expires_at_us=expires_at_us)

    def release_lease(self, lease: Lease) -> None:
        """Let others write; nothing happens when the lease was lost. The work under it is over by now: a database that
        is away costs a warning, for the lease runs out by itself."""
        mine = self._mine(leases, lease.view) & (leases.c.holder == lease.holder) & (leases.c.fence == lease.fence)
        try:
            with self.database.write() as connection:
                connection.execute(update(leases).where(mine).values(expires_at_us=0))
        except StoreError as error:
            log.warning("%s: the lease was not released and holds until it runs out: %s", lease.view, error)

    def check_lease(self, lease: Lease) -> None:
        """LeaseLost when the lease was taken by somebody else; one that ran out and was not taken still holds."""
        with self.database.read() as connection:
            self.require_lease(connection, lease)

    def require_lease(self, connection: Connection, lease: Lease) -> None:
        """`check_lease` inside a transaction of the same database, so that the check holds until its commit."""
        held = connection.execute(select(leases).where(self._mine(leases, lease.view))).one_or_none()
        if held is None or (held.holder, held.fence) != (lease.holder, lease.fence):
            taken = "is gone" if held is None else f"was taken over by {held.holder}, since it was not renewed"
            raise LeaseLost(f"{lease.view}: the lease of this job {taken}; it writes no more, run it again to resume")
        if held.expires_at_us == 0:
            raise LeaseLost(f"{lease.view}: the lease was released; run the job again to resume")

    # -------------------------------------------------------------- runs

    def start_run(self, kind: str, views: Sequence[str]) -> Run:
        """Record that a job begins."""
        now_us = to_us(SystemClock().now())
        run = Run(id=uuid.uuid4().hex[:12], kind=kind, views=tuple(views), state="running", started_at_us=now_us)
        with self.database.write() as connection:
            connection.execute(
                insert(runs).values(
                    project=self.project,
                    id=run.id,
                    kind=kind,
                    views=_text(list(views)),
                    state=run.state,
                    started_at_us=now_us,
                    counts="{}",
                    error="",
                )
            )
        return run

    def finish_run(self, run_id: str, state: RunState, counts: Mapping[str, Any], error: str = "") -> None:
        """Record how a job ended; NotFoundError for an unknown run."""
        ended = {"state": state, "finished_at_us": to_us(SystemClock().now())}
        with self.database.write() as connection:
            mine = (runs.c.project == self.project) & (runs.c.id == run_id)
            done = connection.execute(update(runs).where(mine).values(counts=_text(dict(counts)), error=error, **ended))
            if done.rowcount == 0:
                raise NotFoundError("run", run_id, ())

    def runs(self, limit: int = 50) -> list[Run]:
        """The latest runs, newest first."""
        query = select(runs).where(runs.c.project == self.project)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(runs.c.started_at_us.desc(), runs.c.id).limit(limit)).all()
        return [_run(row) for row in rows]

    def run(self, run_id: str) -> Run:
        """One run; NotFoundError."""
        with self.database.read() as connection:
            row = connection.execute(
                select(runs).where(runs.c.project == self.project, runs.c.id == run_id)
            ).one_or_none()
        if row is None:
            raise NotFoundError("run", run_id, [run.id for run in self.runs()])
        return _run(row)

    # -------------------------------------------------------------- cursors

    def cursor(self, ref: str) -> dict[str, Any] | None:
        """What the loader noted last; None before its first run."""
        with self.database.read() as connection:
            text: str | None = connection.scalar(select(cursors.c.cursor).where(self._mine(cursors, ref)))
        return None if text is None else dict(json.loads(text))

    def set_cursor(self, ref: str, cursor: Mapping[str, Any], lease: Lease) -> None:
        """Note how far a source was read; LeaseLost when the view has another writer."""
        with self.database.write() as connection:
            self.require_lease(connection, lease)
            self._put(connection, cursors, ref, {"cursor": _text(dict(cursor))})

    # -------------------------------------------------------------- the end of a view

    def forget(self, ref: str) -> None:
        """Drop sequences, publish state and log, and cursor of a view whose data is gone; its fence goes on."""
        with self.database.write() as connection:
            for table in (sequences, publish_states, publish_log, open_pushes, cursors):
                connection.execute(delete(table).where(self._mine(table, ref)))

    # -------------------------------------------------------------- rows by view

    def _mine(self, table: Any, ref: str) -> Any:
        return (table.c.project == self.project) & (table.c.view == ref)

    def _put(self, connection: Connection, table: Any, ref: str, values: Mapping[str, Any]) -> None:
        """Insert or replace the row of a view; callers hold the write lock."""
        changed = connection.execute(update(table).where(self._mine(table, ref)).values(**values))
        if changed.rowcount == 0:
            connection.execute(insert(table).values(project=self.project, view=ref, **values))


def _push_record(
    ref: str, first: int, last: int, started_us: int, done_us: int, watermark_us: int | None, rows: int
) -> PublishRecord:
    """A push moves neither position nor horizon: what it brought is named by its sequences."""
    return PublishRecord(
        view=ref,
        kind="push",
        position_from=0,
        position_to=0,
        horizon_from_us=None,
        horizon_to_us=started_us,
        watermark_us=watermark_us,
        started_at_us=started_us,
        acknowledged_at_us=done_us,
        rows_written=rows,
        keys_repaired=0,
        sequence_from=first,
        sequence_to=last,
    )


def _held(ref: str, held: Row[Any]) -> str:
    since = from_us(held.acquired_at_us).isoformat(timespec="seconds")
    return f"{ref} is being written by {held.holder} since {since}; wait for it to finish, or end it"


def _run(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        kind=row.kind,
        views=tuple(json.loads(row.views)),
        state=row.state,
        started_at_us=row.started_at_us,
        finished_at_us=row.finished_at_us,
        counts=json.loads(row.counts),
        error=row.error,
    )


def _text(value: Any) -> str:
    return canonical_json(value).decode("ascii")
