"""How the last load of each view kept its contract, from the records of runs; kept for a moment.

A run that read nothing says nothing, and a replay judges old rows: neither takes the place of a load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurestore.registry.state import Run

#: Read again after this time; runs come at most every few seconds.
REFRESH_S = 10.0
#: Runs looked through. What is older is known only to processes that saw it.
RUNS_MAX = 200
#: What becomes of rows that break the contract, and the rows that were judged.
OUTCOMES = ("read", "quarantined", "warned")


class Runs(Protocol):
    """The part of the state store that is read here."""

    def runs(self, limit: int) -> Sequence[Run]:
        """The latest runs, newest first."""
        ...


@dataclass(frozen=True, kw_only=True)
class LastLoad:
    """Of one view: rows by outcome and by broken rule ("field:rule"), and whether its last run failed."""

    rows: Mapping[str, int]
    breaches: Mapping[str, int]
    failed: bool


class LastLoads:
    """The last loads by name@version, read at most once in `REFRESH_S`."""

    def __init__(self, runs: Runs, ticks: Callable[[], float] = time.monotonic) -> None:
        self._runs, self._ticks = runs, ticks
        self._read_at: float | None = None
        self._known: dict[str, LastLoad] = {}

    def now(self) -> Mapping[str, LastLoad]:
        """As known at most `REFRESH_S` ago; StoreUnreachable."""
        if self._read_at is None or self._ticks() - self._read_at >= REFRESH_S:
            read_at, known = self._ticks(), dict(self._known)
            for run in reversed(self._runs.runs(RUNS_MAX)):  # the newest has the last word
                for ref in run.counts:
                    known[ref] = _after(run, ref, known.get(ref))
            self._read_at, self._known = read_at, known  # another thread may be reading the former
        return self._known


def _after(run: Run, ref: str, before: LastLoad | None) -> LastLoad:
    counts = run.counts[ref]
    loaded = counts.get("loaded") or {}
    failed = bool(counts.get("error"))
    if run.kind == "replay" or not loaded.get("read"):
        return LastLoad(rows=before.rows if before else {}, breaches=before.breaches if before else {}, failed=failed)
    return LastLoad(
        rows={name: loaded.get(name, 0) for name in OUTCOMES}, breaches=loaded.get("breaches") or {}, failed=failed
    )
