"""A materialization run: for each view, under its lease, load what arrived and publish what became due.

Both steps can be repeated at any time. A run that was killed leaves its lease to expire with its process and its load
to be resumed where the offline store's last commit says; a scheduler may call at any rate.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.clock import Clock, to_us
from featurestore.errors import FeatureStoreError, InputError, StoreError, TooManyBreaches
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.ingest.drain import drain
from featurestore.ingest.gate import Gate
from featurestore.ingest.inbox import Inbox
from featurestore.ingest.load import LoadCounts, Loader
from featurestore.ingest.publish import Published, Publisher
from featurestore.ingest.replay import Replayer
from featurestore.ingest.source_batch import RowWindow
from featurestore.offline.base import Mask, OfflineStore
from featurestore.offline.history_rules import entities_known
from featurestore.offline.quarantine import Chosen
from featurestore.online.base import OnlineStore
from featurestore.registry.registry import Registry
from featurestore.registry.state import PublishRecord, Run, RunState, StateStore
from materialization.lease import HeldLease, held_lease
from materialization.ranks import ranks
from materialization.reading import Cursor, Reading, advanced, arrivals, whole_window

Progress = Callable[[str, str, int], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is asked to do. With `start` it loads the event times [start, end); without, what arrived.

    With `replay` it reads no source, but the chosen rows of quarantine.
    """

    start: datetime | None = None
    end: datetime | None = None
    load: bool = True
    publish: bool = True
    repair: bool = False
    replay: Chosen | None = None

    @property
    def kind(self) -> str:
        """What its run is called."""
        if self.replay is not None:
            return "replay"
        return "materialize" if self.start is not None else "materialize-incremental"

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InputError(
                f"nothing lies between {self.start.isoformat()} and {self.end.isoformat()}: the end is past the last "
                f"event time to load, so START must be earlier than END"
            )


@dataclass(frozen=True, kw_only=True)
class ViewOutcome:
    """What a run did for one view; a step that was not asked for is None."""

    view: str
    loaded: LoadCounts | None = None
    published: Published | None = None
    error: FeatureStoreError | None = None


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """A finished run. `errors` holds the first error of each view that failed; the others are done."""

    run: str
    views: list[ViewOutcome] = field(default_factory=list)

    @property
    def errors(self) -> list[FeatureStoreError]:
        """What went wrong, in the order of the views."""
        return [outcome.error for outcome in self.views if outcome.error is not None]

    def counts(self) -> dict[str, Any]:
        """The counts by view, as the run's record keeps them."""
        return {
            outcome.view: {
                "loaded": asdict(outcome.loaded) if outcome.loaded else None,
                "published": asdict(outcome.published) if outcome.published else None,
                "error": str(outcome.error) if outcome.error else None,
            }
            for outcome in self.views
        }


