"""Makes definitions effective, across two databases, so that a kill at any moment leaves nothing half done.

Intent row -> idempotent changes of the offline store -> commit of the definitions -> drops of removed data -> done.
Whoever opens the registry next finishes an open intent: its documents are in the row, the files are not needed. A
failure before the commit (not a kill) rolls back at once. One apply at a time, by a lease like that of a view.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from featurestore.clock import Clock, to_us
from featurestore.errors import FeatureStoreError, StoreBusy
from featurestore.failpoint import failpoint
from featurestore.feature_view import FeatureView
from featurestore.registry.database import WAIT_S
from featurestore.registry.definitions import Definitions
from featurestore.registry.holder import holder_name
from featurestore.registry.intents import (
    ApplyRecord,
    Work,
    commit_definitions,
    end_intent,
    open_intent,
    write_intent,
)
from featurestore.registry.plan import (
    ALLOW_DATA_LOSS,
    ALLOW_EMPTY,
    ALLOW_IN_USE,
    AddColumns,
    CreateHistory,
    DropData,
    Plan,
    Step,
    make_plan,
    make_teardown,
    step_document,
)
from featurestore.registry.readers import RECENT, forget_view
from featurestore.registry.registry import Registry
from featurestore.registry.state import Lease, StateStore

#: The lease on applying; no view can be called so.
APPLY = "@apply"
#: A killed apply on another machine is in the way that long; on this one it is noticed at once.
LEASE_S = 60.0
RETRY_S = 0.05


class History(Protocol):
    """What apply asks of an offline store; every call may be repeated."""

    def ensure_history(self, view: FeatureView) -> None:
        """Create the history of the view, or add the columns it lacks."""
        ...

    def drop_history(self, ref: str) -> None:
        """Remove a history, if there is one."""
        ...

    def history_rows(self, ref: str) -> int:
        """Its rows; 0 when there is none."""
        ...


class OnlineRows(Protocol):
    """What apply asks of an online store."""

    def drop(self, ref: str) -> int:
        """Remove every row of a view."""
        ...


@dataclass(frozen=True, kw_only=True)
class ApplyResult:
    """What was done: the steps in order; `record` is None when there was nothing to do."""

    revision: int
    steps: tuple[Step, ...]
    record: ApplyRecord | None
    #: An earlier apply that was cut off, finished before this one began.
    finished: ApplyRecord | None = None


def apply(
    registry: Registry,
    state: StateStore,
    offline: History,
    online: OnlineRows,
    definitions: Definitions,
    *,
    who: str,
    clock: Clock,
    allow_empty: bool = False,
    allow_data_loss: bool = False,
    allow_in_use: bool = False,
    recent: timedelta = RECENT,
    wait_s: float = WAIT_S,
) -> ApplyResult:
    """Make `definitions` effective. EvolutionError lists everything refused; StoreBusy names who applies already.

    Readers seen within `recent` keep their views from removal, unless `allow_in_use`.
    """
    with applying(state, wait_s) as lease:
        work = _Applier(registry, state, offline, online, clock, lease)
        finished = work.finish()
        plan = make_plan(registry, state, definitions, offline.history_rows, recent)
        flags = {ALLOW_EMPTY: allow_empty, ALLOW_DATA_LOSS: allow_data_loss, ALLOW_IN_USE: allow_in_use}
        plan.check([flag for flag, passed in flags.items() if passed])
        return work.execute(plan, who, finished)


def teardown(
    registry: Registry,
    state: StateStore,
    offline: History,
    online: OnlineRows,
    *,
    who: str,
    clock: Clock,
    wait_s: float = WAIT_S,
) -> ApplyResult:
    """Remove everything applied, with its data; the log of applies and runs stays."""
    with applying(state, wait_s) as lease:
        work = _Applier(registry, state, offline, online, clock, lease)
        finished = work.finish()
        return work.execute(make_teardown(registry, offline.history_rows), who, finished)


def finish_open_intent(
    registry: Registry, state: StateStore, offline: History, online: OnlineRows, *, clock: Clock, wait_s: float = 0.0
) -> ApplyRecord | None:
    """Finish the apply that was cut off and return its record; None when there is none, or its process still works."""
    if open_intent(registry) is None:
        return None
    try:
        with applying(state, wait_s) as lease:
            return _Applier(registry, state, offline, online, clock, lease).finish()
    except StoreBusy:
        return None


# ------------------------------------------------------------------ one at a time


@contextmanager
def applying(state: StateStore, wait_s: float) -> Iterator[Lease]:
    """The lease on applying, waited for at most `wait_s`; StoreBusy names its holder."""
    lease = _acquired(state, APPLY, "apply", wait_s)
    try:
        yield lease
    finally:
        state.release_lease(lease)


@contextmanager
def _writing(state: StateStore, refs: Sequence[str], wait_s: float) -> Iterator[None]:
    """The leases of the views whose data is dropped, so that no job writes into it meanwhile."""
    leases: list[Lease] = []
    try:
        for ref in refs:
            leases.append(_acquired(state, ref, "apply", wait_s))
        yield
    finally:
        for lease in leases:
            state.release_lease(lease)


def _acquired(state: StateStore, name: str, purpose: str, wait_s: float) -> Lease:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return state.acquire_lease(name, holder_name(purpose), LEASE_S)
        except StoreBusy:
            if time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_S)


# ------------------------------------------------------------------ execution


@dataclass(frozen=True)
class _Applier:
    """One process that holds the lease on applying, and all it works on."""

    registry: Registry
    state: StateStore
    offline: History
    online: OnlineRows
    clock: Clock
    lease: Lease

    def execute(self, plan: Plan, who: str, finished: ApplyRecord | None) -> ApplyResult:
        """Write the intent of a plan and carry it out."""
        record = None
        if plan.steps:
            work = _work(plan.steps)
            steps = [step_document(step, plan.target) for step in plan.steps]
            with _writing(self.state, work.drop, wait_s=0.0):
                now_us = to_us(self.clock.now())
                intent = write_intent(self.registry, who=who, now_us=now_us, steps=steps, target=plan.target, work=work)
                failpoint("apply.intent_written")
                record = self._carry_out(intent)
        return ApplyResult(revision=self.registry.revision(), steps=plan.steps, record=record, finished=finished)

    def finish(self) -> ApplyRecord | None:
        """Carry out the intent that another process left open."""
        intent = open_intent(self.registry)
        if intent is None:
            return None
        with _writing(self.state, intent.work.drop, wait_s=0.0):
            return self._carry_out(intent)

    def _carry_out(self, intent: ApplyRecord) -> ApplyRecord:
        """Everything after the intent; doing it twice is the same as doing it once."""
        if intent.state == "open":
            try:
                self._prepare(intent)
                commit_definitions(self.registry, self.state, intent, self.lease)
            except BaseException:
                with suppress(FeatureStoreError):  # the first fault is the news; what stays open is ended by the next
                    self._roll_back(intent)
                raise
            failpoint("apply.committed")
        for ref in intent.work.drop:
            self._drop(ref)
        failpoint("apply.dropped")
        return end_intent(self.registry, self.state, intent, "done", to_us(self.clock.now()), self.lease)

    def _prepare(self, intent: ApplyRecord) -> None:
        for ref in intent.work.ensure:
            self.state.renew_lease(self.lease, LEASE_S)
            self.offline.ensure_history(intent.target.views[ref])
            failpoint("apply.history_ensured")
        failpoint("apply.prepared")

    def _drop(self, ref: str) -> None:
        self.state.renew_lease(self.lease, LEASE_S)
        self.online.drop(ref)
        failpoint("apply.online_dropped")
        self.offline.drop_history(ref)
        failpoint("apply.history_dropped")
        forget_view(self.state, ref)
        self.state.forget(ref)

    def _roll_back(self, intent: ApplyRecord) -> None:
        """Take back the new histories; columns added to old ones stay, empty, and are found by the next apply."""
        self.state.check_lease(self.lease)  # whoever took it over is carrying out this same intent
        for ref in intent.work.created:
            if self.offline.history_rows(ref) == 0:
                self.offline.drop_history(ref)
        end_intent(self.registry, self.state, intent, "rolled_back", to_us(self.clock.now()), self.lease)


def _work(steps: Sequence[Step]) -> Work:
    return Work(
        ensure=tuple(step.name for step in steps if isinstance(step, (CreateHistory, AddColumns))),
        created=tuple(step.name for step in steps if isinstance(step, CreateHistory)),
        drop=tuple(step.name for step in steps if isinstance(step, DropData)),
    )
