"""Tells a webhook, once, when a promise of freshness is broken and when it holds again.

What the receiver was told is durable in the state store and moves under a lease, so any number of processes may look,
and a restart tells nothing twice. Looking is read-only while nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from featurestore.clock import Clock, SystemClock, iso_text, to_us
from featurestore.errors import FeatureStoreError, StoreBusy
from featurestore.feature_view import FeatureView
from featurestore.freshness import ViewFreshness, freshness_of
from featurestore.registry.holder import holder_name
from featurestore.registry.state import StateStore
from featurestore.repository import Repository
from featurestore.trouble import Trouble
from featurestore.webhook import DeliveryFailed, Webhook

log = logging.getLogger(__name__)

#: Whose lease and cursor it is; no view is called so, since those are `name@version`.
REF = "freshness webhook"
#: The lease outlives a delivery, which is bounded, and the two small writes beside it.
LEASE_SLACK_S = 30.0


class AppliedViews(Protocol):
    """The part of the registry that is read here."""

    project: str

    def views(self) -> dict[str, FeatureView]:
        """The applied views by name@version."""
        ...


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the receiver knows: the views whose promise is `broken`, after `events` deliveries."""

    broken: tuple[str, ...] = ()
    events: int = 0
    #: The views of the delivery that fails, how often it did, and when (in real time) to try again.
    failing: tuple[str, ...] = ()
    failures: int = 0
    retry_at_us: int = 0

    @classmethod
    def read(cls, state: StateStore) -> Told:
        """From the state store; nothing was told before the first time."""
        document = state.cursor(REF)
        if document is None:
            return cls()
        return cls(**document | {name: tuple(document[name]) for name in ("broken", "failing")})


@dataclass(frozen=True, kw_only=True)
class FreshnessWebhook:
    """Compares what is with what was told. A failed delivery is tried again at growing intervals, `retries` times."""

    registry: AppliedViews
    state: StateStore
    clock: Clock
    webhook: Webhook
    check_s: float
    retries: int

    def check(self) -> None:
        """Tell what changed, unless another process is at it; a receiver that fails is no error of this one."""
        told = Told.read(self.state)
        if not told.failures and not _changed(self._judged(), told):
            return
        try:
            lease = self.state.acquire_lease(REF, holder_name("freshness"), self.webhook.timeout_s + LEASE_SLACK_S)
        except StoreBusy:
            return
        try:
            told, judged = Told.read(self.state), self._judged()
            if (after := self._after(told, judged)) != told:
                self.state.set_cursor(REF, asdict(after), lease)
        finally:
            self.state.release_lease(lease)

    def _judged(self) -> list[ViewFreshness]:
        return freshness_of(self.registry.views().values(), self.state, to_us(self.clock.now()))

    def _after(self, told: Told, judged: Sequence[ViewFreshness]) -> Told:
        """What the receiver knows after this attempt, if there is one to make."""
        changed = tuple(_changed(judged, told))
        if not changed:
            return replace(told, failing=(), failures=0, retry_at_us=0)
        failures = told.failures if changed == told.failing else 0
        now_us = to_us(SystemClock().now())
        if failures and now_us < told.retry_at_us:
            return told
        knows = Told(broken=tuple(view.view for view in judged if view.broken), events=told.events + 1)
        error = self._deliver(self._event(told, judged, changed))
        shown = ", ".join(changed)
        if error is None:
            log.info("freshness of %s: the webhook at %s was told", shown, self.webhook.host)
            return knows
        if failures == self.retries:
            log.error("freshness of %s: %s; given up after %d tries", shown, error, failures + 1)
            return knows
        log.warning("freshness of %s: %s; it is tried again", shown, error)
        retry_at_us = now_us + int(self.check_s * 2**failures * 1_000_000)
        return replace(told, failing=changed, failures=failures + 1, retry_at_us=retry_at_us)

    def _deliver(self, event: Mapping[str, Any]) -> DeliveryFailed | None:
        try:
            self.webhook.post(event["id"], json.dumps(event).encode())
        except DeliveryFailed as error:
            return error
        return None

    def _event(self, told: Told, judged: Sequence[ViewFreshness], changed: Sequence[str]) -> dict[str, Any]:
        by_name = {view.view: view for view in judged}
        changes: list[dict[str, Any]] = [
            {
                "change": "recovered" if ref in told.broken else "broken",
                **(by_name[ref].document() if ref in by_name else {"view": ref, "verdict": "removed"}),
            }
            for ref in changed
        ]
        # The same attempt after a crash has the same id: the number of this event, and what it tells.
        named = [self.registry.project, told.events, [(change["view"], change["change"]) for change in changes]]
        return {
            "id": hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32],
            "project": self.registry.project,
            "judged_at": iso_text(to_us(self.clock.now())),
            "changes": changes,
        }


def _changed(judged: Sequence[ViewFreshness], told: Told) -> list[str]:
    """The views whose promise broke or holds again since, sorted; a view that is gone breaks none."""
    return sorted({view.view for view in judged if view.broken} ^ set(told.broken))


def freshness_webhook(repository: Repository) -> FreshnessWebhook | None:
    """The webhook that the settings name, if they do."""
    settings = repository.settings.freshness
    if settings.webhook is None:
        return None
    secret = settings.webhook_secret
    return FreshnessWebhook(
        registry=repository.registry,
        state=repository.state,
        clock=repository.clock,
        webhook=Webhook(
            url=settings.webhook.get_secret_value(),
            secret=None if secret is None else secret.get_secret_value().encode(),
            timeout_s=settings.timeout_s,
        ),
        check_s=settings.check_s,
        retries=settings.retries,
    )


def check_freshness(repository: Repository) -> None:
    """Tell the webhook, where one is set, what changed; trouble is logged, since the work before it is done."""
    try:
        if (hook := freshness_webhook(repository)) is not None:
            hook.check()
    except FeatureStoreError as error:
        log.warning("the freshness webhook could not be served: %s", error)


@contextmanager
def watching_freshness(repository: Repository) -> Iterator[None]:
    """Check now and every `freshness.check_s` on a thread of its own, for as long as the block runs."""
    hook = freshness_webhook(repository)
    if hook is None:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(hook, done), name="freshness webhook", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(hook.webhook.timeout_s)


def _watch(hook: FreshnessWebhook, done: threading.Event) -> None:
    trouble = Trouble(log, "freshness cannot be watched", "freshness is watched again")
    while True:
        try:
            hook.check()
            trouble.passed()
        except FeatureStoreError as error:
            trouble.met(error)
        if done.wait(hook.check_s):
            return
