"""The lease that keeps one writer a view, renewed in the background for as long as the job runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from featurestore.errors import LeaseLost, StoreError
from featurestore.registry.holder import holder_name
from featurestore.registry.state import Lease, StateStore

log = logging.getLogger(__name__)

#: A lease is renewed this many times within its life, so that one slow renewal does not lose it.
RENEWALS_PER_LIFE = 3


class HeldLease:
    """A lease this process holds. `check` raises once it is lost."""

    def __init__(self, state: StateStore, lease: Lease, stopped: threading.Event) -> None:
        self._state = state
        self._stopped = stopped
        self.lease = lease

    def check(self) -> None:
        """LeaseLost, naming who took it, when the lease is no longer ours; KeyboardInterrupt when work is to end."""
        if self._stopped.is_set():
            raise KeyboardInterrupt
        self._state.check_lease(self.lease)


@contextmanager
def held_lease(
    state: StateStore, ref: str, life_s: float, stopped: threading.Event | None = None
) -> Iterator[HeldLease]:
    """Hold the view's lease for the block; StoreBusy when somebody else writes it. `stopped` ends the work."""
    held = HeldLease(state, state.acquire_lease(ref, holder_name("materialize"), life_s), stopped or threading.Event())
    done = threading.Event()
    heart = threading.Thread(target=_renew, args=(state, held, life_s, done), name=f"lease {ref}", daemon=True)
    heart.start()
    try:
        yield held
    finally:
        done.set()
        heart.join()
        state.release_lease(held.lease)


def _renew(state: StateStore, held: HeldLease, life_s: float, done: threading.Event) -> None:
    while not done.wait(life_s / RENEWALS_PER_LIFE):
        try:
            held.lease = state.renew_lease(held.lease, life_s)
        except LeaseLost:
            return  # The job's next `check` says so where it can be acted on.
        except StoreError as error:
            # A lease that runs out is still ours until somebody takes it; the next renewal may come through.
            log.warning("%s: the lease was not renewed: %s", held.lease.view, error)