@dataclass(frozen=True, kw_only=True)
class Materializer:
    """Runs materialization over the views of a repository, `parallel` of them at a time.

    `progress(view, step, rows)` is called per batch, from several threads where views run side by side.
    """

    repository: Path
    registry: Registry
    state: StateStore
    offline: OfflineStore
    online: OnlineStore
    clock: Clock
    batch_rows: int
    lease_s: float
    progress: Progress = field(default=lambda view, step, rows: None)
    parallel: int = 1
    #: Where pushed rows wait, where the offline store cannot take them at once.
    inbox: Inbox | None = None

    def run(self, views: Sequence[FeatureView], request: Request) -> RunOutcome:
        """Work through the views; one that fails does not keep the others from theirs."""
        run = self.state.start_run(request.kind, [view.ref for view in views])
        outcome = RunOutcome(run=run.id)
        stopped = threading.Event()
        try:
            for rank in ranks(views):
                if self.parallel == 1:
                    for view in rank:
                        outcome.views.append(self._view(view, request, run, stopped))
                else:
                    self._side_by_side(rank, request, run, outcome, stopped)
            order = [view.ref for view in views]
            outcome.views.sort(key=lambda done: order.index(done.view))
        except BaseException as error:
            ended: RunState = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(StoreError):  # the first fault is the news
                self.state.finish_run(run.id, ended, outcome.counts(), str(error) or type(error).__name__)
            raise
        state: RunState = "failed" if outcome.errors else "succeeded"
        with suppress(StoreError) if outcome.errors else nullcontext():
            self.state.finish_run(run.id, state, outcome.counts(), "; ".join(map(str, outcome.errors)))
        return outcome

    def _side_by_side(
        self,
        views: Sequence[FeatureView],
        request: Request,
        run: Run,
        outcome: RunOutcome,
        stopped: threading.Event,
    ) -> None:
        """Outcomes in the order of the views. Ctrl-C reaches this thread alone: the others end at their next batch."""
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="view") as pool:
            begun = [pool.submit(self._view, view, request, run, stopped) for view in views]
            try:
                for future in begun:
                    outcome.views.append(future.result())
            except BaseException:
                stopped.set()
                for future in begun:
                    future.cancel()
                raise

    def _view(self, view: FeatureView, request: Request, run: Run, stopped: threading.Event) -> ViewOutcome:
        outcome = ViewOutcome(view=view.ref)
        try:
            with held_lease(self.state, view.ref, self.lease_s, stopped) as lease:
                # First, so that the rows of a load are met by those that were pushed.
                self._drain(view)
                if request.replay is not None:
                    with self._held_too(request.replay.view, view, stopped):
                        outcome = replace(outcome, loaded=self._replay(view, request.replay, run, lease))
                elif request.load:
                    loaded, too_many = self._load(view, request, run, lease)
                    outcome = replace(outcome, loaded=loaded)
                    if too_many is not None:
                        raise too_many
                failpoint("materialize.between")
                if request.publish:
                    self._drain(view)
                    outcome = replace(outcome, published=self._publish(view, request, lease))
        except FeatureStoreError as error:
            return replace(outcome, error=error)
        return outcome

    def _drain(self, view: FeatureView) -> None:
        if self.inbox is not None and self.inbox.waiting(view.ref):
            drain(self.inbox, view, self.registry.schema_id(view.ref), self.offline, self.online)

    def _held_too(self, ref: str, view: FeatureView, stopped: threading.Event) -> AbstractContextManager[object]:
        """The lease of the version whose quarantine is replayed into `view`: nobody drops or adds rows meanwhile."""
        return nullcontext() if ref == view.ref else held_lease(self.state, ref, self.lease_s, stopped)

    def _replay(self, view: FeatureView, chosen: Chosen, run: Run, lease: HeldLease) -> LoadCounts:
        replayer = Replayer(
            view=view,
            schema_id=self.registry.schema_id(view.ref),
            store=self.offline,
            take_sequences=lambda count: self.state.take_sequences(view.ref, count),
            gate=self._gate(view, run),
            batch_rows=self.batch_rows,
            confirm=lease.check,
        )
        counts = LoadCounts()
        for settled in replayer.replay(chosen):
            counts += settled
            self.progress(view.ref, "replay", settled.read)
        return counts

    def _gate(self, view: FeatureView, run: Run) -> Gate:
        return Gate(view, run.id, to_us(self.clock.now()), self._known)

    def _load(
        self, view: FeatureView, request: Request, run: Run, lease: HeldLease
    ) -> tuple[LoadCounts, TooManyBreaches | None]:
        """What was loaded, and what forbids to publish it."""
        cursor = Cursor.from_json(self.state.cursor(view.ref))
        end_us = None if request.end is None else to_us(request.end)
        if request.start is not None:
            window = RowWindow(start_us=to_us(request.start), end_us=end_us)
            reading = whole_window(view, self.repository, self.batch_rows, window)
        else:
            reading = arrivals(view, self.repository, self.batch_rows, cursor, end_us)
        if reading.nothing:
            return LoadCounts(), None
        # Before any row moves: what breaks the contract must have where to go.
        self.offline.quarantine.require_room(view.ref)
        counts, newest, load_id = self._settle(view, reading, cursor, run, lease)
        too_many = self._too_many(view, load_id, run)
        failpoint("load.before_cursor")
        after = replace(cursor, in_flight=None)
        # What broke off is read again as a whole, so that no later run publishes it unjudged.
        if request.start is None and too_many is None:
            after = advanced(cursor, reading, end_us, *self._not_ahead(newest))
        self.state.set_cursor(view.ref, after.to_json(), lease.lease)
        return counts, too_many

    def _too_many(self, view: FeatureView, load_id: str, run: Run) -> TooManyBreaches | None:
        """Why the load must not be published, all of it counted, whichever run settled it."""
        if view.max_breach_share is None:
            return None
        checked, broken = self.offline.breached(load_id)
        if broken <= view.max_breach_share * checked:
            return None
        return TooManyBreaches(
            f"feature view {view.ref!r}: {broken:,} of {checked:,} rows ({broken / checked:.2%}) break the contract, "
            f"more than the share of {view.max_breach_share:.2%} that max_breach_share allows; nothing of them was "
            f"published. `featurestore describe run {run.id}` counts the rules, `featurestore quarantine list --view "
            f"{view.ref}` shows the rows: mend the source, or widen the contract or the share, and run again; "
            f"`materialize-incremental --publish-only` publishes the rows that passed"
        )

    def _known(self, ref: str, keys: pa.Table) -> Mask:
        return entities_known(self.offline, self.registry.view(ref), keys)

    def _not_ahead(self, newest: tuple[int | None, int | None]) -> tuple[int | None, ...]:
        """Times ahead of the clock count as now: one row of next year must not hide those of the coming days."""
        now_us = to_us(self.clock.now())
        return tuple(None if time_us is None else min(time_us, now_us) for time_us in newest)

    def _settle(
        self, view: FeatureView, reading: Reading, cursor: Cursor, run: Run, lease: HeldLease
    ) -> tuple[LoadCounts, tuple[int | None, int | None], str]:
        load_id, done = self._begin(view, reading, cursor, lease)
        loader = Loader(
            view=view,
            schema_id=self.registry.schema_id(view.ref),
            store=self.offline,
            take_sequences=lambda count: self.state.take_sequences(view.ref, count),
            gate=self._gate(view, run),
            load_id=load_id,
            confirm=lease.check,
        )
        counts = LoadCounts()
        newest_event_us: int | None = None
        newest_created_us: int | None = None
        # The store is opened anew for each batch, so that others get their turn between two; that costs no time.
        breached = self.offline.breached(load_id) if done else (0, 0)
        for settled in loader.load(reading.batches(), already_done=done, breached=breached):
            counts += settled.counts
            newest_event_us = _greater(newest_event_us, settled.newest_event_us)
            newest_created_us = _greater(newest_created_us, settled.newest_created_us)
            self.progress(view.ref, "load", settled.counts.read)
        return counts, (newest_event_us, newest_created_us), load_id

    def _begin(self, view: FeatureView, reading: Reading, cursor: Cursor, lease: HeldLease) -> tuple[str, int]:
        """(load id, source rows an interrupted load of the same rows has settled)."""
        digest = reading.digest
        if cursor.in_flight is not None and cursor.in_flight["reads"] == digest:
            load_id = cursor.in_flight["load_id"]
            return load_id, self.offline.rows_done(load_id)
        load_id = uuid.uuid4().hex
        begun = replace(cursor, in_flight={"reads": digest, "load_id": load_id})
        self.state.set_cursor(view.ref, begun.to_json(), lease.lease)
        return load_id, 0

    def _publish(self, view: FeatureView, request: Request, lease: HeldLease) -> Published:
        last = self.state.publish_state(view.ref)
        started_at_us = to_us(self.clock.now())
        publisher = Publisher(
            project=self.registry.project,
            view=view,
            schema_id=self.registry.schema_id(view.ref),
            offline=self.offline,
            online=self.online,
            batch_rows=self.batch_rows,
            before_write=lease.check,
            before_repair=lambda: self.state.begin_repair(lease.lease),
            on_rows=lambda rows: self.progress(view.ref, "publish", rows),
            drain=lambda: self._drain(view),
        )
        published = publisher.publish(last, started_at_us, repair=request.repair)
        failpoint("publish.before_commit")
        self.state.commit_publish(
            PublishRecord(
                view=view.ref,
                position_from=max(last.position, 0) if last else 0,
                position_to=published.position,
                horizon_from_us=last.horizon_us if last else None,
                horizon_to_us=published.horizon_us,
                watermark_us=published.watermark_us,
                started_at_us=started_at_us,
                acknowledged_at_us=to_us(self.clock.now()),
                rows_written=published.rows_written,
                keys_repaired=published.rows_written if published.repaired else 0,
                kind="repair" if published.repaired else "publish",
            ),
            lease.lease,
        )
        return published


def _greater(first: int | None, second: int | None) -> int | None:
    return max((value for value in (first, second) if value is not None), default=None)
