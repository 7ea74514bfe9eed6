"""When a failed call is made again: inside the caller's deadline, later each time, never all clients at once.

Knows no transport and does not sleep, so the sync and the async client share it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from featurestore_client.errors import RequestFailed


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often, and how long apart; the deadline of the call bounds it all."""

    #: Calls in all, the first one too; 1 never tries again.
    attempts_max: int = 10
    #: Pause before the second attempt; it doubles each time. Half of each pause is left to chance.
    backoff_first_s: float = 0.02
    #: The longest pause, unless the server asks for a longer one.
    backoff_max_s: float = 0.5


class Attempts:
    """The attempts at one call. Make it when the call begins."""

    def __init__(self, retries: Retries, timeout_s: float) -> None:
        self._retries = retries
        self._deadline = time.monotonic() + timeout_s
        self._made = 0

    def remaining_s(self) -> float:
        """What is left of the deadline; zero when it has passed."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_s(self, failure: RequestFailed) -> float:
        """How long to wait before the next attempt; raises `failure` where there is none."""
        self._made += 1
        backoff_s = min(self._retries.backoff_first_s * 2 ** (self._made - 1), self._retries.backoff_max_s)
        hint_s = failure.retry_after_s or 0.0
        # Never before the time that the server named, and spread after it.
        pause_s = hint_s + backoff_s * random.uniform(0.0 if hint_s else 0.5, 1.0)
        if not failure.retryable or self._made >= self._retries.attempts_max or pause_s >= self.remaining_s():
            raise failure
        return pause_s
